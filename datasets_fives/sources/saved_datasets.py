"""What is stored as a data set already: on disk, as Parquet, on the Hub; which of its columns is what."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetNotFoundError

from ..features import QUALITY, condition_names, prepare_pixels, raise_problems, read_conditions
from ..splits import SIDES

# Column names that are understood, the first ones best known.
_COLUMNS = {
    "image": ("image", "pixel_values", "photograph"),
    "mask": ("mask", "label", "labels", "annotation", "segmentation_mask"),
    "field_of_view": ("field_of_view", "fov"),
    "name": ("name", "image_id", "id", "file_name"),
    "condition": ("condition",),
}
_PICTURES = ("image", "mask", "field_of_view")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# FIVES as others have put it on the Hub: "train_100_A".
_FIVES_ID = re.compile(r"(train|test)_(\d+_[ADGN])")
DESCRIPTION = (
    'a directory written by DatasetDict.save_to_disk, a folder with "data/<split>-*.parquet", a Hub id "user/name", '
    'or "synthetic"'
)


def is_stored(source: str | Path) -> bool:
    """Whether `source` is a folder of `save_to_disk` or with Parquet files; it may hold pictures beside them."""
    folder = Path(source)
    return any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")) or bool(
        parquet_files(folder)
    )


class Columns(NamedTuple):
    """Where a stored data set keeps what we need; `None`: it has no such column, or a mask was not needed."""

    image: str
    mask: str | None
    field_of_view: str | None
    name: str | None
    condition: str | None
    quality: bool


class Label(NamedTuple):
    """What is known of a stored image without its pixels."""

    side: str  # where it is stored
    published: str  # side of the official split
    stored_name: str  # as in the data set; "" if it has no names
    name: str
    condition: str


def open_stored(
    source: str | Path, revision: str | None, streaming: bool, cache_dir: str | Path | None, others: str
) -> DatasetDict | IterableDatasetDict:
    """
    Open a stored data set.

    Args:
        source (`str` or `Path`): A directory or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        streaming (`bool`): Whether to open it without downloading it.
        cache_dir (`str` or `Path`, *optional*): Where what is downloaded is kept.
        others (`str`): What else could have been meant, for the error.

    Returns:
        `DatasetDict` or `IterableDatasetDict`

    Raises:
        ValueError: If there is no such data set, or its splits have other names than train, validation, test.
    """
    folder, kwargs = Path(source), {"streaming": streaming, "cache_dir": cache_dir and str(cache_dir)}
    if (folder / "dataset_dict.json").is_file():
        sides = load_from_disk(folder)
    elif (folder / "state.json").is_file():
        sides = DatasetDict({"train": load_from_disk(folder)})
    elif files := parquet_files(folder):
        sides = load_dataset("parquet", data_files=files, **kwargs)
    elif folder.exists() or not _HUB_ID.fullmatch(str(source)):
        raise ValueError(f"{str(source)!r} is no data set that is known here. Known are {others}, {DESCRIPTION}.")
    else:
        try:
            sides = load_dataset(str(source), revision=revision, **kwargs)
        except (DatasetNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"{str(source)!r} is no folder here and was not found on the Hub ({error}). Known are {others}, "
                f"{DESCRIPTION}."
            ) from error
    unknown = sorted(set(sides) - set(SIDES))
    if unknown:
        raise ValueError(f"{source} has the splits {', '.join(sides)}; known are {', '.join(SIDES)}.")
    return sides


def parquet_files(folder: Path) -> dict[str, list[str]]:
    """The Parquet shards of each side, in `data` or in the folder itself; all of them train if none names a side."""
    for place in (folder / "data", folder):
        found = {side: sorted(str(path) for path in place.glob(f"{side}[-.]*parquet")) for side in SIDES}
        if any(found.values()):
            return {side: paths for side, paths in found.items() if paths}
    loose = sorted(str(path) for path in folder.glob("*.parquet"))
    return {"train": loose} if loose else {}


def find_columns(rows: Dataset | IterableDataset, where: str, needed: tuple[str, ...] = ("image", "mask")) -> Columns:
    """
    Tell the columns of a data set by their names and types.

    Args:
        rows (`Dataset` or `IterableDataset`): One side of it.
        where (`str`): What the error calls it.
        needed (`tuple[str, ...]`, *optional*): What there must be; by default images and masks.

    Returns:
        [`Columns`]

    Raises:
        ValueError: If what is needed is missing, or two columns could be meant.
    """
    features = rows.features or Dataset.from_list([next(iter(rows))]).features
    found: dict[str, str | None] = {}
    for kind, names in _COLUMNS.items():
        fits = [name for name in names if name in features]
        if kind in _PICTURES:  # a "label" is often a number
            fits = [name for name in fits if _holds_pictures(features[name])]
        if len(fits) > 1 and kind in _PICTURES:
            raise ValueError(
                f"{where} has more than one column that could be the {kind}: {', '.join(fits)}; rename the others."
            )
        found[kind] = fits[0] if fits else None
    missing = [kind for kind in needed if found[kind] is None]
    if missing:
        known = "; ".join(f"{kind}: a column of pictures named {', '.join(_COLUMNS[kind])}" for kind in missing)
        raise ValueError(f"{where} has the columns {', '.join(features)}; missing: {', '.join(missing)} ({known}).")
    return Columns(**found, quality=all(grade in features for grade in QUALITY))


def _holds_pictures(feature) -> bool:
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def read_labels(
    sides: dict[str, Dataset | IterableDataset], columns: Columns, condition_pattern: str | None
) -> tuple[list[Label], list[str]]:
    """
    Name and condition of every image.

    Args:
        sides (`dict[str, Dataset | IterableDataset]`): The stored sides; only columns of text are read.
        columns ([`Columns`]): Which columns these are.
        condition_pattern (`str`, *optional*): See [`~datasets_fives.features.read_conditions`]. By default the
            column `condition`, if there is one.

    Returns:
        `tuple[list[Label], list[str]]`: A label for each image, in order, and the names of the conditions.

    Raises:
        ValueError: If the pattern does not fit.
    """
    keys = [column for column in (columns.name, columns.condition) if column is not None]
    stored, found, origins = [], [], []
    for side, rows in sides.items():
        feature = rows.features and rows.features.get(columns.condition)
        for index, row in enumerate(rows.select_columns(keys) if keys else [{}] * len(rows)):
            origins.append((side, index))
            stored.append("" if columns.name is None else str(row[columns.name]))
            condition = row.get(columns.condition)
            found.append(feature.int2str(condition) if isinstance(feature, ClassLabel) else str(condition))
    published = [side for side, _ in origins]
    matches = [_FIVES_ID.fullmatch(name) for name in stored]
    if all(matches):
        names, published = [f"{match[1]}/{match[2]}" for match in matches], [match[1] for match in matches]
    elif columns.name is None:
        names = [f"{side}/{index + 1}" for side, index in origins]
    elif len(set(stored)) < len(stored):
        names = [f"{side}/{name}" for (side, _), name in zip(origins, stored, strict=True)]
    else:
        names = stored
    if columns.condition is None or condition_pattern is not None:
        found, declared = read_conditions(names, condition_pattern), None
    else:
        feature = next(iter(sides.values())).features
        feature = feature and feature.get(columns.condition)
        declared = feature.names if isinstance(feature, ClassLabel) else None
    labels = [Label(side, *rest) for (side, _), *rest in zip(origins, published, stored, names, found, strict=True)]
    return labels, declared or condition_names(found)


def read_rows(
    rows: Dataset,
    columns: Columns,
    labels: tuple[Label, ...],
    working_size: int | None,
    version: int,
    vessel_labels: tuple[int, ...] | None = None,
) -> Iterator[dict]:
    """Check, and if asked for resize, rows of one side; the counterpart of `read_images`."""
    problems = []
    for row, label in zip(undecoded(rows, columns), labels, strict=True):
        try:
            ready = prepare_row(row, columns, label, working_size, vessel_labels)
        except ValueError as error:
            problems.append(f"{label.name}: {error}")
            continue
        if not problems:
            yield ready
    raise_problems("the data set", problems)


def undecoded(rows: Dataset | IterableDataset, columns: Columns) -> Dataset | IterableDataset:
    """The rows with the bytes of their pictures, so that a broken one is reported with its name."""
    pictures = [column for column in (columns.image, columns.mask, columns.field_of_view) if column is not None]
    others = [column for column in (columns.name, columns.condition) if column is not None]
    rows = rows.select_columns([*pictures, *others, *(QUALITY if columns.quality else ())])
    for column in pictures:
        rows = rows.cast_column(column, Image(decode=False))
    return rows


def prepare_row(
    row: dict, columns: Columns, label: Label, working_size: int | None, vessel_labels: tuple[int, ...] | None
) -> dict:
    """A row with the public columns and the fingerprints."""
    picture = {kind: row[column] for kind, column in zip(_PICTURES, columns[:3], strict=True) if column is not None}
    for kind, stored in picture.items():
        if stored is None:
            raise ValueError(f"{kind.replace('_', ' ')} is missing")
    contents = [stored["bytes"] if stored["bytes"] is not None else stored["path"] for stored in picture.values()]
    pixels = prepare_pixels(*contents, working_size=working_size, vessel_labels=vessel_labels)
    grades = {grade: row[grade] for grade in QUALITY} if columns.quality else {}
    return pixels | grades | {"name": label.name, "condition": label.condition}
