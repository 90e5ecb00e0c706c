"""Files that nobody ever sees half of: written beside their place, then moved there."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file in the place of what stands there."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:  # the same bytes on every system
            file.write(text)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)  # where the disk was full


def replace_json(path: Path, content: dict, indent: int = 2) -> None:
    """Write JSON, which knows no nan: what is undefined becomes null."""
    content = json.loads(json.dumps(content), parse_constant=lambda constant: None)
    replace_text(path, json.dumps(content, indent=indent) + "\n")


def replace_table(path: Path, fields: Sequence[str], rows: Iterable[dict]) -> None:
    """
    Write rows as CSV.

    Raises:
        `ValueError`: for a row with a field that is not among `fields`.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())
