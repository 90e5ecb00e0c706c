"""The archive of FIVES: broken files are listed before anything is decoded, and grades are read."""

import logging
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from openpyxl import Workbook
from PIL import Image

from datasets_fives import SAMPLE_SPLIT, load_fives
from datasets_fives.sources.fives_archive import list_archive, read_quality

FIVES_DIR = os.environ.get("FIVES_DIR")
needs_fives = pytest.mark.skipif(not FIVES_DIR, reason="FIVES_DIR is not set: no real images to read")
HEADINGS = ("Disease", "Number", "IC", "Blur", "LC")


def load(source, tmp_path, **kwargs):
    return load_fives(source, cache_dir=tmp_path / "cache", **kwargs)


def test_records_are_sorted_by_split_and_number(archive):
    listing = list_archive(archive)
    assert [record.name for record in listing.records] == [
        "train/1_A", "train/2_D", "train/10_G", "train/11_N", "test/1_A", "test/2_N"
    ]  # fmt: skip
    record = listing.records[2]
    assert (record.split, record.condition, record.quality, record.field_of_view) == ("train", "G", None, None)
    files = [Path(record.image), Path(record.mask)]
    assert files == [archive / "train" / kind / "10_G.png" for kind in ("Original", "Ground truth")]
    stats = [file.stat() for file in files]
    assert record.stamp == tuple(value for at in stats for value in (at.st_size, at.st_mtime_ns, at.st_ctime_ns))


def test_all_problems_of_an_archive_are_in_one_error(archive, tmp_path):
    (archive / "train" / "Ground truth" / "1_A.png").unlink()
    (archive / "test" / "Original" / "1_A.png").unlink()
    (archive / "train" / "Original" / "eye.png").write_bytes(b"x")
    mask = archive / "train" / "Ground truth" / "2_D.png"
    Image.open(mask).resize((8, 8)).save(mask)
    cut = archive / "train" / "Original" / "10_G.png"
    cut.write_bytes(cut.read_bytes()[:500])
    (archive / "train" / "Ground truth" / "11_N.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="6 problems") as caught:
        load(archive, tmp_path)
    message = str(caught.value)
    for part in (
        "train/1_A: image without mask",
        "test/1_A: mask without image",
        "train/Original/eye.png: the name is not <number>_<A|D|G|N>.png",
        "train/2_D: image is 32x32 but mask is 8x8",
        "train/10_G: image cannot be read (truncated",
        "train/11_N: mask cannot be read",
    ):
        assert part in message
    assert not (tmp_path / "cache").exists()


def test_masks_that_are_not_binary_are_refused(archive, tmp_path, write_pair):
    grey = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    write_pair(archive, "train/2_D", 1, mask=grey)
    image = np.random.default_rng(0).integers(0, 2, (32, 32, 3), np.uint8) * np.uint8(255)
    Image.fromarray(image).save(archive / "test" / "Ground truth" / "1_A.png")
    with pytest.raises(ValueError, match=r"2 problems.*train/2_D: mask is not binary.*test/1_A: mask is not binary"):
        load(archive, tmp_path)


def test_damage_inside_a_file_is_found(archive, tmp_path):
    path = archive / "train" / "Original" / "1_A.png"
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 40] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"1 problem .*train/1_A"):
        load(archive, tmp_path)


def write_workbook(path: Path, sheets: dict[str, list[tuple]], headings: tuple[str, ...] = HEADINGS) -> None:
    workbook = Workbook()
    workbook.remove(workbook.active)
    for name, lines in sheets.items():
        sheet = workbook.create_sheet(name)
        for line in (headings, *lines):
            sheet.append(line)
    workbook.save(path)


def test_grades_are_read_by_name(tmp_path):
    path = tmp_path / "q.xlsx"
    write_workbook(
        path, {"Train": [("A", 1, 1, 0, 1), ("N", 12, 0, 1.0, 1)], "Test": [("Glaucoma", "3", 1, 1, 0)], "Notes": []}
    )
    grades = {"train/1_A": ("1", "0", "1"), "train/12_N": ("0", "1", "1"), "test/3_G": ("1", "1", "0")}
    assert read_quality(path) == grades
    lines = [HEADINGS, ("A", 1, 1, 0, 1), (None,) * 5, ("N", 12, 0, 1.0, 1)]
    write_workbook(path, {"train ": lines}, headings=("The grades of FIVES",))
    assert read_quality(path) == {name: grades[name] for name in ("train/1_A", "train/12_N")}


def test_damaged_workbooks_are_ignored_with_a_warning(tmp_path, caplog):
    write_workbook(tmp_path / "headings.xlsx", {"Train": [("A", 1, 1, 0, 1)]}, ("a", "b", "c", "d", "e"))
    write_workbook(tmp_path / "values.xlsx", {"Train": [("A", 1, "good", 0, 1)]})
    write_workbook(tmp_path / "bomb.xlsx", {"Train": [("A", 1, 1, 0, 1)]})
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "a", zipfile.ZIP_DEFLATED) as workbook:
        workbook.writestr("xl/sharedStrings.xml", b" " * 30_000_000)
    write_workbook(tmp_path / "cut.xlsx", {"Train": [("A", 1, 1, 0, 1)]})
    (tmp_path / "cut.xlsx").write_bytes((tmp_path / "cut.xlsx").read_bytes()[:2000])
    (tmp_path / "text.xlsx").write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "empty.xlsx", "w"):
        pass
    for name in ("headings", "values", "cut", "text", "empty", "bomb"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read_quality(tmp_path / f"{name}.xlsx") == {}
        assert f"{name}.xlsx cannot be read" in caplog.text
    assert "unpacks to 300" in caplog.text


def test_without_openpyxl_there_are_no_grades_and_a_warning_names_the_extra(tmp_path, monkeypatch, caplog):
    write_workbook(tmp_path / "q.xlsx", {"Train": [("A", 1, 1, 0, 1)]})
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with caplog.at_level(logging.WARNING):
        assert read_quality(tmp_path / "q.xlsx") == {}
    assert 'pip install "reg4pru[quality]"' in caplog.text


def test_graded_images_have_three_more_columns(archive, tmp_path, caplog):
    train = [("A", 1, 1, 0, 1), ("D", 2, 0, 1, 1), ("G", 10, 1, 1, 1), ("N", 11, 0, 0, 0)]
    write_workbook(
        archive / "Quality Assessment.xlsx", {"Train": train, "Test": [("A", 1, 1, 1, 1), ("N", 2, 1, 1, 1)]}
    )
    data = load(archive, tmp_path, validation_fraction=0)
    assert list(data["train"].features) == ["image", "mask", "name", "condition", "illumination", "blur", "contrast"]
    assert [data["train"][grade][:] for grade in ("illumination", "blur", "contrast")] == [
        ["1", "0", "1", "0"], ["0", "1", "1", "0"], ["1", "1", "1", "0"]
    ]  # fmt: skip
    write_workbook(archive / "Quality Assessment.xlsx", {"Train": train, "Test": [("N", 2, 1, 1, 1)]})
    with caplog.at_level(logging.WARNING):
        data = load(archive, tmp_path, validation_fraction=0)
    assert "does not grade all images, and is ignored: test/1_A" in caplog.text
    assert list(data["train"].features) == ["image", "mask", "name", "condition"]


@needs_fives
def test_the_sample_of_fives_loads_whole(tmp_path):
    data = load(FIVES_DIR, tmp_path, split="sample", working_size=64)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 11, "test": 3}
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
def test_the_duplicates_of_fives_stay_together(tmp_path):
    pair = ("test/22_A", "test/23_A")
    for seed in range(4):
        data = load(FIVES_DIR, tmp_path, split="resplit", seed=seed, working_size=64)
        splits = [split for split, rows in data.items() for name in rows["name"] if name in pair]
        assert len(splits) == 2
        assert len(set(splits)) == 1
    with pytest.raises(ValueError, match=r"duplicates.*test/22_A \(train\) and test/23_A \(test\)"):
        load(FIVES_DIR, tmp_path, split={"train": ["test/22_A"], "test": ["test/23_A"]}, working_size=64)
