"""Data sets of K classes, from every kind of source to the same rows; their names, values, splits and errors."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import ClassLabel, DatasetDict, IterableDatasetDict, List
from PIL import Image

from datasets_fives import class_names, load_segmentation, load_vessels
from datasets_fives.training_samples import SeededSamples, cut_into_tiles
from datasets_fives.transforms import EvalTransform, TrainTransform

from ..street_scenes import CLASSES, COLORS, write_street


@pytest.fixture
def street(tmp_path):
    return lambda kind="grey", folder="street": write_street(tmp_path / folder, kind)


@pytest.fixture
def load(tmp_path):
    def call(source, **kwargs):
        return load_segmentation(source, cache_dir=tmp_path / "cache", **kwargs)

    return call


def content(splits) -> dict:
    """All rows by split: pixels, names, classes."""
    return {
        split: [
            (row["name"], np.asarray(row["image"]).tobytes(), np.asarray(row["mask"]).tobytes(), row["classes"])
            for row in rows
        ]
        for split, rows in splits.items()
    }


def test_a_folder_becomes_rows_of_class_indices(street, load):
    root = street()
    data = load(root, classes=CLASSES)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 6, "validation": 3, "test": 3}
    for rows in data.values():
        assert class_names(rows) == CLASSES
        assert rows.column_names == ["image", "mask", "name", "condition", "classes"]
        assert rows.features["classes"] == List(ClassLabel(names=CLASSES))
    assert data["validation"]["name"][:] == [f"validation/C3_00{n}" for n in range(3)]
    row = data["train"][0]
    assert (row["image"].mode, row["mask"].mode, row["classes"]) == ("RGB", "L", [0, 1, 2, 3, 4])
    assert data["train"][1]["classes"] == [0, 1, 2, 3]
    written = np.asarray(Image.open(root / "labels" / "train" / "A1_000.png"))
    np.testing.assert_array_equal(np.asarray(row["mask"]), written)
    assert set(np.unique(written)) == {0, 1, 2, 3, 4, 255}


def test_all_kinds_of_label_maps_give_the_same_rows(street, load):
    wanted = content(load(street(), classes=CLASSES))
    for kind, kwargs in {
        "palette": {"classes": CLASSES},
        "11": {"classes": CLASSES, "ignore_value": 11},
        "16 bits": {"classes": {name: 100 * n + 100 for n, name in enumerate(CLASSES)}, "ignore_value": 65535},
        "colours": {"classes": COLORS},
    }.items():
        assert content(load(street(kind, kind), **kwargs)) == wanted, kind


def test_names_come_from_a_file_beside_the_folders(street, load):
    root = street()
    wanted = content(load(root, classes=CLASSES))
    for name, text in {
        "classes.txt": "\ufeff" + "\n".join(CLASSES) + "\n",  # with a byte order mark
        "classes.json": json.dumps(CLASSES),
        "id2label.json": json.dumps(dict(enumerate(CLASSES))),
    }.items():
        (root / name).write_text(text, encoding="utf-8")
        found = load(root)
        assert content(found) == wanted
        assert class_names(found["test"]) == CLASSES
        assert content(load(street("palette", name), classes=root / name)) == wanted
        (root / name).unlink()
    (root / "classes.txt").write_text("a\nb\n", encoding="utf-8")
    (root / "classes.json").write_text("[c, d]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has classes.json and classes.txt: which names the classes\?"):
        load(root)
    assert content(load(root, classes=CLASSES)) == wanted  # which is asked for


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_names_folders_and_classes(street, load, tmp_path, suffix):
    wanted = content(load(street(), classes=CLASSES))
    street("11", "other")
    street("colours", "colourful")
    described = {
        "plain": {"images": "other/images", "labels": "other/labels", "classes": CLASSES, "ignore_value": 11},
        "by split": {
            "images": {split: f"other/images/{split}/*.png" for split in ("train", "val", "test")},
            "labels": {split: f"other/labels/{split}" for split in ("train", "val", "test")},
            "classes": dict(enumerate(CLASSES)),
            "ignore_value": 11,
        },
        "colours": {"images": "colourful/images", "labels": "colourful/labels", "classes": COLORS},
        "a file": {"images": "other/images", "labels": "other/labels", "classes": "names.txt", "ignore_value": 11},
    }
    (tmp_path / "names.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    for name, mapping in described.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_text(
            yaml.safe_dump(mapping, sort_keys=False) if suffix == "yaml" else json.dumps(mapping), encoding="utf-8"
        )
        assert content(load(path)) == wanted, name


def test_saved_data_sets_parquet_and_streams_give_the_same_rows(street, load, tmp_path):
    data = load(street("11"), classes=CLASSES, ignore_value=11)
    wanted = content(data)
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    for split, rows in data.items():
        rows.to_parquet(tmp_path / "parquet" / "data" / f"{split}-00000-of-00001.parquet")
    for source in (tmp_path / "saved", tmp_path / "parquet"):
        found = load(source)
        assert content(found) == wanted
        assert class_names(found["train"]) == CLASSES
    streamed = load(tmp_path / "parquet", streaming=True)
    assert isinstance(streamed, IterableDatasetDict)
    assert content(streamed) == wanted
    assert class_names(streamed["train"]) == CLASSES
    with pytest.raises(ValueError, match=r"train/A1_000: values without a class: 3 "):
        next(iter(load(tmp_path / "parquet", streaming=True, classes=CLASSES[:3])["train"]))
    smaller = load(street("grey", "again"), classes=CLASSES, working_size=16)
    assert content(load(tmp_path / "parquet", streaming=True, working_size=16)) == content(smaller)


def test_columns_without_names_take_those_of_a_file(street, load, tmp_path):
    data = load(street(), classes=CLASSES)
    others = {"image": "pixel_values", "mask": "label"}
    DatasetDict(
        {split: rows.remove_columns(["classes", "condition"]).rename_columns(others) for split, rows in data.items()}
    ).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "id2label.json").write_text(json.dumps(dict(enumerate(CLASSES))), encoding="utf-8")
    assert content(load(tmp_path / "saved")) == content(data)
    with pytest.raises(ValueError, match="mask is not binary"):
        load_vessels(tmp_path / "saved", cache_dir=tmp_path / "cache")


def test_two_classes_are_read_like_vessels(archive, tmp_path, load):
    vessels = load_vessels(archive, fingerprints=True, cache_dir=tmp_path / "cache")
    cracks = load(archive, classes=["wall", "crack"], fingerprints=True)
    for split, rows in vessels.items():
        assert class_names(rows) == ["background", "vessel"]
        assert class_names(cracks[split]) == ["wall", "crack"]
        assert cracks[split]["classes"][:] == [[0, 1]] * len(rows)
        assert cracks[split].remove_columns("classes").to_dict() == rows.to_dict()
    with pytest.raises(ValueError, match="vessel_labels make one class of several, but there are 5 classes"):
        load(archive, classes=CLASSES, vessel_labels=[1])
    for kwargs in ({"ignore_value": 11}, {"reduce_labels": True}):
        with pytest.raises(ValueError, match=r"for label maps, but .*fives names no classes: give classes"):
            load(archive, **kwargs)
        with pytest.raises(ValueError, match="label maps, which need names of classes"):
            load_vessels(archive, **kwargs)


def test_arteries_and_veins_are_made_one_class_whatever_names_they_have(tmp_path, load):
    root = write_street(tmp_path / "street")
    (root / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    kwargs = {"vessel_labels": [3, 4], "cache_dir": tmp_path / "cache"}
    wanted = load_vessels(root, **kwargs)
    for source, more in ((root, {}), (root, {"classes": ["ground", "thing"]})):
        found = load(source, vessel_labels=[3, 4], **more)
        for one, other in zip(found["train"], wanted["train"], strict=True):
            assert one["mask"].tobytes() == other["mask"].tobytes()
    assert class_names(found["train"]) == ["ground", "thing"]


def test_values_without_a_class_are_listed(street, load):
    root = street()
    with pytest.raises(
        ValueError, match=r"2 problems.*value 3 has no class.*in 12 label maps \(train/A1_000.* 2 more\)"
    ):
        load(root, classes=CLASSES[:3])
    # 16 pixels of `car`, less those that are ignored, in the first frame of each film.
    with pytest.raises(ValueError, match=r"value 4 has no class, and is not ignored: 64 pixels in 4 label maps"):
        load(root, classes=CLASSES[:4])


def test_all_that_is_wrong_with_pairs_is_in_one_error(street, load):
    root = street()
    Image.new("L", (5, 4)).save(root / "labels" / "train" / "A1_000.png")
    (root / "labels" / "test" / "D4_001.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="2 problems") as caught:
        load(root, classes=CLASSES)
    assert "train/A1_000: image is 32x24 but mask is 5x4" in str(caught.value)
    assert "test/D4_001: mask cannot be read" in str(caught.value)


def test_classes_that_never_occur_are_named(street, load, caplog, tmp_path):
    load(street(), classes=[*CLASSES, "boat", "plane"])
    assert "2 of 7 classes occur in no label map" in caplog.text
    assert "boat, plane" in caplog.text
    root = street(folder="flat")
    for path in (root / "labels").rglob("*.png"):
        Image.new("L", (32, 24), 2).save(path)
    with pytest.raises(ValueError, match=r"Nothing can be learned from .*: its 12 label maps have only 'road'"):
        load(root, classes=CLASSES)
    Image.new("L", (32, 24), 255).save(root / "labels" / "train" / "A1_000.png")
    Image.new("L", (32, 24), 1).save(root / "labels" / "train" / "A1_001.png")
    load(root, classes=CLASSES)
    assert "1 of 12 label maps are ignored as a whole: train/A1_000" in caplog.text


def test_published_splits_stay_and_drawn_ones_keep_films_together(street, load, tmp_path):
    root, films = street(), {"group_pattern": r"^(\w\d)_"}
    published = load(root, classes=CLASSES)
    assert content(load(root, classes=CLASSES, **films)) == content(published)
    drawn = load(root, classes=CLASSES, split="resplit", **films)
    found = {split: {name.split("/")[1][:2] for name in rows["name"]} for split, rows in drawn.items()}
    assert sum(map(len, found.values())) == 4
    assert all(len(rows) == 3 * len(found[split]) for split, rows in drawn.items())
    for place in ("images", "labels"):
        (root / place / "val").rename(tmp_path / f"{place} of val")
    apart = load(root, classes=CLASSES, **films)
    assert sorted(len(rows) for rows in apart.values()) == [3, 3, 3]
    assert {name[:8] for name in apart["validation"]["name"]} < {"train/A1", "train/B2"}


def test_label_maps_become_training_samples(street, load):
    rows = load(street(), classes=CLASSES)["train"]
    sample = SeededSamples(rows, TrainTransform(16, num_labels=5), seed=0)[0, 0]
    assert sample["pixel_values"].shape == (3, 16, 16)
    assert set(sample["labels"].unique().tolist()) <= {0, 1, 2, 3, 4, 255}
    tiles = cut_into_tiles(rows, 16)
    assert tiles.features == rows.features
    assert len(tiles) == 4 * len(rows)
    for tile in tiles:
        values = np.unique(np.asarray(tile["mask"])).tolist()
        assert tile["classes"] == [value for value in values if value < 255]
    batch = EvalTransform(num_labels=5)(rows[:2])
    np.testing.assert_array_equal(batch["labels"][1], np.asarray(rows[1]["mask"]))


def test_camvid(load):
    if not os.environ.get("CAMVID_DIR"):
        pytest.skip("CAMVID_DIR, the folder of CamVid with images/ and labels/, is not set")
    source = Path(os.environ["CAMVID_DIR"])
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    data = load(source, classes=names, ignore_value=11, group_pattern=r"^(0001TP|0006R0|0016E5|Seq05VD)_")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 367, "validation": 101, "test": 233}
    assert class_names(data["train"]) == names
    row = data["test"][0]
    written = np.asarray(Image.open(source / "labels" / "test" / f"{row['name'].removeprefix('test/')}.png"))
    np.testing.assert_array_equal(np.asarray(row["mask"]), np.where(written == 11, 255, written))
    with pytest.raises(ValueError, match=r"value 11 has no class, and is not ignored: .* in 700 label maps"):
        load(source, classes=names)
