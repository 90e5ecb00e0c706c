"""The folder of `reg4pru predict`: result images, a table whose rows say what is done, and how all was made."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from datasets_fives.features import list_some
from datasets_fives.images import fingerprint

from ..common.atomic_files import replace_text
from ..common.keep_rates import rate_name
from .input_images import SETTINGS, InputImage
from .result_table import CHECKPOINT, UNKNOWN, append_row, read_table, write_table

logger = logging.getLogger(__name__)
KINDS = ("mask", "probability", "overlay", "stages")
# What file systems take, in bytes.
LONGEST_NAME = 255


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


def result_of(row: dict[str, str], kind: str) -> str:
    """The file of a result image of a row, whose name begins as that of its mask."""
    stem, end = _split_mask(row["mask"])
    return f"{stem}_{kind}{end}.png"


def _split_mask(name: str) -> tuple[str, str]:
    stem, _, end = name.removesuffix(".png").rpartition("_mask")
    return stem, end


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

    def name_problem(self) -> str | None:
        """Why nothing can be written under the name of the image, if so."""
        try:
            self.image.name.encode("utf-8")
        except UnicodeEncodeError:
            return "its name is not UTF-8, or not in this locale: rename it, or set PYTHONUTF8=1"
        longest = max(len(self.result(kind).encode("utf-8")) for kind in KINDS)
        if longest > LONGEST_NAME:
            return f"the names of its results would have {longest} bytes, and may have {LONGEST_NAME}: shorten it"
        return None


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
        self._fingerprints: dict[str, str | None] = {}  # of the images, by name

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs from the folder: one that comes while another writes waits until that one has ended."""
        lock = FileLock(self.folder / ".predictions.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("Another run is writing to %s: waiting until it ends.", self.folder)
            lock.acquire()
        try:
            self._fingerprints.clear()
            yield
        finally:
            lock.release()

    def unless_busy(self, check: Callable[..., None], *arguments: object) -> None:
        """Check the folder if no other run writes there, and let none do so meanwhile: what is read would not last."""
        lock = FileLock(self.folder / ".predictions.lock")
        if not Path(lock.lock_file).exists():  # nor is it made: nothing is written before all is checked
            check(*arguments)
            return
        with suppress(Timeout), lock.acquire(timeout=0):
            check(*arguments)

    def rows(self) -> list[dict[str, str]]:
        """
        The rows of all tables that are whole, one for each mask.

        Raises:
            `ValueError`: if one of them was not written by this command.
        """
        rows = [row for table in self._tables() for row in read_table(table)[0]]
        return list({row["mask"] or (row["file"], row["keep_rate"]): row for row in rows}.values())

    def rows_of(self, images: list[InputImage]) -> list[tuple[InputImage, dict[str, str]]]:
        """The rows that are true of images as they are now, each with its image; sorted."""
        files = {name: image for image in images for name in (image.name, image.place)}
        stems, found = {image.stem: image for image in images}, []
        for row in self.rows():
            stem, _ = _split_mask(row["mask"])
            image = files.get(row["file"]) or files.get(os.path.abspath(row["file"])) or stems.get(stem)
            if image is not None and self._is_of(image, row):
                found.append((image, row))
        return sorted(found, key=lambda one: (one[0].name, one[1]["keep_rate"]))

    def done(self, tasks: list[Task]) -> set[tuple[str, str]]:
        """The keys of those tasks for whose image, as it is now, there is a row."""
        return {task.key for task, row in self._with_rows(tasks) if self._is_of(task.image, row)}

    def begin(self, task: Task) -> None:
        """Say, before there are files of it, that an image is worked on at a keep rate."""
        with (self.folder / f".{self.table.stem}.begun").open("a", encoding="utf-8", newline="") as file:
            file.write(f"{task.key[1]}\t{_one_line(task.image.place)}\n")

    def save(self, name: str, image: np.ndarray | Image.Image) -> None:
        """Write a result image beside its place, and move it there."""
        unfinished = self.folder / f".{os.getpid()}.unfinished"
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        try:
            image.save(unfinished, format="PNG")
            unfinished.replace(self.folder / name)
        finally:
            unfinished.unlink(missing_ok=True)

    def add_row(self, row: dict) -> None:
        """Add a row to the table: all its files are there."""
        append_row(self.table, row)

    def discard(self, task: Task) -> None:
        """Remove the files of a task that came to nothing."""
        for kind in KINDS:
            (self.folder / task.result(kind)).unlink(missing_ok=True)

    def refuse_foreign_results(self, tasks: list[Task], kinds: tuple[str, ...]) -> None:
        """
        Refuse to write where there are files of others; those of a run that was killed at them are our own, and so
        are those of a file that has another content now.

        Raises:
            `ValueError`: if a file of the tasks is that of another image, or of no run of this command.
        """
        ways = "choose another --output_dir, or add --overwrite to"
        files = {task.key: [self.folder / task.result(kind) for kind in kinds] for task in tasks}
        there = {key: [path for path in paths if path.exists()] for key, paths in files.items()}
        begun = self._begun()  # after the files: another run that is at work says first what it begins
        owned = set()
        for task, row in self._with_rows(tasks):
            if not task.image.is_called(row["file"]) and not self._is_of(task.image, row):
                mask = self.folder / task.result("mask")
                raise ValueError(
                    f"{mask} is that of {row['file']}, not of {task.image.name}: predict both in one call, where "
                    f"their results have different names, {ways} replace it."
                )
            if row["mask"] == task.result("mask"):
                owned.add(task.key)
        for task in tasks:
            foreign = there[task.key]
            lines = {f"{task.key[1]}\t{_one_line(name)}" for name in (task.image.name, task.image.place)}
            if foreign and task.key not in owned and not lines & begun:
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
        """
        Drop the rows that are not whole, those of images that have been replaced since, at all keep rates, with their
        files, and those that `overwrite` replaces; and note the settings. The checks come before.
        """
        self._repair()
        if overwrite:
            self._drop(tasks, kinds)
        else:
            replaced = [task for task, row in self._with_rows(tasks) if self._is_of(task.image, row) is False]
            if replaced:
                names = list(dict.fromkeys(task.image.name for task in replaced))
                logger.warning("Images replaced since the last run, predicted again: %s", list_some(names))
                self._drop(replaced, ())
        files = {name: task.image for task in tasks for name in (task.image.name, task.image.place)}
        known = [(files.get(row["file"]) or files.get(os.path.abspath(row["file"])), row) for row in self.rows()]
        stale = [row for image, row in known if image is not None and self._is_of(image, row) is False]
        if stale:
            named = [f"{row['file']} at {row['keep_rate']}" for row in stale]
            logger.warning(
                "Removed, because the image has been replaced and this run does not predict it: %s", list_some(named)
            )
            self._drop([], (), stale)
        if not self.rows():  # else they are noted, and the same
            replace_text(self.folder / SETTINGS, json.dumps(settings, indent=1) + "\n")

    def _repair(self) -> None:
        """Rewrite tables that hold more than rows that are whole, each of them once."""
        for table in self._tables():
            rows, clean = read_table(table)
            once = {row["mask"] or (row["file"], row["keep_rate"]): row for row in rows}
            if not clean or len(once) < len(rows):
                logger.warning("%s has incomplete or repeated rows, which are ignored.", table)
                write_table(table, list(once.values()))

    def _with_rows(self, tasks: list[Task]) -> Iterator[tuple[Task, dict[str, str]]]:
        """The tasks for whose file and keep rate, or for whose mask, there is a row, with each of these."""
        rows = self.rows()
        masks = {row["mask"]: row for row in rows if row["mask"]}
        files = {(name, row["keep_rate"]): row for row in rows for name in (row["file"], os.path.abspath(row["file"]))}
        for task in tasks:
            own, at_place = files.get((task.image.place, task.key[1])), masks.get(task.result("mask"))
            if own is not None:
                yield task, own
            if at_place is not None and at_place is not own:
                yield task, at_place

    def _is_of(self, image: InputImage, row: dict[str, str]) -> bool | None:
        """Whether a row is that of an image as it is now; `None` if the image cannot be read."""
        if row["fingerprint"] == UNKNOWN:  # then by name, and by time
            mask, path = self.folder / row["mask"], Path(image.place)
            is_newer = row["mask"] and path.is_file() and path.stat().st_mtime > mask.stat().st_mtime
            return image.is_called(row["file"]) and not is_newer
        if image.name not in self._fingerprints:
            try:
                self._fingerprints[image.name] = fingerprint(image.read())
            except ValueError:
                self._fingerprints[image.name] = None
        now = self._fingerprints[image.name]
        return None if now is None else now == row["fingerprint"]

    def _drop(self, tasks: list[Task], kinds: tuple[str, ...], stale: Sequence[dict[str, str]] = ()) -> None:
        """Take stale rows and those of tasks from the tables, with files that are not made anew; the others stay."""
        made = {task.result(kind) for task in tasks for kind in kinds}
        for table in self._tables():
            rows, _ = read_table(table)
            kept = [row for row in _rows_of_others(rows, tasks) if row not in stale]
            for row in rows:
                if row not in kept and row["mask"]:
                    for name in {result_of(row, kind) for kind in KINDS} - made:
                        (self.folder / name).unlink(missing_ok=True)
            if len(kept) < len(rows):
                write_table(table, kept)

    def _tables(self) -> list[Path]:
        """That of a run with one process, and those of processes; not, say, a copy under another name."""
        tables = sorted(self.folder.glob("predictions*.csv"))
        return [table for table in tables if re.fullmatch(r"predictions(-\d+)?", table.stem)]

    def _begun(self) -> set[str]:
        """A line for whatever a run has begun, whether or not it was finished: keep rate and file."""
        paths = self.folder.glob(".predictions*.begun")
        return {line for path in paths for line in path.read_text(encoding="utf-8", errors="replace").split("\n")}

    def _noted(self) -> dict | None:
        path = self.folder / SETTINGS
        if not path.exists():
            return None
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # no JSON, or no text at all
            noted = None
        if not isinstance(noted, dict) or "model_name_or_path" not in noted:
            raise ValueError(f"{path} exists and was not written by this command: choose another --output_dir.")
        return noted


def _one_line(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")


def _rows_of_others(rows: list[dict[str, str]], tasks: list[Task]) -> list[dict[str, str]]:
    """The rows that a run of these tasks leaves true: it predicts neither them nor a namesake with their files."""
    keys, masks = {task.key for task in tasks}, {task.result("mask") for task in tasks}
    keys |= {(task.image.place, task.key[1]) for task in tasks}
    return [
        row
        for row in rows
        if row["mask"] not in masks
        and not {(row["file"], row["keep_rate"]), (os.path.abspath(row["file"]), row["keep_rate"])} & keys
    ]


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
