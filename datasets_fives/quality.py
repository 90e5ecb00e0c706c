"""The grades of `Quality Assessment.xlsx`, which comes with the archive of FIVES."""

import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from .rows import QUALITY

logger = logging.getLogger(__name__)

# The sheet's headings for our names: illumination and colour distortion, blur, low contrast.
_HEADINGS = dict(zip(QUALITY, ("IC", "BLUR", "LC"), strict=True))
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
# The published table has 800 lines; a file that unpacks to more than this is something else.
_MOST_BYTES = 20_000_000


def read_quality(path: Path) -> dict[str, tuple[str, ...]]:
    """
    Read how the photographs of FIVES were graded.

    The table has a sheet for train and one for test, and in each the columns Disease (A, D, G, N), Number, IC, Blur
    and LC. The grades are passed on as they stand there (1 for adequate, 0 for not). The workbook is unpacked with
    the standard library: a spreadsheet package would be a dependency for one optional table.

    Args:
        path (`Path`): The workbook.

    Returns:
        `dict[str, tuple[str, ...]]`: By name (`"train/1_A"`) the grades of illumination, blur and contrast; empty,
        with a warning, if the workbook cannot be understood, for nothing depends on it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name: grades
                for sheet, lines in _sheets(archive)
                for name, grades in _grades(sheet.strip().lower(), lines)
            }
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, IndexError, ValueError, OSError) as error:
        logger.warning("%s cannot be understood (%s): there will be no groups by quality.", path.name, error)
        return {}


def _grades(sheet: str, lines: list[dict[str, str]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    if sheet not in ("train", "test"):
        return
    places: dict[str, str] = {}
    for line in lines:
        headings = {text.strip().upper(): column for column, text in line.items()}
        if {"DISEASE", "NUMBER", *_HEADINGS.values()} <= set(headings):
            places = headings
        elif places and line.get(places["NUMBER"]):
            number = int(float(line[places["NUMBER"]]))
            condition = line[places["DISEASE"]].strip()[0].upper()
            yield f"{sheet}/{number}_{condition}", tuple(_plain(line[places[h]]) for h in _HEADINGS.values())
    if not places:
        raise ValueError(f"the sheet {sheet} has no columns Disease, Number, {', '.join(_HEADINGS.values())}")


def _plain(grade: str) -> str:
    """Spreadsheets write 1 as "1" or "1.0"."""
    return f"{float(grade):g}"


def _sheets(archive: zipfile.ZipFile) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Name of each sheet, and its lines as {column letter: text}."""
    targets = {
        relation.get("Id"): relation.get("Target", "").removeprefix("/xl/")
        for relation in _parse(archive, "xl/_rels/workbook.xml.rels")
    }
    shared: list[str] = []
    if "xl/sharedStrings.xml" in archive.namelist():
        entries = _parse(archive, "xl/sharedStrings.xml").iter(f"{_MAIN}si")
        shared = ["".join(part.text or "" for part in entry.iter(f"{_MAIN}t")) for entry in entries]
    for sheet in _parse(archive, "xl/workbook.xml").iter(f"{_MAIN}sheet"):
        rows = _parse(archive, f"xl/{targets[sheet.get(_RELATION)]}").iter(f"{_MAIN}row")
        yield (
            sheet.get("name", ""),
            [{_column(cell): _text(cell, shared) for cell in row.iter(f"{_MAIN}c")} for row in rows],
        )


def _parse(archive: zipfile.ZipFile, member: str) -> ElementTree.Element:
    size = archive.getinfo(member).file_size
    if size > _MOST_BYTES:
        raise ValueError(f"{member} unpacks to {size} bytes")
    return ElementTree.fromstring(archive.read(member))


def _column(cell: ElementTree.Element) -> str:
    return re.sub(r"\d", "", cell.get("r", ""))


def _text(cell: ElementTree.Element, shared: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return "".join(part.text or "" for part in cell.iter(f"{_MAIN}t"))
    value = cell.find(f"{_MAIN}v")
    text = "" if value is None else value.text or ""
    return shared[int(text)] if cell.get("t") == "s" else text
