"""`reg4pru predict` into a folder that an earlier run has filled: what stays, what is replaced, what is refused."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from modeling_reg4pru.speed_budget import fingerprint_weights
from modeling_reg4pru.tiled_inference import predict_image
from reg4pru import predict
from reg4pru.common.weight_fingerprints import fingerprint_tensors
from reg4pru.inference import output_folder, prediction
from reg4pru.inference.loading import load_checkpoint


@pytest.fixture
def folder(images, tmp_path):
    """Two images, and another one in a folder below with the name of the first."""
    (tmp_path / "images" / "other").mkdir(parents=True)
    for index, name in enumerate(("p0", "p1")):
        images[index]["image"].save(tmp_path / "images" / f"{name}.png")
    images[1]["image"].crop((0, 0, 100, 90)).save(tmp_path / "images" / "other" / "p0.png")
    return tmp_path / "images"


@pytest.fixture
def checkpoint(tiny_model, save_checkpoint):
    return save_checkpoint(tiny_model())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(checkpoint, out, tmp_path, monkeypatch):
    """Runs the command, which must end well."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def run(images, *more: object, model=checkpoint) -> None:
        common = ["--model_name_or_path", model, "--images", images, "--output_dir", out]
        assert predict.main([*map(str, common), *map(str, more)]) == 0

    return run


@pytest.fixture
def refused(run, out, capsys, monkeypatch):
    """Runs the command, which must refuse before any work and change nothing; what it says."""

    def refused(images, *more: object, **kwargs) -> str:
        before = contents(out)
        with monkeypatch.context() as patched:
            patched.setattr(prediction, "predict_image", lambda *_, **__: pytest.fail("work has begun"))
            with pytest.raises(SystemExit) as stopped:
                run(images, *more, **kwargs)
        assert stopped.value.code == 2
        assert contents(out) == before
        return capsys.readouterr().err

    return refused


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(out) -> list[tuple[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    masks = [row["mask"] for row in rows]
    assert len(set(masks)) == len(masks), "no file is that of two rows"
    assert all((out / mask).is_file() for mask in masks)
    return [("/".join(row["file"].split("images/")[1:]), row["keep_rate"]) for row in rows]


def test_keep_rates_of_two_runs_have_files_of_their_own(run, folder, out, tmp_path):
    run(folder / "p0.png", "--keep_rates", 1.0)
    before = contents(out)
    run(folder / "p0.png", "--keep_rates", 0.3, "--parquet")
    run(folder / "p0.png", "--parquet")
    assert table(out) == [("p0.png", "1.0"), ("p0.png", "0.3"), ("p0.png", "checkpoint")]
    assert (out / "p0_probability_1.0.png").read_bytes() == before["p0_probability_1.0.png"]
    rows = load_dataset(str(out / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    names = {"0.3": "p0_probability_0.3.png", "1.0": "p0_probability_1.0.png", "checkpoint": "p0_probability.png"}
    stored = {row["keep_rate"]: np.asarray(row["probability"]) for row in rows}
    assert stored.keys() == names.keys()
    for rate, name in names.items():
        assert np.array_equal(stored[rate], np.asarray(Image.open(out / name)))
    assert not np.array_equal(stored["0.3"], stored["1.0"])


SHARDS = ["data/train-00000-of-00001.parquet", "data/test.parquet"]


@pytest.mark.parametrize("foreign", ["notes.txt", "README.md", *SHARDS])
def test_a_data_set_replaces_that_of_this_command_only(run, refused, folder, out, foreign):
    (out / "dataset" / foreign).parent.mkdir(parents=True)
    (out / "dataset" / foreign).write_text("of somebody")
    assert f"{out / 'dataset' / foreign} is not part of a data set of this command" in refused(
        folder / "p0.png", "--parquet"
    )
    run(folder / "p0.png")
    assert (out / "dataset" / foreign).read_text() == "of somebody"


def test_what_somebody_added_to_the_data_set_is_kept(run, refused, folder, out):
    run(folder / "p0.png", "--parquet")
    run(folder / "p1.png", "--parquet")
    (out / "dataset" / "data" / "notes.txt").write_text("of somebody")
    assert "notes.txt is not part of a data set of this command" in refused(folder / "p1.png", "--parquet")


def test_a_namesake_takes_no_files_of_another_image(run, refused, folder, out):
    run(folder / "p0.png", "--keep_rates", 1.0)
    other = folder / "other" / "p0.png"
    run(other, "--keep_rates", 0.5)
    said = refused(other, "--keep_rates", 1.0, 0.5)
    assert "p0_mask_1.0.png is that of" in said
    assert "--overwrite" in said
    run(other, "--keep_rates", 1.0, 0.5, "--overwrite")
    assert table(out) == [("other/p0.png", "1.0"), ("other/p0.png", "0.5")], "the row goes with its files"
    assert "is that of" in refused(folder / "p0.png", "--keep_rates", 1.0), "though it was begun here once"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--threshold", 0.7], "--threshold is 0.7, and was 0.5"),
        (["--dtype", "bfloat16"], "--dtype is bfloat16, and was float32"),
        (["--stage_map"], "--stage_map is True, and was False"),
        (["--seed", 3], "--seed is 3, and was 0"),
        (["--threshold", 0.7, "--seed", 3], "--threshold is 0.7, and was 0.5; --seed is 3, and was 0"),
    ],
)
def test_other_settings_are_refused_unless_all_is_replaced(run, refused, folder, out, more, said):
    run(folder)
    assert said in refused(folder, *more)
    assert said in refused(folder / "p0.png", *more)
    one = refused(folder / "p1.png", *more, "--overwrite")
    assert said in one
    assert "not " in one
    assert "p0.png at keep rate checkpoint" in one
    run(folder, *more, "--overwrite")
    run(folder, *more)
    assert sorted(table(out)) == [("p0.png", "checkpoint"), ("p1.png", "checkpoint")]
    assert said.split("is ")[0].strip("- ") in json.loads((out / "predictions.json").read_text())
    assert ", and was" in refused(folder), "the new settings are noted"


def test_another_model_is_refused_and_the_same_elsewhere_goes_on(run, refused, checkpoint, folder, out, tiny_model):
    run(folder / "p0.png", "--parquet")
    copy = checkpoint.with_name("copy")
    shutil.copytree(checkpoint, copy)
    run(folder, model=copy)
    assert len(table(out)) == 2

    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"keep_rates": 0.4}))
    assert f"{copy}, and was {checkpoint}: other configuration" in refused(folder, model=copy)
    tiny_model(initializer_range=0.1).save_pretrained(checkpoint)
    assert f"{checkpoint}, and was {checkpoint}: other weights" in refused(folder, "--parquet")


def test_the_weights_of_predictions_are_told_as_in_every_result(run, refused, checkpoint, folder, out, tiny_model):
    run(folder / "p0.png")
    noted = json.loads((out / "predictions.json").read_text())
    assert noted["weights"] == fingerprint_weights(checkpoint)
    model, _ = load_checkpoint(str(checkpoint))
    former = noted | {"weights": fingerprint_tensors(model)}
    (out / "predictions.json").write_text(json.dumps(former))
    run(folder)
    assert len(table(out)) == 2, "a folder of an earlier version goes on"
    (out / "predictions.json").write_text(json.dumps(noted | {"weights": "0" * 32}))
    assert "other weights" in refused(folder)


def test_another_data_set_is_refused(run, refused, checkpoint, folder, out, tmp_path, capsys):
    features = Features({"image": ImageFeature(), "name": Value("string")})
    for name in ("one", "two"):
        rows = [{"image": str(folder / "p0.png"), "name": "ward/0"}]
        (tmp_path / name).mkdir()
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / name / "test.parquet")
    common = ["--model_name_or_path", str(checkpoint), "--output_dir", str(out), "--dataset"]
    assert predict.main([*common, str(tmp_path / "one")]) == 0
    with pytest.raises(SystemExit):
        predict.main([*common, str(tmp_path / "two")])
    assert f"--dataset is {tmp_path / 'two'}, and was {tmp_path / 'one'}" in capsys.readouterr().err
    assert f"--dataset is not given, and was {tmp_path / 'one'}" in refused(folder)


def test_overwrite_leaves_the_rows_of_other_images(run, folder, out):
    run(folder, "--keep_rates", 1.0, 0.5)
    before, stamp = contents(out), (out / "p1_mask_1.0.png").stat().st_mtime_ns
    run(folder / "p1.png", "--keep_rates", 1.0, "--overwrite")
    assert sorted(table(out)) == [("p0.png", "0.5"), ("p0.png", "1.0"), ("p1.png", "0.5"), ("p1.png", "1.0")]
    assert (out / "p1_mask_1.0.png").stat().st_mtime_ns > stamp
    after = contents(out)
    assert {name: after[name] for name in after if "p0" in name} == {n: before[n] for n in before if "p0" in n}


def test_overwrite_leaves_no_file_of_the_earlier_prediction(run, folder, out):
    run(folder, "--stage_map")
    run(folder, "--overwrite", "--threshold", 0.3)
    assert not list(out.glob("*_stages.png"))


def test_an_overwriting_run_that_was_killed_goes_on_without_overwriting(run, folder, out, monkeypatch):
    run(folder)
    calls, predicted = [], prediction.predict_image

    def killed_at_the_second(*arguments, **kwargs):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predicted(*arguments, **kwargs)

    monkeypatch.setattr(prediction, "predict_image", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "--overwrite", "--threshold", 0.3)
    assert table(out) == [("p0.png", "checkpoint")]
    run(folder, "--threshold", 0.3)
    assert table(out) == [("p0.png", "checkpoint"), ("p1.png", "checkpoint")]
    assert len(calls) == 3


def test_a_run_killed_between_files_and_row_goes_on(run, folder, out, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(output_folder.ResultFolder, "add_row", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    assert (out / "p0_mask.png").is_file()
    (out / "predictions.csv").touch()  # as if it was killed at the heading
    run(folder)
    assert table(out) == [("p0.png", "checkpoint"), ("p1.png", "checkpoint")]


def test_a_folder_that_does_not_tell_how_it_was_made_is_refused(run, refused, folder, out):
    run(folder)
    (out / "predictions.json").unlink()
    assert "predictions.json, which tells how, is missing" in refused(folder)
    run(folder, "--overwrite")
    run(folder)


@pytest.mark.parametrize(
    ("name", "text"), [("predictions.json", '{"mine": 1}'), ("predictions.json", "mine"), ("predictions.csv", "a,b\n")]
)
def test_files_of_others_stay(refused, folder, out, name, text):
    out.mkdir()
    (out / name).write_text(text)
    assert f"{name} " in refused(folder, "--overwrite")


def test_a_copy_of_the_table_is_neither_read_nor_removed(run, folder, out):
    run(folder)
    (out / "predictions.csv").rename(out / "predictions-old.csv")
    run(folder, "--overwrite")
    assert len(table(out)) == 2
    assert (out / "predictions-old.csv").is_file()


def test_processes_share_the_images_out_and_one_alone_goes_on(run, refused, checkpoint, folder, out):
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--module", "reg4pru", "predict"]
    arguments = ["--model_name_or_path", checkpoint, "--images", folder, "--output_dir", out, "--keep_rates", 1.0]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run([sys.executable, "-m", *launch, *map(str, arguments)], env=environment, check=True)
    tables = [(out / f"predictions-{process}.csv").read_text().splitlines() for process in range(2)]
    assert [len(rows) for rows in tables] == [2, 2], "a heading and a row each"
    assert "--threshold is 0.7, and was 0.5" in refused(folder, "--threshold", 0.7)
    run(folder, "--keep_rates", 0.5, 1.0)
    assert table(out) == [("p0.png", "0.5"), ("p1.png", "0.5")], "what the two did is done"
    run(folder, "--keep_rates", 1.0, "--overwrite")
    assert not list(out.glob("predictions-*.csv"))
    assert len(table(out)) == 4


def test_another_allocation_is_another_prediction(run, refused, checkpoint, folder, out):
    image, model, processor = folder / "p0.png", *load_checkpoint(str(checkpoint))
    run(image, "--allocation", "image", "--keep_rates", 0.5)
    found = np.asarray(Image.open(out / "p0_mask_0.5.png")) == 255
    by_tile = predict_image(model, processor, image, 0.5).probabilities[1] > 0.5
    model.config.allocation = "image"
    assert np.array_equal(found, predict_image(model, processor, image, 0.5).probabilities[1] > 0.5)
    assert not np.array_equal(found, by_tile)
    assert "other configuration" in refused(image, "--keep_rates", 0.5)
