"""The images that are to be predicted: files, or rows of a stored data set."""

import glob
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from datasets_fives.features import list_some
from datasets_fives.images import SUFFIXES, has_image_name, image_stem, list_image_files
from datasets_fives.sources import SAVED
from datasets_fives.sources.saved_datasets import find_columns, list_rows, open_splits

logger = logging.getLogger(__name__)


class InputImage(NamedTuple):
    """
    Args:
        name (`str`): What tables and messages call it: its path, or its name in the data set.
        public_name (`str`): The same without the folders of this machine.
        stem (`str`): How the names of its results begin.
        content (`Callable`): Gives the path of the file, or what it holds.
    """

    name: str
    public_name: str
    stem: str
    content: Callable[[], Path | bytes]


def list_files(patterns: list[str], output_dir: Path) -> list[InputImage]:
    """
    The images among files, folders and patterns, in order; what else lies in a folder is named in a warning.

    Args:
        patterns (`list[str]`): Files; folders, of which every file with one of [`SUFFIXES`] is taken; patterns such as
            `"scans/**/*.jpg"`.
        output_dir (`Path`): Where results go.

    Raises:
        `ValueError`: If one of them finds nothing, results would land among the images, or those of two images in the
            same files.
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
                inside = map(Path, sorted(glob.glob(pattern, recursive=True)))
                found = [path for path in inside if has_image_name(path) and not path.is_dir()]
        if not found:
            raise ValueError(f"{pattern} is no file, and no folder or pattern with images ({', '.join(SUFFIXES)}).")
        for path in found:
            other = images.setdefault(image_stem(path.name), path)
            if other.resolve() != path.resolve():
                raise ValueError(f"{other} and {path} would write to the same files: predict them apart.")
    if any(output_dir.resolve() == path.resolve().parent for path in images.values()):
        raise ValueError(f"--output_dir is {output_dir}, the folder of the images: choose another.")
    return [InputImage(str(path), path.name, stem, lambda path=path: path) for stem, path in images.items()]


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
        image = InputImage(record.name, record.name, stem, lambda index=index: content(index))
        other = images.setdefault(stem, image)
        if other is not image:
            raise ValueError(f"{other.name} and {record.name} of {source} would write to the same files.")
    return list(images.values())
