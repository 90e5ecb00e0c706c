"""From a source to rows by split: features, cache, streams, and the refusal of what cannot be loaded."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict, IterableDatasetDict
from PIL import Image

import datasets_fives
from datasets_fives import FEATURES, load_fives, load_vessels
from datasets_fives.features import Record
from datasets_fives.loading import checked_row, source_kind
from datasets_fives.training_samples import SeededSamples
from datasets_fives.transforms import TrainTransform


def load(source, tmp_path, **kwargs):
    return load_fives(source, cache_dir=tmp_path / "cache", **kwargs)


@pytest.fixture
def synthetic(tmp_path):
    return load("synthetic", tmp_path, working_size=32, synthetic_counts=(6, 0, 3))


def save_parquet(data: DatasetDict, root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    for split, rows in data.items():
        rows.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture
def sources(archive, synthetic, tmp_path) -> dict[str, str | Path]:
    """One source of every kind, by what it is called."""
    for kind, names in (("images", "Original"), ("masks", "Ground truth")):
        (tmp_path / "plain" / "train" / kind).mkdir(parents=True)
        for path in (archive / "train" / names).iterdir():
            (tmp_path / "plain" / "train" / kind / path.name).write_bytes(path.read_bytes())
    synthetic.save_to_disk(tmp_path / "saved")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"images": "plain/train/images", "masks": "plain/train/masks"}))
    return {
        "synthetic": "synthetic",
        "archive": archive,
        "folders": tmp_path / "plain",
        "folders, in a file": tmp_path / "mine.yaml",
        "saved": tmp_path / "saved",
        "saved, as Parquet": save_parquet(synthetic, tmp_path / "parquet"),
    }


def test_an_archive_becomes_a_dataset_dict(archive, tmp_path):
    (archive / "train" / "Original" / "Thumbs.db").write_bytes(b"x")
    (archive / "train" / "Ground truth" / "._1_A.png").write_bytes(b"x")
    (archive / "Quality Assessment.xlsx").write_bytes(b"x")
    data = load(archive, tmp_path, validation_fraction=0.25)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 3, "validation": 1, "test": 2}
    assert data["train"].features == FEATURES
    assert data["test"]["name"][:] == ["test/1_A", "test/2_N"]
    row = data["test"][1]
    assert row["image"].mode == "RGB"
    assert row["mask"].mode == "L"
    assert FEATURES["condition"].int2str(row["condition"]) == "N"
    written = np.asarray(Image.open(archive / "test" / "Ground truth" / "2_N.png"))[..., 0]
    np.testing.assert_array_equal(np.asarray(row["mask"]), written // 255)


def test_the_kind_of_a_source_is_recognised(sources, tmp_path):
    for name, source in sources.items():
        assert source_kind(source) == name.split(",")[0]
    assert source_kind({"images": "a", "masks": "b"}) == "folders"
    for other in ("user/images", tmp_path / "missing.yaml", "no such thing"):
        assert source_kind(other) == "hub"
    (tmp_path / "other" / "train" / "Original").mkdir(parents=True)
    assert source_kind(tmp_path / "other") == "archive"  # one that is empty is told so
    (tmp_path / "other" / "train" / "Original" / "eye.jpg").touch()
    assert source_kind(tmp_path / "other") == "folders"  # of other images, under the same names


def test_from_a_source_to_a_training_sample_seven_files_are_crossed(sources, tmp_path):
    """A reader who follows an image from its source to a sample opens seven files, whatever the source."""
    package, crossed = str(Path(datasets_fives.__file__).parent), set()

    def note(frame, event, argument):
        if frame.f_code.co_filename.startswith(package):
            crossed.add(frame.f_code.co_filename.removeprefix(package))

    for name, source in sources.items():
        crossed.clear()
        sys.settrace(note)
        try:
            split = "resplit" if name == "folders, in a file" else "official"
            rows = load_vessels(source, split=split, working_size=32, synthetic_counts=(3, 1, 1), cache_dir=tmp_path)
            sample = SeededSamples(rows["train"], TrainTransform(16), seed=0)[0, 0]
        finally:
            sys.settrace(None)
        assert sample["pixel_values"].shape == (3, 16, 16)
        assert len(crossed) == 7, (name, sorted(crossed))


def test_all_kinds_of_sources_give_the_same_row(sources, archive, tmp_path):
    wanted = load(archive, tmp_path, validation_fraction=0)["train"]
    for kind, source in (("folders", sources["folders"]), ("saved", tmp_path / "again")):
        if kind == "saved":
            DatasetDict({"train": wanted}).save_to_disk(source)
        found = load(source, tmp_path, validation_fraction=0)["train"]
        assert found.features == wanted.features
        order = sorted(range(len(wanted)), key=lambda i: found["name"][:].index(wanted["name"][i]))
        for one, other in zip(found, wanted.select(order), strict=True):
            for column in ("image", "mask"):
                np.testing.assert_array_equal(np.asarray(one[column]), np.asarray(other[column]))
            assert (one["name"], one["condition"]) == (other["name"], other["condition"])


def test_files_that_need_no_change_are_pointed_to(archive):
    image, mask = (str(archive / "train" / kind / "1_A.png") for kind in ("Original", "Ground truth"))
    record = Record("train/1_A", "train", "A", image, mask)
    row = checked_row(record)
    assert row["image"] == {"path": image, "bytes": None}
    assert row["mask"]["bytes"].startswith(b"\x89PNG")
    assert checked_row(record._replace(image=Path(image).read_bytes())) == row | {
        "image": {"path": None, "bytes": Path(image).read_bytes()}
    }
    smaller = checked_row(record, working_size=16)
    assert smaller["image"]["bytes"].startswith(b"\x89PNG")
    assert (smaller["image_hash"], smaller["mask_hash"]) == (row["image_hash"], row["mask_hash"])


def test_resized_images_are_cached(archive, tmp_path, write_pair):
    data = load(archive, tmp_path, working_size=16)
    assert data["train"][0]["image"].size == data["train"][0]["mask"].size == (16, 16)
    assert set(np.unique(np.asarray(data["train"][0]["mask"]))) <= {0, 1}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    again = load(archive, tmp_path, working_size=16)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")} == before
    assert again["train"].to_dict() == data["train"].to_dict()
    write_pair(archive, "test/1_A", seed=99)
    changed = load(archive, tmp_path, working_size=16)
    assert changed["test"][0]["image"].tobytes() != data["test"][0]["image"].tobytes()


def test_a_mask_replaced_by_one_of_the_same_size_and_time_is_read_anew(archive, tmp_path):
    before = load(archive, tmp_path, working_size=16)
    path = archive / "test" / "Ground truth" / "1_A.png"
    stat, content = path.stat(), path.read_bytes()
    Image.fromarray(np.eye(*np.asarray(Image.open(path)).shape[:2], dtype=np.uint8) * 255).save(path)
    assert path.stat().st_size <= stat.st_size
    path.write_bytes(path.read_bytes().ljust(len(content), b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = load(archive, tmp_path, working_size=16)
    assert after["test"][0]["mask"].tobytes() != before["test"][0]["mask"].tobytes()


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_read(archive, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    monkeypatch.setattr("datasets_fives.loading.checked_row", None)
    with pytest.raises(ValueError, match=r"cannot be written to .*file/cache .*set cache_dir or HF_DATASETS_CACHE"):
        load(archive, tmp_path / "file")


def test_a_cache_of_parquet_that_cannot_be_written_is_named(sources, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (parquet,) = (source for name, source in sources.items() if "parquet" in name.lower())
    with pytest.raises(ValueError, match=r"cannot be prepared in .*file/cache .*set cache_dir, HF_HOME"):
        load_vessels(parquet, split="resplit", cache_dir=tmp_path / "file" / "cache")


def test_no_kind_of_source_is_read_twice(sources, tmp_path, monkeypatch):
    def rows(source):
        return load_vessels(source, split="resplit", working_size=24, cache_dir=tmp_path / "cache")["train"].to_dict()

    first = {name: rows(source) for name, source in sources.items()}
    monkeypatch.setattr("datasets_fives.loading.checked_row", None)
    assert {name: rows(source) for name, source in sources.items()} == first


def test_test_images_alone_have_no_official_split(tmp_path, write_pair):
    for n in range(1, 11):
        write_pair(tmp_path / "fives", f"test/{n}_A", n)
    with pytest.raises(ValueError, match=r'no "train" images.*--split resplit .*split="resplit".*file of names'):
        load(tmp_path / "fives", tmp_path)
    assert not (tmp_path / "cache").exists()  # refused before anything was decoded
    data = load(tmp_path / "fives", tmp_path, split="resplit")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 7, "validation": 1, "test": 2}


def test_an_empty_folder_and_unknown_sources_are_refused(tmp_path):
    (tmp_path / "fives" / "train" / "Original").mkdir(parents=True)
    with pytest.raises(ValueError, match="No images in"):
        load(tmp_path / "fives", tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "text.txt").touch()
    for source in (tmp_path / "nothing", tmp_path / "text.txt", "no such thing", "/no/such/folder"):
        with pytest.raises(ValueError, match=r'published layout.*save_to_disk.*Hub id.*"synthetic"'):
            load(source, tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"working_size": 0}, "working_size must be at least 16, got 0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), got 1.0"),
        ({"split": "random"}, "'random'"),
        ({"synthetic_counts": (0, 1, 1)}, r"synthetic_counts.*\(0, 1, 1\)"),
        ({"synthetic_counts": (1, 1)}, r"synthetic_counts.*\(1, 1\)"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load("synthetic", tmp_path, **kwargs)
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        load("synthetic", tmp_path, size=32)


def test_saved_and_parquet_data_sets_load_like_their_origin(synthetic, tmp_path):
    synthetic.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "saved", save_parquet(synthetic, tmp_path / "parquet")):
        data = load(source, tmp_path, validation_fraction=0)
        assert list(data) == ["train", "test"]
        for split in data:
            assert data[split].features == FEATURES
            assert data[split]["name"][:] == synthetic[split]["name"][:]
            for one, other in zip(data[split], synthetic[split], strict=True):
                assert one["image"].tobytes() == other["image"].tobytes()
                assert one["mask"].tobytes() == other["mask"].tobytes()
        assert load(source, tmp_path, working_size=16)["train"][0]["mask"].size == (16, 16)
    assert not list((tmp_path / "saved").rglob("cache*"))  # nothing was written into the user's folder


def test_streaming_gives_the_same_rows_as_loading(synthetic, tmp_path):
    for source in (save_parquet(synthetic, tmp_path / "parquet"), "synthetic"):
        kwargs = {"split": "resplit", "working_size": 32, "synthetic_counts": (6, 0, 3)}
        streamed = load(source, tmp_path, streaming=True, **kwargs)
        loaded = load(source, tmp_path, **kwargs)
        assert isinstance(streamed, IterableDatasetDict)
        assert list(streamed) == list(loaded)
        for split in loaded:
            rows = list(streamed[split])
            assert [row["name"] for row in rows] == loaded[split]["name"][:]
            assert [row["mask"].tobytes() for row in rows] == [row["mask"].tobytes() for row in loaded[split]]
            assert rows[0]["image"].mode == "RGB"


def test_names_must_be_unique(tmp_path):
    image = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    rows = Dataset.from_dict({"image": [image] * 2, "mask": [image] * 2, "name": ["a", "a"]})
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match="Names must be unique, but these are not: train/a"):
        load_vessels(tmp_path / "d", cache_dir=tmp_path / "cache")
