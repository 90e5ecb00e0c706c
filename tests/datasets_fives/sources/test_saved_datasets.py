"""Data sets that others have saved: FIVES on the Hub, other columns, label maps, streams."""

from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PIL

from datasets_fives import FEATURES, load_fives, load_vessels


def draw(count: int, seed: int = 0, values: tuple[int, ...] = (0, 255)) -> tuple[list, list]:
    """Images and masks; each is another."""
    rng = np.random.default_rng(seed)
    images = [PIL.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)) for _ in range(count)]
    masks = [PIL.fromarray(rng.choice(np.array(values, np.uint8), (32, 48))) for _ in range(count)]
    return images, masks


def save(root, kind: str, sides: dict[str, dict[str, list]], columns: tuple[str, str] = ("image", "mask")):
    """Save columns of images and texts, to disk or as Parquet."""
    data = DatasetDict(
        {side: Dataset.from_dict(rows).cast_column(columns[0], Image()).cast_column(columns[1], Image())
         for side, rows in sides.items()}
    )  # fmt: skip
    if kind == "disk":
        data.save_to_disk(root)
    else:
        (root / "data").mkdir(parents=True)
        for side, rows in data.items():
            rows.to_parquet(root / "data" / f"{side}-00000-of-00001.parquet")
    return root


def as_on_the_hub(tmp_path, kind):
    sides = {}
    for side, conditions in (("train", "AADDGGNN"), ("test", "ADGN")):
        images, masks = draw(len(conditions), len(side))
        masks = [mask.convert("RGB") for mask in masks]
        ids = [f"{side}_{n}_{condition}" for n, condition in enumerate(conditions, 1)]
        sides[side] = {"image": images, "mask": masks, "image_id": ids}
    return save(tmp_path / kind, kind, sides), sides


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_fives_as_others_put_it_on_the_hub_is_fives(kind, tmp_path):
    root, sides = as_on_the_hub(tmp_path, kind)
    data = load_fives(root, validation_fraction=0.5, cache_dir=tmp_path / "cache")
    assert {side: len(rows) for side, rows in data.items()} == {"train": 4, "validation": 4, "test": 4}
    assert data["train"].features == FEATURES
    assert data["test"]["name"][:] == ["test/1_A", "test/2_D", "test/3_G", "test/4_N"]
    assert data["test"]["condition"][:] == [0, 1, 2, 3]
    assert sorted(data["validation"]["condition"]) == [0, 1, 2, 3]
    for row, image, mask in zip(data["test"], sides["test"]["image"], sides["test"]["mask"], strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(image))
        np.testing.assert_array_equal(np.asarray(row["mask"]), np.asarray(mask)[..., 0] // 255)


def test_streaming_it_gives_the_same_rows(tmp_path):
    root, _ = as_on_the_hub(tmp_path, "parquet")
    kwargs = {"split": "resplit", "working_size": 24, "cache_dir": tmp_path / "cache"}
    loaded, streamed = load_fives(root, **kwargs), load_fives(root, streaming=True, **kwargs)
    assert list(loaded) == list(streamed)
    for side in loaded:
        assert streamed[side].features == FEATURES
        assert [row["name"] for row in streamed[side]] == loaded[side]["name"][:]
        for one, other in zip(streamed[side], loaded[side], strict=True):
            assert one["condition"] == other["condition"]
            assert one["image"].size == (24, 16)
            assert one["image"].tobytes() == other["image"].tobytes()
            assert one["mask"].tobytes() == other["mask"].tobytes()


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_what_earlier_versions_saved_still_loads(kind, tmp_path):
    """The columns of 9db4d4a, with grades and fingerprints; what `reg4pru prepare` wrote has the first four."""
    images, masks = draw(4, values=(0, 1))
    declared = Features(
        {
            "image": Image(mode="RGB"),
            "mask": Image(mode="L"),
            "name": Value("string"),
            "condition": ClassLabel(names=["A", "D", "G", "N"]),
            "field_of_view": Image(mode="L"),
            **{text: Value("string") for text in ("illumination", "blur", "contrast", "image_hash", "mask_hash")},
        }
    )
    grades = {grade: ["0", "1", "1", "0"] for grade in ("illumination", "blur", "contrast")}
    hashes = {"image_hash": list("abcd"), "mask_hash": list("abcd")}
    field = PIL.fromarray(np.ones((32, 48), np.uint8))
    names = [f"train/{n}_{condition}" for n, condition in enumerate("NGDA", 1)]
    table = {"image": images, "mask": masks, "name": names, "condition": [3, 2, 1, 0], "field_of_view": [field] * 4}
    for columns in (list(declared), list(declared)[:4]):
        saved = Dataset.from_dict(table | grades | hashes, declared).select_columns(columns)
        root = tmp_path / str(len(columns))
        if kind == "disk":
            DatasetDict({"train": saved}).save_to_disk(root)
        else:
            (root / "data").mkdir(parents=True)
            saved.to_parquet(root / "data" / "train-00000-of-00001.parquet")
        rows = load_fives(root, validation_fraction=0, cache_dir=tmp_path / "cache")["train"]
        assert list(rows.features) == columns[: -2 if len(columns) > 4 else None]
        assert rows.features == Features({column: declared[column] for column in rows.features})
        assert (rows["name"][:], rows["condition"][:]) == (names, [3, 2, 1, 0])
        for row, image, mask in zip(rows, images, masks, strict=True):
            assert row["image"].tobytes() == image.tobytes()
            assert row["mask"].tobytes() == mask.tobytes()
            assert len(columns) == 4 or row["blur"] == grades["blur"][names.index(row["name"])]


def test_a_stream_is_split_like_what_is_loaded_whatever_the_order_of_the_classes(tmp_path):
    images, masks = draw(12)
    rows = Dataset.from_dict(
        {"image": images, "mask": masks, "name": list("abcdefghijkl"), "condition": [0, 1] * 6},
        Features({"image": Image(), "mask": Image(), "name": Value("string"),
                  "condition": ClassLabel(names=["well", "sick", "other"])}),
    )  # fmt: skip
    rows.to_parquet(tmp_path / "train.parquet")
    kwargs = {"split": "resplit", "cache_dir": tmp_path / "cache"}
    loaded, streamed = load_vessels(tmp_path, **kwargs), load_vessels(tmp_path, streaming=True, **kwargs)
    assert loaded["train"].features == streamed["train"].features
    assert loaded["train"].features["condition"].names == ["well", "sick", "other"]
    for split in loaded:
        assert loaded[split]["name"][:] == [row["name"] for row in streamed[split]]


@pytest.mark.parametrize("image", ["image", "pixel_values"])
@pytest.mark.parametrize("mask", ["mask", "label", "annotation", "segmentation_mask"])
def test_columns_are_known_by_their_names(image, mask, tmp_path):
    images, masks = draw(4)
    sides = {"train": {image: images, mask: masks, "patient": [1, 2, 3, 4]}}
    data = load_vessels(save(tmp_path / "d", "disk", sides, (image, mask)), cache_dir=tmp_path / "cache")
    assert {side: len(rows) for side, rows in data.items()} == {"train": 3, "validation": 1}
    names = sorted([*data["train"]["name"], *data["validation"]["name"]])
    assert names == ["train/1", "train/2", "train/3", "train/4"]
    assert data["train"].features["condition"].names == ["unknown"]
    with pytest.raises(ValueError, match="it is not FIVES: use load_vessels"):
        load_fives(tmp_path / "d", cache_dir=tmp_path / "cache")


def test_names_conditions_fields_and_grades_are_taken_over(tmp_path):
    images, masks = draw(6)
    field = PIL.fromarray(np.full((32, 48), 255, np.uint8))
    sides = {
        side: {
            "image": images[part], "mask": masks[part], "id": [1, 2, 3], "condition": ["sick", "well", "sick"],
            "fov": [field] * 3, "illumination": ["1"] * 3, "blur": ["0", "1", "1"], "contrast": ["1"] * 3,
        }
        for side, part in (("train", slice(3)), ("test", slice(3, 6)))
    }  # fmt: skip
    data = load_vessels(save(tmp_path / "d", "disk", sides), validation_fraction=0, cache_dir=tmp_path / "cache")
    # The numbers begin anew on each side, so the side belongs to the name.
    assert data["test"]["name"][:] == ["test/1", "test/2", "test/3"]
    features = data["train"].features
    assert features["condition"].names == ["sick", "well"]
    assert data["train"]["condition"][:] == [0, 1, 0]
    assert data["train"]["blur"][:] == ["0", "1", "1"]
    assert list(features)[4:] == ["field_of_view", "illumination", "blur", "contrast"]
    assert np.asarray(data["train"][0]["field_of_view"]).min() == 1
    named = load_vessels(tmp_path / "d", validation_fraction=0, condition_pattern="(.)$", cache_dir=tmp_path / "cache")
    assert named["train"].features["condition"].names == ["1", "2", "3"]


def test_label_maps_keep_what_is_ignored_or_are_refused(tmp_path):
    images, masks = draw(3, values=(0, 1, 255))
    root = save(tmp_path / "ignore", "disk", {"train": {"image": images, "mask": masks}})
    kwargs = {"validation_fraction": 0, "cache_dir": tmp_path / "cache"}
    for row, mask in zip(load_vessels(root, **kwargs)["train"], masks, strict=True):
        np.testing.assert_array_equal(np.asarray(row["mask"]), np.asarray(mask))
    images, masks = draw(3, values=(0, 1, 2))
    root = save(tmp_path / "artery_vein", "disk", {"train": {"image": images, "mask": masks}})
    with pytest.raises(ValueError, match=r"3 problems.*train/1: mask is not binary \(its values are 0, 1, 2; "):
        load_vessels(root, **kwargs)
    with pytest.raises(ValueError, match=r"vessel_labels must be distinct whole numbers"):
        load_vessels(root, vessel_labels=[0], **kwargs)
    for labels, wanted in (([1, 2], (1, 2)), ([2], (2,))):
        found = load_vessels(root, vessel_labels=labels, **kwargs)["train"]
        np.testing.assert_array_equal(np.asarray(found[0]["mask"]), np.isin(np.asarray(masks[0]), wanted))
    with pytest.raises(ValueError, match=r"artery_vein has no vessels: 3 masks with 4608 pixels of 0, none of 1"):
        load_vessels(root, vessel_labels=[7], **kwargs)


def test_ambiguous_columns_are_refused(tmp_path):
    images, masks = draw(2)
    both = save(tmp_path / "both", "disk", {"train": {"image": images, "mask": masks, "annotation": masks}})
    with pytest.raises(ValueError, match="more than one column that could be the mask: mask, annotation; rename"):
        load_vessels(both, cache_dir=tmp_path / "cache")
    numbers = Dataset.from_dict({"image": images, "label": [0, 1]}).cast_column("image", Image())
    DatasetDict({"train": numbers}).save_to_disk(tmp_path / "classes")
    with pytest.raises(ValueError, match=r"columns image, label; missing: mask \(mask: a column of images"):
        load_vessels(tmp_path / "classes", cache_dir=tmp_path / "cache")
    nameless = save(tmp_path / "nameless", "parquet", {"train": {"image": images, "mask": masks}})
    with pytest.raises(ValueError, match="no column of names to be split by: load it without streaming"):
        load_vessels(nameless, streaming=True, cache_dir=tmp_path / "cache")
    assert len(load_vessels(nameless, cache_dir=tmp_path / "cache", validation_fraction=0)["train"]) == 2


def test_folders_called_like_patterns_are_opened_and_like_urls_refused(tmp_path):
    images, masks = draw(3)
    rows = Dataset.from_dict({"image": images, "mask": masks, "name": ["1_a", "2_a", "3_b"]})
    for folder in (tmp_path / "data [v2]*?", tmp_path / "a::b"):
        (folder / "data").mkdir(parents=True)
        with open(folder / "data" / "train-0.parquet", "wb") as file:
            rows.to_parquet(file)
    kwargs = {"validation_fraction": 0, "cache_dir": tmp_path / "cache"}
    assert len(load_vessels(tmp_path / "data [v2]*?", **kwargs)["train"]) == 3
    with pytest.raises(ValueError, match=r"a::b' cannot be opened: .*chain of URLs"):
        load_vessels(tmp_path / "a::b", **kwargs)


def test_parquet_that_others_wrote_holds_bytes(tmp_path):
    """Not written by `datasets`: no features in its metadata, shards in the folder itself."""

    def png(image):
        buffer = BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    images, masks = draw(3)
    table = {"image": list(map(png, images)), "mask": list(map(png, masks)), "name": ["7_a", "8_b", "9_a"]}
    pq.write_table(pa.table(table), tmp_path / "part-0.parquet")
    (tmp_path / "images").mkdir()  # those of its card, say
    data = load_vessels(tmp_path, validation_fraction=0, cache_dir=tmp_path / "cache")["train"]
    assert data["name"][:] == ["7_a", "8_b", "9_a"]
    assert data.features["condition"].names == ["a", "b"]
    assert data[2]["image"].tobytes() == images[2].tobytes()


def test_damaged_and_missing_images_are_listed_by_name(tmp_path):
    images, masks = draw(3)
    table = {
        "image": [{"bytes": b"no image", "path": None}, None, images[2]],
        "mask": masks,
        "name": ["a", "b", "c"],
    }
    rows = Dataset.from_dict(table, Features({"image": Image(), "mask": Image(), "name": Value("string")}))
    rows.save_to_disk(tmp_path / "d")  # a single data set: it trains
    with pytest.raises(ValueError, match=r"2 problems.*a: image cannot be read.*b: image is missing"):
        load_vessels(tmp_path / "d", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_splits_may_be_called_otherwise(kind, tmp_path):
    sides = {}
    for seed, (side, count) in enumerate({"training": 3, "val": 2, "test": 1}.items()):
        images, masks = draw(count, seed)
        sides[side] = {"image": images, "mask": masks, "name": [f"{side}{n}" for n in range(count)]}
    root = save(tmp_path / kind, kind, sides)
    data = load_vessels(root, cache_dir=tmp_path / "cache")
    assert {side: len(rows) for side, rows in data.items()} == {"train": 3, "validation": 2, "test": 1}
    assert data["validation"]["name"][:] == ["val0", "val1"]
    if kind == "parquet":
        streamed = load_vessels(root, streaming=True, cache_dir=tmp_path / "cache")
        assert [row["name"] for row in streamed["validation"]] == ["val0", "val1"]
    else:
        save(tmp_path / "two", "disk", {"val": sides["val"], "dev": sides["test"]})
        with pytest.raises(
            ValueError, match=r"has the splits val, dev; known are train, training, val, .* one for each"
        ):
            load_vessels(tmp_path / "two", cache_dir=tmp_path / "cache")
