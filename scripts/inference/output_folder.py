"""The folder of `reg4pru predict`: result images, a table whose rows say what is done, and how all was made."""

import csv
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..common.atomic_files import replace_table, replace_text
from ..common.keep_rates import rate_name
from .input_images import InputImage

KINDS = ("mask", "probability", "overlay", "stages")
COLUMNS = (
    "file", "keep_rate", "mask", "vessel_fraction", "skeleton_length", "skeleton_density", "num_tokens", "seconds",
)  # fmt: skip
SETTINGS = "predictions.json"
# What the keep rate of a row is called that has the checkpoint's own.
CHECKPOINT = "checkpoint"


def result_name(stem: str, kind: str, keep_rate: str) -> str:
    """
    The file of a result image. No two rows have the same names: a keep rate that was asked for is always part of it,
    whichever others were asked for in the same run.

    Args:
        stem (`str`): That of the image.
        kind (`str`): One of [`KINDS`].
        keep_rate (`str`): As in the table.
    """
    return f"{stem}_{kind}.png" if keep_rate == CHECKPOINT else f"{stem}_{kind}_{keep_rate}.png"


class Task(NamedTuple):
    """
    Args:
        image ([`InputImage`]): What is predicted.
        rate (`float`, *optional*): At which keep rate; by default those of the checkpoint.
    """

    image: InputImage
    rate: float | None

    @property
    def key(self) -> tuple[str, str]:
        """(file, keep rate), as in the table."""
        return self.image.name, CHECKPOINT if self.rate is None else rate_name(self.rate)

    def result(self, kind: str) -> str:
        """See [`result_name`]."""
        return result_name(self.image.stem, kind, self.key[1])


class ResultFolder:
    """
    The result images and the table of a run. Result images appear whole or not at all, and the row of an image, which
    says that it is done, comes last.

    Args:
        folder (`Path`): Where they go.
        name (`str`): Name of the table; every process has its own.
    """

    def __init__(self, folder: Path, name: str = "predictions.csv"):
        self.folder, self.table = folder, folder / name

    def rows(self) -> list[dict[str, str]]:
        """
        The rows of all tables that are complete.

        Raises:
            `ValueError`: if one of them is no table of this command.
        """
        return [row for table in self._tables() for row in _read_table(table)]

    def done(self) -> set[tuple[str, str]]:
        """(file, keep rate) of every row of every table."""
        return {(row["file"], row["keep_rate"]) for row in self.rows()}

    def begin(self, task: Task) -> None:
        """Say, before there are results of it, that an image is worked on at a keep rate."""
        name, keep_rate = task.key
        with (self.folder / f".{self.table.stem}.begun").open("a", encoding="utf-8") as file:
            file.write(f"{keep_rate}\t{name}\n")

    def save(self, name: str, pixels: np.ndarray) -> None:
        """Write a result image beside its place, and move it there."""
        unfinished = self.folder / f".{name}.{os.getpid()}.unfinished"
        Image.fromarray(pixels).save(unfinished, format="PNG")
        unfinished.replace(self.folder / name)

    def add_row(self, row: dict) -> None:
        """Add a row to the table, with the heading before the first."""
        with self.table.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)

    def refuse_foreign_results(self, tasks: list[Task], kinds: tuple[str, ...]) -> None:
        """
        Refuse to write where there are files of others; those of a run that was killed while writing them are our own.

        Raises:
            `ValueError`: if a file of the tasks is that of another image, or of no run of this command.
        """
        rows = self.rows()
        owners = {row["mask"]: row["file"] for row in rows if row.get("mask")}
        known = self._begun() | {(row["file"], row["keep_rate"]) for row in rows}
        for task in tasks:
            mask, ways = self.folder / task.result("mask"), "choose another --output_dir, or add --overwrite to"
            owner = owners.get(mask.name, task.image.name)
            if owner != task.image.name:
                raise ValueError(f"{mask} is that of {owner}, not of {task.image.name}: {ways} replace it.")
            foreign = [path for kind in kinds if (path := self.folder / task.result(kind)).exists()]
            if foreign and task.key not in known:
                raise ValueError(
                    f"{foreign[0]} exists and is not of a run of this command that predictions.csv tells of: {ways} "
                    "replace it."
                )

    def refuse_other_settings(
        self, tasks: list[Task], settings: dict, overwrite: bool, former_weights: str | None = None
    ) -> None:
        """
        Refuse to mix predictions that were made otherwise: one folder holds those of one model and one way.

        Args:
            tasks (`list[Task]`): What is to be predicted.
            settings (`dict`): What determines it; JSON can hold it.
            overwrite (`bool`): Whether the rows of the tasks are replaced; then only others count.
            former_weights (`str`, *optional*): That of the same weights in an earlier version.

        Raises:
            `ValueError`: naming what differs; also if `predictions.json` is that of somebody else.
        """
        noted, rows = self._noted(), self.rows()
        if noted is not None and former_weights is not None and noted.get("weights") == former_weights:
            noted = noted | {"weights": settings["weights"]}
        differences = ["predictions.json, which tells how, is missing"] if noted is None else []
        differences = differences or _differences(noted, settings)
        if not rows or not differences:
            return
        told = f"{self.folder} holds predictions made otherwise ({'; '.join(differences)})"
        if not overwrite:
            raise ValueError(f"{told}: choose another --output_dir, or add --overwrite to predict anew.")
        if kept := _rows_of_others(rows, tasks):
            more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
            raise ValueError(
                f"{told}, and --overwrite replaces only what this run predicts, not {kept[0]['file']} at keep rate "
                f"{kept[0]['keep_rate']}{more}: choose another --output_dir, or predict them in this run, too."
            )

    def prepare(self, tasks: list[Task], settings: dict, kinds: tuple[str, ...], overwrite: bool) -> None:
        """Drop the rows that `overwrite` replaces, and note the settings; the checks come before."""
        if overwrite:
            self._drop(tasks, kinds)
        if not self.rows():  # else they are noted, and the same
            replace_text(self.folder / SETTINGS, json.dumps(settings, indent=1) + "\n")

    def _drop(self, tasks: list[Task], kinds: tuple[str, ...]) -> None:
        """Take the rows of tasks from the tables; the rows of others stay."""
        masks = {row.get("mask") for row in self.rows()}
        for task in tasks:
            if task.result("mask") in masks:
                # What this run will not make anew would show another prediction than the files beside it.
                for kind in set(KINDS) - set(kinds):
                    (self.folder / task.result(kind)).unlink(missing_ok=True)
        for table in self._tables():
            rows = _read_table(table)
            kept = _rows_of_others(rows, tasks)
            if not kept:
                table.unlink()
            elif len(kept) < len(rows):
                replace_table(table, COLUMNS, kept)

    def _tables(self) -> list[Path]:
        """That of a run with one process, and those of processes; not, say, a copy under another name."""
        tables = sorted(self.folder.glob("predictions*.csv"))
        return [table for table in tables if re.fullmatch(r"predictions(-\d+)?", table.stem)]

    def _begun(self) -> set[tuple[str, str]]:
        """(file, keep rate) of what a run has begun, whether or not it was finished."""
        listed = [path.read_text(encoding="utf-8").splitlines() for path in self.folder.glob(".predictions*.begun")]
        begun = [line.partition("\t") for lines in listed for line in lines]
        return {(name, keep_rate) for keep_rate, _, name in begun}

    def _noted(self) -> dict | None:
        path = self.folder / SETTINGS
        if not path.exists():
            return None
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # no JSON, or no text at all
            noted = None
        if not isinstance(noted, dict) or "model_name_or_path" not in noted:
            raise ValueError(f"{path} exists and is not of this command: choose another --output_dir.")
        return noted


def _read_table(table: Path) -> list[dict[str, str]]:
    if not table.stat().st_size:  # of a run that was killed at its heading
        return []
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"file", "keep_rate", "seconds"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{table} is no table of this command: choose another --output_dir.")
        return [row for row in reader if row["seconds"]]


def _rows_of_others(rows: list[dict[str, str]], tasks: list[Task]) -> list[dict[str, str]]:
    """The rows that a run of these tasks leaves true: it predicts neither them nor a namesake with their files."""
    keys, masks = {task.key for task in tasks}, {task.result("mask") for task in tasks}
    return [row for row in rows if (row["file"], row["keep_rate"]) not in keys and row.get("mask") not in masks]


def _differences(noted: dict, settings: dict) -> list[str]:
    """What differs, by flag. The same model by another name or from another folder is no difference."""
    told = []
    if parts := [name for name in ("weights", "configuration") if noted.get(name) != settings[name]]:
        told.append(
            f"--model_name_or_path is {_model(settings)}, and was {_model(noted)}: other {' and '.join(parts)}"
        )
    for name, value in settings.items():
        if name not in ("model_name_or_path", "model_revision", "weights", "configuration"):
            now, then = ("not given" if one is None else one for one in (value, noted.get(name)))
            if now != then:
                told.append(f"--{name} is {now}, and was {then}")
    return told


def _model(settings: dict) -> str:
    revision = settings.get("model_revision")
    return settings["model_name_or_path"] + (f" at --model_revision {revision}" if revision else "")
