"""The images that are to be predicted: files, or rows of a stored data set."""

import glob
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from datasets_fives.features import list_some
from datasets_fives.images import SUFFIXES, has_image_name, image_stem, list_image_files
from datasets_fives.sources import SAVED
from datasets_fives.sources.saved_datasets import find_columns, list_rows, open_splits

logger = logging.getLogger(__name__)
# In a folder of results it tells how they were made.
SETTINGS = "predictions.json"


class InputImage(NamedTuple):
    """
    Args:
        name (`str`): What tables and messages call it: its path, or its name in the data set.
        public_name (`str`): The same without the folders of this machine.
        stem (`str`): How the names of its results begin.
        content (`Callable`): Gives the path of the file, or what it holds.
        place (`str`): The same file has the same, by whatever path it was named; or its name in the data set.
    """

    name: str
    public_name: str
    stem: str
    content: Callable[[], Path | bytes]
    place: str

    def is_called(self, name: str) -> bool:
        """Whether a table means this image by a name."""
        return name == self.name or self.place in (name, os.path.abspath(name))

    def read(self) -> bytes:
        """What the file holds; raises `ValueError` if it cannot be read."""
        content = self.content()
        if isinstance(content, bytes):
            return content
        if not content.is_file():  # reading a pipe or a device would not end
            raise ValueError("cannot be read (no such file)")
        try:
            return content.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read ({error.strerror})") from error


def list_files(patterns: list[str], output_dir: Path) -> list[InputImage]:
    """
    The images among files, folders and patterns, in order; what else lies in a folder is named in a warning.

    Args:
        patterns (`list[str]`): Files; folders, of which every file with one of [`SUFFIXES`] is taken; patterns such as
            `"scans/**/*.jpg"`, which do not look into folders of results.
        output_dir (`Path`): Where results go.

    Raises:
        `ValueError`: If one of them finds nothing, or results would land among the images.
    """
    images: dict[str, Path] = {}
    for pattern in patterns:
        found = [Path(pattern)]
        if not found[0].is_file():
            if found[0].is_dir():
                found, others = list_image_files(found[0])
                if others:
                    logger.warning("No images by their names in %s, so not predicted: %s", pattern, list_some(others))
            else:
                found = [path for path in _match(pattern) if has_image_name(path) and not path.is_dir()]
                found = [path for path in found if not (path.parent / SETTINGS).is_file()]
        if not found:
            raise ValueError(f"{pattern} is no file, and no folder or pattern with images ({', '.join(SUFFIXES)}).")
        for path in found:
            images.setdefault(os.path.realpath(path), path)
    if any(output_dir.resolve() == path.resolve().parent for path in images.values()):
        raise ValueError(f"--output_dir is {output_dir}, the folder of the images: choose another.")
    stems = distinct_stems(list(images.values()))
    return [
        InputImage(str(path), path.name, stems[path], lambda path=path: path, os.path.abspath(path))
        for path in images.values()
    ]


def _match(pattern: str) -> list[Path]:
    """The files of a pattern; a folder that is called as its beginning is meant itself, as in `data [v2]/*.png`."""
    parts, beginning = Path(pattern).parts, Path()
    while parts and (beginning / parts[0]).is_dir():
        beginning, parts = beginning / parts[0], parts[1:]
    if not parts:
        return []
    return [beginning / found for found in sorted(glob.glob(str(Path(*parts)), root_dir=beginning, recursive=True))]


def distinct_stems(paths: list[Path]) -> dict[Path, str]:
    """
    How the names of results begin: as the file is called, and where several are called so, with as many of their
    folders before it as tell them apart, or with its suffix behind it.

    Args:
        paths (`list[Path]`): Files, each once.

    Raises:
        `ValueError`: If that does not tell them apart.
    """
    folders, suffixed = dict.fromkeys(paths, 0), set()
    while True:
        stems: dict[str, list[Path]] = {}
        for path in paths:
            before = Path(os.path.abspath(path)).parent.parts[1:]
            before = before[len(before) - folders[path] :]
            own = path.name.replace(".", "_") if path in suffixed else image_stem(path.name)
            stems.setdefault("_".join([*before, own]), []).append(path)
        equal = [group for group in stems.values() if len(group) > 1]
        if not equal:
            return {path: stem for stem, (path,) in stems.items()}
        for group in equal:
            parents = [os.path.abspath(path.parent) for path in group]
            for path, parent in zip(group, parents, strict=True):
                if parents.count(parent) > 1 and path not in suffixed:
                    suffixed.add(path)
                elif folders[path] < len(Path(parent).parts) - 1:
                    folders[path] += 1
                else:
                    raise ValueError(f"{group[0]} and {group[1]} would write to the same files: predict them apart.")


def list_stored(source: str, revision: str | None, side: str) -> list[InputImage]:
    """
    The images of a data set that is stored as such; it needs no masks.

    Args:
        source (`str`): A Hub id, a folder with Parquet files, or one of `save_to_disk`.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        side (`str`): `"train"`, `"validation"` or `"test"`.

    Raises:
        `ValueError`: If there is no such data set, side or column of images, or two images would be written
            to the same files.
    """
    sides = open_splits(source, revision, known=f"files, folders and patterns under --images, {SAVED}")
    if side not in sides:
        raise ValueError(f"--side is {side!r}: {source} has the sides {', '.join(sides)}.")
    columns = find_columns(sides[side], source, needed=("image",))
    records = list_rows({side: sides[side]}, columns).contents

    def content(index: int) -> Path | bytes:
        content = records[index].image
        if not content:
            raise ValueError("image is missing")
        return content if isinstance(content, bytes) else Path(content)

    images: dict[str, InputImage] = {}
    for index, record in enumerate(records.records):
        stem = image_stem(record.name.replace("/", "_").replace("\\", "_"))
        image = InputImage(record.name, record.name, stem, lambda index=index: content(index), record.name)
        other = images.setdefault(stem, image)
        if other is not image:
            raise ValueError(f"{other.name} and {record.name} of {source} would write to the same files: rename one.")
    return list(images.values())
