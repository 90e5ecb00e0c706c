"""Where the images come from: files, a data set without labels, or one with labels, which only the report reads."""

import logging
from pathlib import Path
from typing import NamedTuple

import datasets

from datasets_fives.loading import source_kind
from datasets_fives.sources.saved_datasets import find_columns, open_splits
from modeling_reg4pru import Reg4PruConfig

from ..common.dataset_loading import load_sides
from ..inference.input_images import InputImage, list_stored
from ..inference.model_classes import check_same_classes
from .arguments import PruneArguments

logger = logging.getLogger(__name__)


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


def read_sides(arguments: PruneArguments, config: Reg4PruConfig) -> dict[str, ImageSource]:
    """
    The data set of `--dataset` by side, with labels where it has some. Labels of a stored data set that are not those
    of the model's classes are left aside with a warning: its images can be fitted to all the same.

    Args:
        arguments ([`PruneArguments`]): Data set, and how it is read.
        config ([`Reg4PruConfig`]): Of the model, for its classes.

    Raises:
        `ValueError`: if there is no such data set, or its labels are needed and do not fit.
    """
    source, revision, stored = arguments.dataset, arguments.dataset_revision, {}
    if source_kind(source) in ("saved", "hub"):
        sides = open_splits(source, revision)
        stored = {side: ImageSource(list_stored(source, revision, side)) for side in sides}
        if any(find_columns(rows, source, needed=("image",)).mask is None for rows in sides.values()):
            return stored
    try:
        labelled = load_sides(arguments, arguments.seed)
        check_same_classes(config, next(iter(labelled.values())), source)
    except ValueError as error:
        if not stored or arguments.level == "labels":
            raise
        logger.warning("The labels of %s are not used: %s", source, error)
        return stored
    return {side: ImageSource(_list_rows(rows), rows) for side, rows in labelled.items()}


def side_of(sides: dict[str, ImageSource], side: str, flag: str) -> ImageSource:
    """One of the sides; raises `ValueError` with the flag if it is not there."""
    if side not in sides:
        raise ValueError(f"{flag} is {side!r}: the data set has the sides {', '.join(sides)}.")
    return sides[side]


def _list_rows(rows: datasets.Dataset) -> list[InputImage]:
    undecoded = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))

    def content(place: int) -> Path | bytes:
        saved = undecoded[place]["image"]
        return Path(saved["path"]) if saved["bytes"] is None else saved["bytes"]

    return [
        InputImage(name, name, name, lambda place=place: content(place), name)
        for place, name in enumerate(rows["name"])
    ]
