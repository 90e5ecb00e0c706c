"""Where the images come from: files, a data set without labels, or one with labels, which only the report reads."""

from typing import NamedTuple

import datasets

from datasets_fives.loading import source_kind
from datasets_fives.sources.saved_datasets import find_columns, open_splits

from ..common.dataset_loading import load_sides
from ..inference.input_images import InputImage, list_stored
from .arguments import PruneArguments


class ImageSource(NamedTuple):
    """
    Images of one side of a data set, or files.

    Args:
        inputs (`list[InputImage]`): The images.
        rows (`datasets.Dataset`, *optional*): With their labels, by the same names.
    """

    inputs: list[InputImage]
    rows: datasets.Dataset | None = None

    def labels(self, names: list[str]) -> datasets.Dataset | None:
        """Rows of these images, in this order, with everything but the image."""
        if self.rows is None:
            return None
        places = {name: place for place, name in enumerate(self.rows["name"])}
        return self.rows.select([places[name] for name in names]).remove_columns("image")


def read_sides(arguments: PruneArguments) -> dict[str, ImageSource]:
    """
    The data set of `--dataset` by side, with labels where it has some.

    Raises:
        `ValueError`: if there is no such data set.
    """
    source, revision = arguments.dataset, arguments.dataset_revision
    if source_kind(source) in ("saved", "hub"):
        sides = open_splits(source, revision)
        if any(find_columns(rows, source, needed=("image",)).mask is None for rows in sides.values()):
            return {side: ImageSource(list_stored(source, revision, side)) for side in sides}
    return {side: ImageSource(_list_rows(rows), rows) for side, rows in load_sides(arguments, arguments.seed).items()}


def side_of(sides: dict[str, ImageSource], side: str, flag: str) -> ImageSource:
    """One of the sides; raises `ValueError` with the flag if it is not there."""
    if side not in sides:
        raise ValueError(f"{flag} is {side!r}: the data set has the sides {', '.join(sides)}.")
    return sides[side]


def _list_rows(rows: datasets.Dataset) -> list[InputImage]:
    undecoded = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    return [
        InputImage(name, name, name, lambda place=place: undecoded[place]["image"]["bytes"], name)
        for place, name in enumerate(rows["name"])
    ]
