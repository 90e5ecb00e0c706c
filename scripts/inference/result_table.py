"""The table of `reg4pru predict`, whose rows say what is done: a row that is not whole says nothing."""

import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..common.atomic_files import replace_table

_PLACE, _COST = ("file", "keep_rate", "mask"), ("num_tokens", "seconds", "fingerprint")
# Of vessels, and the columns of a table of them.
_VESSELS = ("vessel_fraction", "skeleton_length", "skeleton_density")
COLUMNS = (*_PLACE, *_VESSELS, *_COST)
# Of other classes: how a column begins that counts the pixels of one, before its name.
PIXELS = "pixels_"
# What the keep rate of a row is called that has the checkpoint's own.
CHECKPOINT = "checkpoint"
# The fingerprint of an image in rows that were written before there was one.
UNKNOWN = "unknown"
_NUMBER = r"\d+(\.\d+)?(e-?\d+)?"
_FORMATS = {
    "file": r"(?s).+",
    "keep_rate": rf"{CHECKPOINT}|{_NUMBER}",
    "vessel_fraction": _NUMBER,
    "skeleton_length": r"\d+",
    "skeleton_density": _NUMBER,
    "num_tokens": r"\d+",
    "seconds": _NUMBER,
    "fingerprint": rf"[0-9a-f]{{32}}|{UNKNOWN}",
}


def read_table(table: Path) -> tuple[list[dict[str, str]], bool]:
    """
    Args:
        table (`Path`): A table, or what a run left of it that was killed while it wrote.

    Returns:
        `tuple[list[dict[str, str]], bool]`: the rows that are whole and whose mask is there, and whether the file
        holds these only, under the present heading.

    Raises:
        `ValueError`: If it was not written by this command.
    """
    text = table.read_bytes().decode("utf-8", errors="replace")
    if _is_begun_heading(text):  # of a run that was killed there
        return [], False
    reader = csv.DictReader(io.StringIO(text, newline=""))
    heading = tuple(reader.fieldnames or ())
    if not {"file", "keep_rate", "seconds"} <= set(heading):
        raise ValueError(f"{table} was not written by this command: choose another --output_dir.")
    rows, count = [], 0
    try:
        for row in reader:
            count += 1
            if _is_whole(row, table.parent):
                rows.append({"mask": "", "fingerprint": UNKNOWN} | row)
    except csv.Error:  # a quotation mark without its fellow
        count += 1
    return rows, heading == _columns(heading) and len(rows) == count and text.endswith("\n")


def write_table(table: Path, rows: list[dict[str, str]]) -> None:
    """Replace a table; without rows there is none."""
    if rows:
        columns = _columns(rows[0])
        replace_table(table, columns, [{name: row.get(name, "") for name in columns} for row in rows])
    else:
        table.unlink(missing_ok=True)


def append_row(table: Path, row: dict) -> None:
    """Add a row, with the heading before the first; what cannot be written as a whole is taken back."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _columns(row))
    with table.open("ab") as file:
        end = file.tell()
        if not end:
            writer.writeheader()
        writer.writerow(row)
        try:
            file.write(text.getvalue().encode("utf-8"))
            file.flush()
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise


def _columns(names: Iterable[str]) -> tuple[str, ...]:
    """All columns of a table that has some of them: pixels by class, or what is measured of vessels."""
    return (*_PLACE, *([name for name in names if name.startswith(PIXELS)] or _VESSELS), *_COST)


def _is_begun_heading(text: str) -> bool:
    place = ",".join(_PLACE) + ","
    of_classes = text.removeprefix(place).lstrip('"')[: len(PIXELS)]
    is_of_classes = text.startswith(place) and "\n" not in text and PIXELS.startswith(of_classes)
    return is_of_classes or ",".join(COLUMNS).startswith(text)


def _is_whole(row: dict, folder: Path) -> bool:
    if None in row or None in row.values():  # more or fewer fields than the heading
        return False
    if not all(re.fullmatch(_FORMATS[name], value) for name, value in row.items() if name in _FORMATS):
        return False
    if not all(re.fullmatch(r"\d+", value) for name, value in row.items() if name.startswith(PIXELS)):
        return False
    mask = row.get("mask")
    return not mask or (Path(mask).name == mask and "_mask" in mask and (folder / mask).is_file())
