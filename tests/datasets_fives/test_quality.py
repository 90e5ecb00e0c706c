"""The grades in the workbook of the archive."""

import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets_fives import load_fives
from datasets_fives.sources.fives_archive import read_quality

HEADINGS = ("Disease", "Number", "IC", "Blur", "LC")


def write_workbook(path: Path, sheets: dict[str, list[tuple]], headings: tuple[str, ...] = HEADINGS) -> None:
    """A workbook as spreadsheets write it: shared strings, numbers, relations."""
    texts: list[str] = []

    def cell(column: int, row: int, value) -> str:
        place = f"{'ABCDEFG'[column]}{row}"
        if not isinstance(value, str):
            return f'<c r="{place}"><v>{value}</v></c>'
        texts.append(value)
        return f'<c r="{place}" t="s"><v>{len(texts) - 1}</v></c>'

    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    with zipfile.ZipFile(path, "w") as archive:
        entries, relations = "", ""
        for index, (name, lines) in enumerate(sheets.items(), 1):
            entries += f'<sheet name="{name}" sheetId="{index}" r:id="rId{index}"/>'
            relations += f'<Relationship Id="rId{index}" Type="worksheet" Target="worksheets/sheet{index}.xml"/>'
            rows = "".join(
                f'<row r="{r}">{"".join(cell(c, r, value) for c, value in enumerate(line))}</row>'
                for r, line in enumerate([headings, *lines], 1)
            )
            archive.writestr(
                f"xl/worksheets/sheet{index}.xml", f"<worksheet {main}><sheetData>{rows}</sheetData></worksheet>"
            )
        archive.writestr(
            "xl/workbook.xml", f'<workbook {main} xmlns:r="{office}"><sheets>{entries}</sheets></workbook>'
        )
        package = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'
        archive.writestr("xl/_rels/workbook.xml.rels", f"<Relationships {package}>{relations}</Relationships>")
        strings = "".join(f"<si><t>{text}</t></si>" for text in texts)
        archive.writestr("xl/sharedStrings.xml", f"<sst {main}>{strings}</sst>")


def test_grades_are_read_by_name(tmp_path):
    path = tmp_path / "q.xlsx"
    write_workbook(
        path, {"Train": [("A", 1, 1, 0, 1), ("N", 12, 0, 1.0, 1)], "Test": [("G", "3", 1, 1, 0)], "Notes": []}
    )
    assert read_quality(path) == {
        "train/1_A": ("1", "0", "1"), "train/12_N": ("0", "1", "1"), "test/3_G": ("1", "1", "0")
    }  # fmt: skip


def test_workbooks_that_are_not_understood_are_left_out_aloud(tmp_path, caplog):
    write_workbook(tmp_path / "headings.xlsx", {"Train": [("A", 1, 1, 0, 1)]}, ("a", "b", "c", "d", "e"))
    write_workbook(tmp_path / "values.xlsx", {"Train": [("A", 1, "good", 0, 1)]})
    (tmp_path / "text.xlsx").write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/_rels/workbook.xml.rels", b" " * 30_000_000)
    with zipfile.ZipFile(tmp_path / "empty.xlsx", "w"):
        pass
    for name in ("headings", "values", "text", "bomb", "empty"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read_quality(tmp_path / f"{name}.xlsx") == {}
        assert f"{name}.xlsx cannot be understood" in caplog.text


@pytest.fixture
def archive(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train/1_A", "train/2_D", "test/1_A"):
        side, stem = name.split("/")
        for kind in ("Original", "Ground truth"):
            (tmp_path / "fives" / side / kind).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 2, (16, 16), np.uint8) * np.uint8(255)
            Image.fromarray(pixels).convert("RGB").save(tmp_path / "fives" / side / kind / f"{stem}.png")
    return tmp_path / "fives"


def test_graded_images_have_three_more_columns(archive, tmp_path, caplog):
    graded = {"Train": [("A", 1, 1, 0, 1), ("D", 2, 0, 1, 1)], "Test": [("A", 1, 1, 1, 1)]}
    write_workbook(archive / "Quality Assessment.xlsx", graded)
    data = load_fives(archive, validation_fraction=0, cache_dir=tmp_path / "cache")
    assert list(data["train"].features) == ["image", "mask", "name", "condition", "illumination", "blur", "contrast"]
    assert [data["train"][grade][:] for grade in ("illumination", "blur", "contrast")] == [
        ["1", "0"], ["0", "1"], ["1", "1"]
    ]  # fmt: skip
    write_workbook(archive / "Quality Assessment.xlsx", {"Train": graded["Train"], "Test": []})
    with caplog.at_level(logging.WARNING):
        data = load_fives(archive, validation_fraction=0, cache_dir=tmp_path / "cache")
    assert "grades not all images, and is left out: test/1_A" in caplog.text
    assert list(data["train"].features) == ["image", "mask", "name", "condition"]
