"""`--overwrite_output_dir` takes what runs have written and nothing else, and never what the new run needs."""

import json

import pytest

from reg4pru import train
from reg4pru.training.output_folder import LOCK, remove_run

from .processes import Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"))
    assert runs.complete("train", "run", "--overwrite_output_dir") == 0, runs.said("run")
    return runs


@pytest.fixture
def folder(tmp_path):
    """A run beside things of the user's."""
    for name in ("train_results.json", "run.json", "training_log.jsonl", "run.json.tmp", LOCK, "notes.txt",
                 "eyes/1.png", "checkpoints/step-00000002/optimizer.bin", "checkpoints/unfinished/optimizer.bin",
                 "checkpoints/discarded/optimizer.bin", "checkpoints/notes.txt", "best/model.safetensors",
                 "last/images/1.png", "last.unfinished/model.safetensors"):  # fmt: skip
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).touch()
    for name in ("best", "last"):
        (tmp_path / "run" / name / "config.json").write_text(json.dumps({"model_type": "reg4pru"}, indent=2))
    return tmp_path / "run"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refusal(capsys, folder, *flags):
    """What is said, and that nothing was touched."""
    before = files(folder)
    with pytest.raises(SystemExit) as stopped:
        train.main(["--output_dir", str(folder), "--overwrite_output_dir", *map(str, flags)])
    assert stopped.value.code == 2
    assert files(folder) == before
    return capsys.readouterr().err


def test_what_is_not_of_a_run_stays(folder):
    remove_run(folder)
    assert files(folder) == {LOCK, "notes.txt", "eyes/1.png", "checkpoints/notes.txt"}
    remove_run(folder)


def test_all_that_a_run_writes_goes(runs):
    folder = runs.folder / "run"
    remove_run(folder)
    assert files(folder) == {LOCK}


def test_weights_that_are_elsewhere_stay_there(folder):
    elsewhere = folder.parent / "elsewhere"
    (folder / "best").rename(elsewhere)
    (folder / "best").symlink_to(elsewhere)
    remove_run(folder)
    assert files(elsewhere) == {"config.json", "model.safetensors"}
    assert not (folder / "best").is_symlink()


@pytest.mark.parametrize(
    ("flag", "name", "removed"),
    [
        ("--model_name_or_path", "last", "last"),
        ("--backbone_name_or_path", "best/model.safetensors", "best"),
        ("--dataset", "last/images", "last"),
        ("--split", "checkpoints/step-00000002/optimizer.bin", "checkpoints/step-00000002"),
    ],
)
def test_what_the_run_needs_is_not_removed(folder, capsys, flag, name, removed):
    for source in (folder / name, folder.parent / "link" / name):
        (folder.parent / "link").unlink(missing_ok=True)
        (folder.parent / "link").symlink_to(folder)
        said = refusal(capsys, folder, flag, source)
        assert f"{flag} is {source}, which --overwrite_output_dir would remove with {folder / removed}" in said


def test_a_full_state_behind_a_link_is_not_removed(folder, capsys):
    elsewhere = folder.parent / "elsewhere"
    (folder / "checkpoints").rename(elsewhere)
    (folder / "checkpoints").symlink_to(elsewhere)
    state = elsewhere / "step-00000002"
    (state / "optimizer.bin").unlink()
    (state / "progress.json").write_text('{"step": 2}')
    assert f"--resume_from_checkpoint is {state}" in refusal(capsys, folder, "--resume_from_checkpoint", state)


def test_a_model_that_is_none_of_ours_is_not_written_over(folder, capsys):
    (folder / "best" / "config.json").write_text('{"model_type": "vit"}')
    assert "whose best/ holds a model that this command did not write" in refusal(capsys, folder)
    remove_run(folder)
    assert {"best/config.json", "best/model.safetensors"} <= files(folder)


def test_a_run_that_is_refused_late_has_removed_nothing(runs):
    assert runs.complete("train", "kept", "--max_train_steps", 2) == 0, runs.said("kept")
    before = files(runs.folder / "kept")
    assert runs.complete("train", "kept", "--overwrite_output_dir", "--tile_size", 16) == 2
    assert "tile_size is 16, but the model's input" in runs.said("kept")
    assert files(runs.folder / "kept") == before
