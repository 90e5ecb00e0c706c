"""`reg4pru predict` from and to data sets: Parquet here, the Hub over HTTP; and its memory."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value, load_dataset

from datasets_fives.sources.synthetic import draw_image
from reg4pru import predict

IMAGES_ONLY = Features({"pixel_values": Image(), "image_id": Value("string")})


@pytest.fixture
def stored(tmp_path):
    """A folder with Parquet files, images without masks, one of them broken."""
    rows = []
    for index in range(3):
        pixels, _ = draw_image(80 + 16 * index, "N", np.random.SeedSequence(index))
        rows.append({"pixel_values": pixels, "image_id": f"ward/{index}"})
    (tmp_path / "stored").mkdir()
    Dataset.from_list(rows, features=IMAGES_ONLY).to_parquet(tmp_path / "stored" / "test.parquet")
    return tmp_path / "stored"


@pytest.fixture
def checkpoint(tiny_model, save_checkpoint):
    return save_checkpoint(tiny_model())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def run(checkpoint, stored, output, *more):
    common = ["--model_name_or_path", str(checkpoint), "--dataset", str(stored), "--output_dir", str(output)]
    return predict.main([*common, *more])


def test_parquet_is_source_and_sink(checkpoint, stored, tmp_path):
    assert run(checkpoint, stored, tmp_path / "out", "--keep_rates", "1.0", "0.5", "--parquet") == 0
    with (tmp_path / "out" / "predictions.csv").open() as file:
        written = {(row["file"], row["keep_rate"]): row for row in csv.DictReader(file)}
    assert len(written) == 6
    rows = load_dataset(str(tmp_path / "out" / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {(row["name"], row["keep_rate"]) for row in rows} == set(written)
    for row in rows:
        name = row["name"].replace("/", "_")
        stored = Image().decode_example({"path": str(tmp_path / "out" / f"{name}_mask_{row['keep_rate']}.png"),
                                          "bytes": None})  # fmt: skip
        assert np.array_equal(np.asarray(row["mask"]), np.asarray(stored))
        probability = np.asarray(row["probability"])
        assert probability.dtype == np.uint16
        assert np.array_equal(probability > 65535 / 2, np.asarray(row["mask"]) == 255)
        assert row["num_tokens"] == int(written[row["name"], row["keep_rate"]]["num_tokens"])


def test_a_stopped_run_goes_on_and_the_data_set_is_of_all(checkpoint, stored, tmp_path):
    out = tmp_path / "out"
    run(checkpoint, stored, out)
    table = (out / "predictions.csv").read_text().splitlines()
    (out / "predictions.csv").write_text("\n".join(table[:2]) + "\n")
    before = (out / "ward_0_mask.png").stat().st_mtime_ns
    run(checkpoint, stored, out, "--parquet")
    assert (out / "ward_0_mask.png").stat().st_mtime_ns == before
    rows = load_dataset(str(out / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["name"]) == ["ward/0", "ward/1", "ward/2"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--side", "train"], "--side is 'train': "),
        (["--images", "x.png"], "--images or --dataset"),
        (["--push_to_hub"], "--push_to_hub needs --hub_dataset_id"),
    ],
)
def test_bad_requests_are_refused(checkpoint, stored, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        run(checkpoint, stored, tmp_path / "out", *more)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_that_look_like_chains_of_urls_are_written(checkpoint, images, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("plain", "x::y"):
        images[0]["image"].save(tmp_path / "images" / f"{name}.png")
    flags = ["--model_name_or_path", checkpoint, "--images", tmp_path / "images", "--output_dir", tmp_path / "out"]
    assert predict.main([*map(str, flags), "--parquet"]) == 0
    rows = load_dataset("parquet", data_files=str(tmp_path / "out/dataset/data/*.parquet"))
    assert rows["train"]["name"][:] == ["plain.png", "x::y.png"]
    plain, chained = rows["train"]["mask"][:]
    assert plain.tobytes() == chained.tobytes()


def test_a_data_set_without_images_is_refused(checkpoint, tmp_path, capsys):
    DatasetDict({"test": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "texts")
    with pytest.raises(SystemExit):
        run(checkpoint, tmp_path / "texts", tmp_path / "out")
    assert "missing: image" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_number_of_images(checkpoint, tmp_path):
    """Peak memory of the whole process, for two and for ten images of 2048 pixels."""
    config = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({**config, "working_size": 256}))
    (tmp_path / "images").mkdir()
    pixels, _ = draw_image(2048, "N", np.random.SeedSequence(0))
    for index in range(10):
        (tmp_path / "images" / f"{index}.png").write_bytes(Image().encode_example(pixels)["bytes"])
    code = ("import resource, sys; from reg4pru import predict; predict.main(sys.argv[1:]); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")  # fmt: skip
    peaks = []
    for pattern in ("[01].png", "*.png"):
        command = [sys.executable, "-c", code, "--model_name_or_path", str(checkpoint), "--images",
                   str(tmp_path / "images" / pattern), "--output_dir", str(tmp_path / f"out{len(peaks)}")]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.1 * peaks[0], f"{peaks[0]} kB for two, {peaks[1]} kB for ten"
