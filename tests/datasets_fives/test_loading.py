"""Sources, features, and the refusal of broken data."""

import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict
from PIL import Image

from datasets_fives import FEATURES, SAMPLE_SPLIT, load_fives
from datasets_fives.masks import binary_mask, resize_mask

FIVES_DIR = os.environ.get("FIVES_DIR")
needs_fives = pytest.mark.skipif(not FIVES_DIR, reason="FIVES_DIR is not set: no real images to read")


def write_pair(
    root: Path, name: str, seed: int = 0, mask: np.ndarray | None = None, size: int = 32, mode: str = "RGB"
):
    """Write one image and its mask, {0, 255} in RGB as in the published archive."""
    published, stem = name.split("/")
    rng = np.random.default_rng(seed)
    for kind in ("Original", "Ground truth"):
        (root / published / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(
        root / published / "Original" / f"{stem}.png"
    )
    if mask is None:
        mask = rng.integers(0, 2, (size, size), np.uint8) * np.uint8(255)
    Image.fromarray(mask).convert(mode).save(root / published / "Ground truth" / f"{stem}.png")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "fives"
    for seed, name in enumerate(["train/1_A", "train/2_D", "train/10_G", "train/11_N", "test/1_A", "test/2_N"]):
        write_pair(root, name, seed)
    return root


def load(source, tmp_path, **kwargs):
    return load_fives(source, cache_dir=tmp_path / "cache", **kwargs)


def test_a_folder_in_the_published_layout_becomes_a_dataset_dict(folder, tmp_path):
    (folder / "train" / "Original" / "Thumbs.db").write_bytes(b"x")
    (folder / "train" / "Ground truth" / "._1_A.png").write_bytes(b"x")
    (folder / "Quality Assessment.xlsx").write_bytes(b"x")
    data = load(folder, tmp_path, validation_fraction=0.25)
    assert {side: len(rows) for side, rows in data.items()} == {"train": 3, "validation": 1, "test": 2}
    assert data["train"].features == FEATURES
    assert data["test"]["name"][:] == ["test/1_A", "test/2_N"]
    row = data["test"][1]
    assert row["image"].mode == "RGB"
    assert row["mask"].mode == "L"
    assert FEATURES["condition"].int2str(row["condition"]) == "N"
    written = np.asarray(Image.open(folder / "test" / "Ground truth" / "2_N.png"))[..., 0]
    np.testing.assert_array_equal(np.asarray(row["mask"]), written // 255)


def test_masks_of_every_published_form_become_zeros_and_ones():
    truth = np.zeros((64, 64), np.uint8)
    truth[10:50, 20:30] = 1
    for mode in ("L", "RGB", "RGBA", "1", "P", "LA"):
        found = Image.fromarray(truth * np.uint8(255)).convert(mode)
        np.testing.assert_array_equal(binary_mask(found), truth, err_msg=mode)
    soft = truth * np.uint8(255)
    soft[10:50, 19], soft[10:50, 30] = 127, 128  # antialiased edges: 127 is background, 128 is vessel
    truth[10:50, 30] = 1
    np.testing.assert_array_equal(binary_mask(Image.fromarray(soft)), truth)
    np.testing.assert_array_equal(binary_mask(Image.fromarray(truth)), truth)


def test_masks_shrink_by_area():
    mask = np.zeros((4, 4), np.uint8)
    mask[0, :2] = mask[1, 0] = 1  # three of four pixels of the first quarter
    mask[2, 2] = 1  # one of four of the last
    np.testing.assert_array_equal(resize_mask(mask, 2), [[1, 0], [0, 0]])


def test_resized_images_are_cached(folder, tmp_path):
    data = load(folder, tmp_path, working_size=16)
    assert data["train"][0]["image"].size == data["train"][0]["mask"].size == (16, 16)
    assert set(np.unique(np.asarray(data["train"][0]["mask"]))) <= {0, 1}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    again = load(folder, tmp_path, working_size=16)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")} == before
    assert again["train"].to_dict() == data["train"].to_dict()
    write_pair(folder, "test/1_A", seed=99)
    changed = load(folder, tmp_path, working_size=16)
    assert changed["test"][0]["image"].tobytes() != data["test"][0]["image"].tobytes()


def test_only_test_images_have_no_official_split(tmp_path):
    for n in range(1, 11):
        write_pair(tmp_path / "fives", f"test/{n}_A", n)
    with pytest.raises(ValueError, match=r'no "train" images.*split="resplit".*mapping'):
        load(tmp_path / "fives", tmp_path)
    assert not (tmp_path / "cache").exists()  # refused before anything was decoded
    data = load(tmp_path / "fives", tmp_path, split="resplit")
    assert {side: len(rows) for side, rows in data.items()} == {"train": 7, "validation": 1, "test": 2}


def test_all_problems_of_a_folder_are_in_one_message(folder, tmp_path):
    (folder / "train" / "Ground truth" / "1_A.png").unlink()
    (folder / "test" / "Original" / "1_A.png").unlink()
    (folder / "train" / "Original" / "eye.png").write_bytes(b"x")
    mask = folder / "train" / "Ground truth" / "2_D.png"
    Image.open(mask).resize((8, 8)).save(mask)
    cut = folder / "train" / "Original" / "10_G.png"
    cut.write_bytes(cut.read_bytes()[:500])
    (folder / "train" / "Ground truth" / "11_N.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="6 problems") as caught:
        load(folder, tmp_path)
    message = str(caught.value)
    for part in (
        "train/1_A: image without mask",
        "test/1_A: mask without image",
        "eye.png: the name is not <number>_<A|D|G|N>.png",
        "train/2_D: image is 32x32 but mask is 8x8",
        "train/10_G: image cannot be read (truncated",
        "train/11_N: mask cannot be read",
    ):
        assert part in message
    assert not (tmp_path / "cache").exists()


def test_masks_that_are_no_masks_are_refused(folder, tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    write_pair(folder, "train/2_D", 1, mask=grey)
    image = np.random.default_rng(0).integers(0, 2, (32, 32, 3), np.uint8) * np.uint8(255)
    Image.fromarray(image).save(folder / "test" / "Ground truth" / "1_A.png")
    with pytest.raises(ValueError, match=r"2 problems.*train/2_D: mask is not binary.*test/1_A: mask is not binary"):
        load(folder, tmp_path)


def test_damage_inside_a_file_is_found(folder, tmp_path):
    path = folder / "train" / "Original" / "1_A.png"
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 40] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"1 problems.*train/1_A"):
        load(folder, tmp_path)


def test_an_empty_folder_and_unknown_sources_are_refused(tmp_path):
    (tmp_path / "fives" / "train" / "Original").mkdir(parents=True)
    with pytest.raises(ValueError, match="No images in"):
        load(tmp_path / "fives", tmp_path)
    (tmp_path / "nothing").mkdir()
    for source in (tmp_path / "nothing", "no such thing", "/no/such/folder"):
        with pytest.raises(ValueError, match=r'published layout.*save_to_disk.*Hub id.*"synthetic"'):
            load(source, tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"working_size": 0}, "working_size must be at least 16, got 0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), got 1.0"),
        ({"split": "random"}, "'random'"),
        ({"synthetic_counts": (0, 1, 1)}, r"synthetic_counts.*\(0, 1, 1\)"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load("synthetic", tmp_path, **kwargs)


@pytest.fixture
def stored(tmp_path):
    return load("synthetic", tmp_path, working_size=32, synthetic_counts=(6, 0, 3))


def save_parquet(data: DatasetDict, root: Path) -> Path:
    for side, rows in data.items():
        rows.to_parquet(root / "data" / f"{side}-00000-of-00001.parquet")
    return root


def test_saved_and_parquet_data_sets_load_like_their_origin(stored, tmp_path):
    stored.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    for source in (tmp_path / "saved", save_parquet(stored, tmp_path / "parquet")):
        data = load(source, tmp_path, validation_fraction=0)
        assert list(data) == ["train", "test"]
        for side in data:
            assert data[side].features == FEATURES
            assert data[side]["name"][:] == stored[side]["name"][:]
            for one, other in zip(data[side], stored[side], strict=True):
                assert one["image"].tobytes() == other["image"].tobytes()
                assert one["mask"].tobytes() == other["mask"].tobytes()
        assert load(source, tmp_path, working_size=16)["train"][0]["mask"].size == (16, 16)
    assert not list((tmp_path / "saved").rglob("cache*"))  # nothing was written into the user's folder


def test_streaming_gives_the_same_rows_as_loading(stored, tmp_path):
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    for source in (save_parquet(stored, tmp_path / "parquet"), "synthetic"):
        kwargs = {"split": "resplit", "working_size": 32, "synthetic_counts": (6, 0, 3)}
        streamed = load(source, tmp_path, streaming=True, **kwargs)
        loaded = load(source, tmp_path, **kwargs)
        assert isinstance(streamed, IterableDatasetDict)
        assert list(streamed) == list(loaded)
        for side in loaded:
            rows = list(streamed[side])
            assert [row["name"] for row in rows] == loaded[side]["name"][:]
            assert [row["mask"].tobytes() for row in rows] == [row["mask"].tobytes() for row in loaded[side]]
            assert rows[0]["image"].mode == "RGB"


def test_stored_data_sets_of_another_form_are_refused(tmp_path):
    DatasetDict({"train": Dataset.from_dict({"image": [1], "name": ["a"]})}).save_to_disk(tmp_path / "columns")
    with pytest.raises(ValueError, match="columns image, name; missing: image, mask"):
        load(tmp_path / "columns", tmp_path)
    DatasetDict({"trian": Dataset.from_dict({"name": ["a"]})}).save_to_disk(tmp_path / "sides")
    with pytest.raises(ValueError, match="splits trian; known are train, validation, test"):
        load(tmp_path / "sides", tmp_path)


@needs_fives
def test_the_sample_of_fives_loads_whole(tmp_path):
    data = load(FIVES_DIR, tmp_path, split="sample", working_size=64)
    assert {side: len(rows) for side, rows in data.items()} == {"train": 11, "test": 3}
    assert data["test"]["name"][:] == SAMPLE_SPLIT["test"]
    for rows in data.values():
        for row in rows:  # 28_A and 29_A have RGBA masks
            mask = np.asarray(row["mask"])
            assert set(np.unique(mask)) == {0, 1}, row["name"]
            assert 0.02 < mask.mean() < 0.15, row["name"]
    native = load(FIVES_DIR, tmp_path, split="sample")["train"]
    row = native[native["name"][:].index("test/28_A")]
    assert row["image"].size == row["mask"].size == (2048, 2048)
    truth = np.asarray(Image.open(Path(FIVES_DIR, "test", "Ground truth", "28_A.png")))[..., 0] > 127
    np.testing.assert_array_equal(np.asarray(row["mask"]), truth)


@needs_fives
def test_the_twins_of_fives_never_part(tmp_path):
    for seed in range(4):
        data = load(FIVES_DIR, tmp_path, split="resplit", seed=seed, working_size=64)
        sides = [side for side, rows in data.items() for name in rows["name"] if name in ("test/22_A", "test/23_A")]
        assert len(sides) == 2
        assert len(set(sides)) == 1
    with pytest.raises(ValueError, match=r"twins.*test/22_A \(train\) and test/23_A \(test\)"):
        load(FIVES_DIR, tmp_path, split={"train": ["test/22_A"], "test": ["test/23_A"]}, working_size=64)
