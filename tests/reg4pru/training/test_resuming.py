"""A run goes on with the settings that it began with, and no image that its weights have seen is forgotten."""

import json
import shutil

import pytest

from reg4pru import finetune, train
from reg4pru.training.run_record import check_state

from .processes import STEPS, Runs

pytestmark = pytest.mark.timeout(600)
COMMANDS = ("train", "finetune")
LATEST = ("--resume_from_checkpoint", "latest")
RESULTS = "training_images.json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"))
    for command in COMMANDS:
        assert runs.complete(command, command) == 0, runs.said(command)
    return runs


@pytest.fixture
def refusal(runs, capsys, monkeypatch):
    """What a run that is refused before it starts says in a line; its folder is as it was."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def refused(command, name, *flags):
        folder = runs.folder / name
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit) as stopped:
            {"train": train.main, "finetune": finetune.main}[command](runs.words(command, name, *flags))
        assert stopped.value.code == 2
        assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        return capsys.readouterr().err

    return refused


def newest(runs, command, name):
    """The newest full state of a run."""
    folder = {"train": f"checkpoints/step-{STEPS:08d}", "finetune": f"checkpoint-{STEPS}"}[command]
    return runs.folder / name / folder


def images(folder):
    return set(json.loads((folder / RESULTS).read_text())["images"])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("flag", "given", "said"),
    [
        ("--learning_rate", 0.01, "--learning_rate is 0.01, was 0.001"),
        ("--weight_decay", 0.5, "--weight_decay is 0.5, was"),
        ("--per_device_train_batch_size", 4, "--per_device_train_batch_size is 4, was 2"),
        ("--ema_decay", 0.5, "--ema_decay is 0.5, was 0.9"),
        ("--layer_decay", 1, "--layer_decay is 1.0, was 0.8"),
        ("--seed", 5, "--seed is 5, was 0"),
        ("--keep_rate_range", (0.3, 1), "--keep_rate_range is [0.3, 1.0], was None"),
        ("--config_overrides", ("keep_rates=0.25",), "--config_overrides keep_rates is 0.25, was not given"),
        ("steps", 2 * STEPS, f"steps is {2 * STEPS}, was {STEPS}"),
        ("steps", STEPS - 6, f"steps is {STEPS - 6}, was {STEPS}"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(runs, refusal, command, flag, given, said):
    flag = flag if flag != "steps" else {"train": "--max_train_steps", "finetune": "--max_steps"}[command]
    given = given if isinstance(given, tuple) else (given,)
    message = refusal(command, command, *LATEST, flag, *given)
    assert f"{newest(runs, command, command)} was trained with other settings: " in message
    assert said in message
    assert "Use those settings, or start a new run in another --output_dir." in message


def test_every_setting_that_differs_is_named(refusal):
    said = refusal("train", "train", *LATEST, "--seed", 1, "--poly_power", 2)
    assert "--poly_power is 2.0, was 0.9; --seed is 1, was 0." in said


def test_what_changes_no_weight_may_change(runs):
    folder = runs.folder / "train"
    shutil.copytree(folder, runs.folder / "moved")
    shutil.rmtree(runs.folder / "moved" / "last")
    kept = ("--logging_steps", 5, "--checkpointing_steps", 5, "--checkpoints_total_limit", 1, "--overwrite_repo")
    shutil.rmtree(newest(runs, "train", "moved"))
    assert runs.complete("train", "moved", *LATEST, *kept) == 0, runs.said("moved")
    assert runs.weights("train", "moved") == runs.weights("train", "train")


def settings(**changed):
    return {"streaming": False, "dataset": "eyes", "learning_rate": 1e-3, "num_processes": 2, "config_overrides": [],
            **changed}  # fmt: skip


def test_the_record_of_an_early_version_and_of_moved_data(tmp_path):
    def compare(before, now):
        (tmp_path / "run.json").write_text(json.dumps({"arguments": before}))
        check_state(tmp_path / "state", tmp_path, True, now)

    early = settings()
    del early["num_processes"]
    compare(early, settings())
    compare(settings(), settings(dataset="moved/eyes"))
    with pytest.raises(ValueError, match="--dataset is moved/eyes, was eyes"):  # of a stream there is no fingerprint
        compare(settings(streaming=True), settings(streaming=True, dataset="moved/eyes"))
    with pytest.raises(ValueError, match="--num_processes is 1, was 2"):
        compare(settings(), settings(num_processes=1))


@pytest.mark.parametrize("command", COMMANDS)
def test_images_of_another_run_are_not_forgotten(runs, refusal, command):
    """The other run learned from images of another seed."""
    state = newest(runs, command, command)
    weights = {"train": "last", "finetune": "."}[command]
    steps = {"train": "--max_train_steps", "finetune": "--max_steps"}[command]
    more = ("--resume_from_checkpoint", state, "--seed", 7, steps, STEPS + 1)
    assert runs.complete(command, f"{command}-next", *more) == 0, runs.said(f"{command}-next")
    before = images(runs.folder / command / weights)
    assert len(before) == 6
    after = images(runs.folder / f"{command}-next" / weights)
    assert before < after
    assert len(after) == 12

    assert "is not empty" in refusal(command, f"{command}-next", *more)
    # What the optimiser brings along cannot be told anew.
    said = refusal(command, "new", *more, "--learning_rate", 0.01)
    assert "--learning_rate is 0.01, was 0.001. Use those settings" in said
    assert runs.complete(command, "new", *more, steps, STEPS - 1) == 2
    assert f"which is at step {STEPS}: this training ends at step {STEPS - 1}" in runs.said("new")

    shutil.copytree(runs.folder / command, runs.folder / f"{command}-silent")
    silent = newest(runs, command, f"{command}-silent")
    (silent / RESULTS).unlink()
    noted = json.loads((silent / "files.json").read_text())
    del noted[RESULTS]
    (silent / "files.json").write_text(json.dumps(noted))
    said = refusal(command, "new", "--resume_from_checkpoint", silent)
    assert "does not say which images it has learned from" in said
    # The run that wrote it knows its own.
    assert runs.complete(command, f"{command}-silent", *LATEST) == 0, runs.said(f"{command}-silent")
    assert images(runs.folder / f"{command}-silent" / weights) == before
