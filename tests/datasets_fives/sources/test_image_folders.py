"""Your own images: which folder holds what, which files belong together, and what happens to the rest."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from datasets_fives import load_vessels
from datasets_fives.features import Record
from datasets_fives.sources.image_folders import list_folders

HRF_DIR = os.environ.get("HRF_DIR")
needs_hrf = pytest.mark.skipif(not HRF_DIR, reason="HRF_DIR is not set: no images of HRF to read")


def list_records(source, condition_pattern: str | None = None) -> tuple[Record, ...]:
    return list_folders(source, condition_pattern).records


def write(folder: Path, *names: str, kind: str = "mask", size: tuple[int, int] = (48, 32)) -> Path:
    """Write images, masks or fields of view of these names; each is another."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        rng = np.random.default_rng(list(name.split(".")[0].encode()))
        height, width = size[::-1]
        pixels = {
            "image": rng.integers(0, 255, (height, width, 3), np.uint8),
            "mask": rng.integers(0, 2, (height, width), np.uint8) * np.uint8(255),
            "field": np.full((height, width), 255, np.uint8),
        }[kind]
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("01_dr.JPG", "02_h.jpg", "03_g.jpg"), ("01_dr.tif", "02_h.tif", "03_g.tif")),
        (("Image_01L.jpg", "Image_01R.jpg"), ("Image_01L_1stHO.png", "Image_01R_1stHO.png")),
        (("21_training.tif", "22_training.tif"), ("21_manual1.gif", "22_manual1.gif")),
        (("im0001.ppm", "im0002.ppm"), ("im0001.ah.ppm", "im0002.ah.ppm")),
        (("eye 1.png", "eye 10.png"), ("eye 1 mask.png", "eye 10 mask.png")),
        (("Auge_ä.png",), ("AUGE_Ä.png",)),
    ],
)
def test_names_are_paired_by_what_they_share(images, masks, tmp_path):
    write(tmp_path / "images", *images, kind="image")
    write(tmp_path / "manual1", *reversed(masks))
    pairs = list_records(tmp_path)
    assert [(Path(p.image).name, Path(p.mask).name) for p in pairs] == list(
        zip(sorted(images), sorted(masks), strict=True)
    )
    assert [p.name for p in pairs] == [Path(name).stem for name in sorted(images)]


def test_files_without_counterpart_are_left_out_with_a_warning(tmp_path, caplog):
    write(tmp_path / "images", "1.png", "2.png", "3.png", kind="image")
    write(tmp_path / "masks", "1.png", "3.png", "4.png")
    with caplog.at_level(logging.WARNING):
        assert [p.name for p in list_records(tmp_path)] == ["1", "3"]
    assert "2 (image), 4 (mask)" in caplog.text


def test_ambiguous_pairs_are_refused(tmp_path):
    write(tmp_path / "images", "Image_01L.jpg", "Image_01R.jpg", kind="image")
    write(tmp_path / "masks", "Image_01L_1stHO.png", "Image_01L_2ndHO.png", "Image_01R_1stHO.png")
    with pytest.raises(ValueError, match=r"Image_01L: 2 masks \(Image_01L_1stHO, Image_01L_2ndHO\)"):
        list_records(tmp_path)
    chosen = {"images": tmp_path / "images", "masks": f"{tmp_path}/masks/*_1stHO.png"}
    assert [Path(p.mask).name for p in list_records(chosen)] == ["Image_01L_1stHO.png", "Image_01R_1stHO.png"]
    write(tmp_path / "other", "x.png", "y.png")
    with pytest.raises(ValueError, match=r"No image of .* has a mask: nothing is shared by .* Image_01L and x"):
        list_records({"images": tmp_path / "images", "masks": tmp_path / "other"})
    write(tmp_path / "twice", "1.png", "1.jpg", kind="image")
    with pytest.raises(ValueError, match=r"holds 1.jpg and 1.png: which one"):
        list_records({"images": tmp_path / "twice", "masks": tmp_path / "masks"})


def test_a_mask_belongs_to_the_longest_name_that_it_begins_with(tmp_path):
    write(tmp_path / "images", "1.png", "1_2.png", "3.png", kind="image")
    write(tmp_path / "masks", "1_mask.png", "1_2_mask.png", "3_mask.png")
    assert [Path(p.mask).name for p in list_records(tmp_path)] == ["1_mask.png", "1_2_mask.png", "3_mask.png"]


def test_a_single_pair_needs_names_that_belong_together(tmp_path):
    """All parts of a single name are those that all names share."""
    write(tmp_path / "images", "21_training.png", kind="image")
    write(tmp_path / "masks", "21_manual1.png")
    with pytest.raises(ValueError, match=r"single mask must be that of its image.*21_training and 21_manual1"):
        list_records(tmp_path)


def test_names_that_no_table_can_hold_are_refused(tmp_path):
    write(tmp_path / "star*", "a.png", kind="image")
    write(tmp_path / "masks", "a.png")
    assert [p.name for p in list_records({"images": tmp_path / "star*", "masks": tmp_path / "masks"})] == ["a"]
    os.rename(tmp_path / "masks" / "a.png", os.fsencode(tmp_path / "masks") + b"/M\xfcller.png")
    with pytest.raises(ValueError, match=r"a name that is not UTF-8"):
        list_records({"images": tmp_path / "star*", "masks": tmp_path / "masks"})


def test_a_folder_called_mask_is_the_field_of_view_beside_vessels(tmp_path):
    write(tmp_path / "images", "1_a.png", "2_b.png", kind="image")
    write(tmp_path / "mask", "1_a_mask.png", "2_b_mask.png")
    assert [p.field_of_view for p in list_records(tmp_path)] == [None, None]
    write(tmp_path / "1st_manual", "1_a.png", "2_b.png")
    pairs = list_records(tmp_path)
    assert [Path(p.field_of_view).parent.name for p in pairs] == ["mask", "mask"]
    assert [Path(p.mask).parent.name for p in pairs] == ["1st_manual"] * 2
    (tmp_path / "mask" / "2_b_mask.png").unlink()
    with pytest.raises(ValueError, match="2_b: no field of view"):
        list_records(tmp_path)
    write(tmp_path / "labels", "1_a.png")
    with pytest.raises(ValueError, match=r"not clear which sub-folders.*1st_manual, images, labels, mask"):
        list_records(tmp_path)


def test_folders_of_sides_are_the_official_split(tmp_path):
    for side, numbers in (("training", (21, 22, 23)), ("test", (1, 2))):
        write(tmp_path / side / "images", *(f"{n:02}_{side}.tif" for n in numbers), kind="image")
        write(tmp_path / side / "1st_manual", *(f"{n:02}_manual1.gif" for n in numbers))
        write(tmp_path / side / "mask", *(f"{n:02}_{side}_mask.gif" for n in numbers), kind="field")
    data = load_vessels(tmp_path, validation_fraction=0.3, cache_dir=tmp_path / "cache")
    assert data["test"]["name"][:] == ["test/01_test", "test/02_test"]
    assert len(data["train"]) == 2
    assert data["validation"].features == data["train"].features
    assert list(data["train"].features) == ["image", "mask", "name", "condition", "field_of_view"]
    assert data["train"].features["condition"].names == ["unknown"]
    assert np.asarray(data["test"][0]["field_of_view"]).min() == 1
    streamed = load_vessels(tmp_path, validation_fraction=0.3, cache_dir=tmp_path / "cache", streaming=True)
    assert [row["name"] for row in streamed["test"]] == data["test"]["name"][:]


def test_a_mapping_or_its_file_names_everything(tmp_path):
    names = [f"left{n}-{'xy'[n % 2]}.png" for n in range(10)]
    write(tmp_path / "a", *names, kind="image")
    write(tmp_path / "b", *names)
    split = {"train": [Path(name).stem for name in names[:6]], "test": [Path(name).stem for name in names[7:]]}
    mapping = {"images": "a", "masks": "b", "condition_pattern": "-(.)$", "split": split}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mapping))
    kwargs = {"validation_fraction": 0, "cache_dir": tmp_path / "cache"}
    data = load_vessels(str(tmp_path / "mine.yaml"), **kwargs)
    assert {key: rows["name"][:] for key, rows in data.items()} == split
    assert data["train"].features["condition"].names == ["x", "y"]
    absolute = {"images": tmp_path / "a", "masks": tmp_path / "b"}
    resplit = load_vessels(absolute, split="resplit", condition_pattern="([xy])", **kwargs)
    assert {split: len(rows) for split, rows in resplit.items()} == {"train": 7, "validation": 1, "test": 2}
    with pytest.raises(ValueError, match=r"condition_pattern '\(z\)' does not match 10 of 10 names, first left0-x"):
        load_vessels(absolute, condition_pattern="(z)", **kwargs)
    for pattern, message in (("(", "not a regular expression"), ("x", "one group"), ("(x)(y)", "one group")):
        with pytest.raises(ValueError, match=message):
            load_vessels(absolute, condition_pattern=pattern, **kwargs)
    with pytest.raises(ValueError, match=r'no "train" images.*split="resplit"'):
        load_vessels(absolute, **kwargs)
    for wrong, message in (({"images": "a"}, "missing masks"), ({**mapping, "mask": "b"}, "unknown mask"),
                           ({**mapping, "split": {"train": ["nobody"]}}, "do not exist: nobody"),
                           ({**mapping, "masks": "c"}, "is not a folder")):  # fmt: skip
        (tmp_path / "wrong.json").write_text(yaml.safe_dump(wrong))
        with pytest.raises(ValueError, match=message):
            load_vessels(tmp_path / "wrong.json", **kwargs)
    (tmp_path / "wrong.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a mapping, but holds list"):
        load_vessels(tmp_path / "wrong.json", **kwargs)


def test_files_that_cannot_be_a_pair_are_all_listed(tmp_path):
    write(tmp_path / "images", "1.png", "2.png", "3.png", kind="image")
    write(tmp_path / "masks", "1.png")
    write(tmp_path / "masks", "2.png", size=(32, 48))
    (tmp_path / "masks" / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2 problems.*2: image is 48x32 but mask is 32x48 \(.*3: mask cannot"):
        load_vessels(tmp_path, split={"train": ["1", "2", "3"]}, cache_dir=tmp_path / "cache")
    (tmp_path / "masks" / "3.png").unlink()
    (tmp_path / "masks" / "3.png").symlink_to("/nowhere.png")
    with pytest.raises(ValueError, match=r"3.png is not a file"):
        list_records(tmp_path)


def test_a_data_set_whose_masks_are_all_empty_is_refused(tmp_path):
    write(tmp_path / "images", "1.png", "2.png", kind="image")
    for name in ("1.png", "2.png"):
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(tmp_path / "masks" / name)
    with pytest.raises(ValueError, match="has no vessels: 2 masks with 3072 pixels of 0, none of 1"):
        load_vessels(tmp_path, split={"train": ["1", "2"]}, cache_dir=tmp_path / "cache")


def test_a_mapping_of_before_still_loads(tmp_path):
    """Its key for images was called photographs."""
    write(tmp_path / "a", "1.png", "2.png", kind="image")
    write(tmp_path / "b", "1.png", "2.png")
    (tmp_path / "old.yaml").write_text("photographs: a\nmasks: b\nsplit: {train: ['1'], test: ['2']}\n")
    (tmp_path / "new.yaml").write_text("images: a\nmasks: b\nsplit: {train: ['1'], test: ['2']}\n")
    old = list_records(tmp_path / "old.yaml")
    assert old == list_records(tmp_path / "new.yaml")
    assert [(record.name, record.split) for record in old] == [("1", "train"), ("2", "test")]
    with pytest.raises(ValueError, match="unknown photographs"):
        list_records({"images": tmp_path / "a", "photographs": tmp_path / "a", "masks": tmp_path / "b"})


def test_folders_of_patients_can_hold_equal_names(tmp_path, caplog):
    """Names are then those of folder and file, and may have dots; what is no image is told."""
    for index in range(3):
        write(tmp_path / "all" / f"1.2.{index}", "OD.jpg", "OS.jpg", kind="image")
        write(tmp_path / "all" / f"1.2.{index}", "OD_vessels.png")
    write(tmp_path / "flat", "1.2.840.100.png", "1.2.840.200.png", kind="image")
    write(tmp_path / "flat_masks", "1.2.840.100.png", "1.2.840.200.png")
    (tmp_path / "flat" / "notes.txt").write_text("x", encoding="utf-8")
    (tmp_path / "flat" / "more").mkdir()
    (tmp_path / "flat" / "._1.2.840.100.png").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        records = list_records({"images": f"{tmp_path}/all/*/OD.jpg", "masks": f"{tmp_path}/all/*/OD_vessels.png"})
        assert not caplog.text
        flat = list_records({"images": tmp_path / "flat", "masks": tmp_path / "flat_masks"})
    assert [record.name for record in records] == ["1.2.0/OD", "1.2.1/OD", "1.2.2/OD"]
    assert [Path(record.mask).parent.name for record in records] == ["1.2.0", "1.2.1", "1.2.2"]
    assert [record.name for record in flat] == ["1.2.840.100", "1.2.840.200"]
    assert "so left out: more/, notes.txt." in caplog.text


@pytest.mark.slow
@needs_hrf
def test_hrf_has_its_usual_split_and_keeps_its_aspect_ratio(tmp_path):
    data = load_vessels(HRF_DIR, working_size=252, cache_dir=tmp_path, validation_fraction=0.2)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 12, "validation": 3, "test": 27}
    assert data["train"].features["condition"].names == ["dr", "g", "h"]
    first_five = {f"{n:02}_{c}" for n in range(1, 6) for c in ("dr", "g", "h")}
    assert {*data["train"]["name"], *data["validation"]["name"]} == first_five
    for row in data["test"]:
        assert row["image"].size == row["mask"].size == row["field_of_view"].size == (252, 168)
        mask, field = np.asarray(row["mask"]), np.asarray(row["field_of_view"])
        assert 0.03 < mask.mean() < 0.15
        assert 0.6 < field.mean() < 0.95
        assert mask[field == 0].mean() < 0.01
        assert np.asarray(row["image"])[field == 1].mean() > 2 * np.asarray(row["image"])[field == 0].mean()
