"""What is a data set already, on disk, as Parquet or on the Hub: which of its columns is what, row by row a record."""

import glob
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
    concatenate_datasets,
    config,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetNotFoundError

from ..features import QUALITY, Listing, Record
from ..splits import SPLIT_NAMES, SPLITS, read_conditions
from . import KNOWN

# Column names that are understood, the usual ones first.
_COLUMNS = {
    "image": ("image", "pixel_values", "photograph"),
    "mask": ("mask", "label", "labels", "annotation", "segmentation_mask"),
    "field_of_view": ("field_of_view", "fov"),
    "name": ("name", "image_id", "id", "file_name"),
    "condition": ("condition",),
}
_IMAGES = ("image", "mask", "field_of_view")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# FIVES as others have put it on the Hub: "train_100_A".
_FIVES_ID = re.compile(r"(train|test)_(\d+_[ADGN])")


class Columns(NamedTuple):
    """Names of the columns that hold what we need, `None` for those that a data set lacks."""

    image: str
    mask: str | None
    field_of_view: str | None
    name: str | None
    condition: str | None
    has_quality: bool

    @property
    def images(self) -> list[str]:
        return [column for column in (self.image, self.mask, self.field_of_view) if column is not None]

    @property
    def texts(self) -> list[str]:
        named = [column for column in (self.name, self.condition) if column is not None]
        return [*named, *(QUALITY if self.has_quality else ())]


class SavedRecords(Sequence[Record]):
    """
    The rows of a saved data set as records.

    Args:
        splits (`Mapping[str, Dataset]` or `Mapping[str, IterableDataset]`): The data set.
        columns ([`Columns`]): Its columns.
        records (`Sequence[Record]`): The images, in order, without their content.
        keys (`Sequence[tuple]`): Of each image the split in which it is saved, and its row (of a stream: its name).
    """

    def __init__(self, splits: Mapping, columns: Columns, records: Sequence[Record], keys: Sequence[tuple]):
        # Not decoded, so that a damaged image is reported with its name.
        self.splits = {
            split: _cast(rows.select_columns([*columns.images, *columns.texts]), columns.images)
            for split, rows in splits.items()
        }
        self.columns, self.records, self.keys = columns, tuple(records), tuple(keys)

    @property
    def is_stream(self) -> bool:
        return any(isinstance(rows, IterableDataset) for rows in self.splits.values())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        split, row = self.keys[index]
        return _with_content(self.records[index], self.splits[split][row], self.columns)

    def stream(self, indices: list[int], to_row: Callable[..., dict], **kwargs) -> IterableDataset:
        """Rows made of some of the records, `to_row(record, **kwargs)`, while they download."""
        parts = []
        for split in dict.fromkeys(self.keys[i][0] for i in indices):
            records = {self.keys[i][1]: self.records[i] for i in indices if self.keys[i][0] == split}
            rows = self.splits[split].filter(
                lambda name, records=records: str(name) in records, input_columns=self.columns.name
            )
            fn_kwargs = {"records": records, "columns": self.columns, "to_row": to_row, **kwargs}
            parts.append(rows.map(_stream_row, fn_kwargs=fn_kwargs))
        return concatenate_datasets(parts)


def _cast(rows: Dataset | IterableDataset, columns: list[str]) -> Dataset | IterableDataset:
    for column in columns:
        rows = rows.cast_column(column, Image(decode=False))
    return rows


def _with_content(record: Record, row: dict, columns: Columns) -> Record:
    def content(column: str) -> str | bytes:
        saved = row[column] or {"bytes": b"", "path": None}
        return saved["bytes"] if saved["bytes"] is not None else saved["path"] or b""

    kinds = zip(_IMAGES, columns[:3], strict=True)
    return record._replace(**{kind: content(column) for kind, column in kinds if column is not None})


def _stream_row(
    row: dict, records: dict[str, Record], columns: Columns, to_row: Callable[..., dict], **kwargs
) -> dict:
    record = records[str(row[columns.name])]
    try:
        return to_row(_with_content(record, row, columns), **kwargs)
    except ValueError as error:
        raise ValueError(f"{record.name}: {error}") from error


def list_saved(
    source: str | Path,
    condition_pattern: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> Listing:
    """
    List the images of a saved data set; only columns of text are read.

    Args:
        source (`str` or `Path`): A directory or a Hub id.
        condition_pattern (`str`, *optional*): See [`~datasets_fives.splits.read_conditions`]. By default the
            column `condition`, if there is one.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        streaming (`bool`, *optional*, defaults to `False`): Whether to open it without downloading it, if it can be.
        cache_dir (`str` or `Path`, *optional*): Where downloads are kept.

    Returns:
        [`Listing`]: whose contents are [`SavedRecords`].

    Raises:
        ValueError: If there is no such data set, its splits or columns have other names, or the pattern does not
            match.
    """
    splits = open_splits(source, revision, streaming, cache_dir)
    found = {find_columns(rows, f"{source}: {split}") for split, rows in splits.items()}
    if len(found) > 1:
        raise ValueError(f"The splits of {source} have different columns: {', '.join(map(str, found))}.")
    (columns,) = found
    texts = splits
    if isinstance(splits, IterableDatasetDict):
        if columns.name is None:
            raise ValueError(f"{source} has no column of names to be split by: load it without streaming.")
        # Of Parquet files nothing but these columns is downloaded.
        if files := parquet_files(Path(source)):
            texts = load_dataset("parquet", data_files=files, columns=columns.texts, streaming=True)
        elif all(rows.info.builder_name == "parquet" for rows in splits.values()):
            opened = load_dataset(str(source), revision=revision, columns=columns.texts, streaming=True)
            texts = _with_our_names(opened, source)
    listing = list_rows(splits, columns, condition_pattern, texts)
    named = {_named_classes(rows) for rows in splits.values()} - {None}
    if len(named) > 1:
        raise ValueError(f"The splits of {source} have different classes: {'; '.join(map(', '.join, sorted(named)))}.")
    return listing._replace(stated={"classes": named.pop()} if named else {})


def _named_classes(rows: Dataset | IterableDataset) -> tuple[str, ...] | None:
    """Names of all classes, of a column `classes` as [`~datasets_fives.load_segmentation`] makes it."""
    feature = (rows.features or {}).get("classes")
    if not isinstance(feature, List) or not isinstance(feature.feature, ClassLabel):
        return None
    return tuple(feature.feature.names)


def open_splits(
    source: str | Path,
    revision: str | None = None,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    known: str = KNOWN,
) -> DatasetDict | IterableDatasetDict:
    """
    Open a saved data set.

    Args:
        source (`str` or `Path`): A directory or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        streaming (`bool`, *optional*, defaults to `False`): Whether to open it without downloading it.
        cache_dir (`str` or `Path`, *optional*): Where downloads are kept.
        known (`str`, *optional*): What could have been meant, for the error.

    Raises:
        ValueError: If there is no such data set, or its splits have other names than train, validation, test.
    """
    folder, kwargs = Path(source), {"streaming": streaming, "cache_dir": cache_dir and str(cache_dir)}
    if "::" in str(folder.absolute()) and folder.exists():
        raise ValueError(f"{str(source)!r} cannot be opened: datasets takes '::' in a path for a chain of URLs.")
    if (folder / "dataset_dict.json").is_file():
        splits = load_from_disk(folder)
    elif (folder / "state.json").is_file():
        splits = DatasetDict({"train": load_from_disk(folder)})
    elif files := parquet_files(folder):
        with _cache_named(source, cache_dir):
            splits = load_dataset("parquet", data_files=files, **kwargs)
    elif folder.exists() or not _HUB_ID.fullmatch(str(source)):
        raise ValueError(f"{str(source)!r} is not a known data set. Known are {known}.")
    else:
        try:
            with _cache_named(source, cache_dir):
                splits = load_dataset(str(source), revision=revision, **kwargs)
        except (DatasetNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"{str(source)!r} is not a folder and was not found on the Hub ({error}). Known are {known}."
            ) from error
    return _with_our_names(splits, source)


def _with_our_names(
    splits: DatasetDict | IterableDatasetDict, source: str | Path
) -> DatasetDict | IterableDatasetDict:
    """The splits, in their order, by the names that we call them."""
    found = {SPLIT_NAMES.get(split): rows for split, rows in splits.items()}
    if None in found or len(found) < len(splits):
        raise ValueError(
            f"{source} has the splits {', '.join(splits)}; known are {', '.join(SPLIT_NAMES)}, one for each of "
            f"{', '.join(SPLITS)}."
        )
    return type(splits)(found)


@contextmanager
def _cache_named(source: str | Path, cache_dir: str | Path | None) -> Iterator[None]:
    """Where `datasets` prepares its rows: a cache that cannot be written to is named, with what to set."""
    try:
        yield
    except (ConnectionError, FileNotFoundError):  # of the source
        raise
    except OSError as error:
        cache = cache_dir or config.HF_DATASETS_CACHE
        raise ValueError(
            f"{source} cannot be prepared in {cache} ({error}): set cache_dir, HF_HOME or HF_DATASETS_CACHE to a "
            "folder that can be written to."
        ) from error


def parquet_files(folder: Path) -> dict[str, list[str]]:
    """
    The Parquet files of each split, in `data` or in the folder itself; all of them train if none names a split. The
    paths are escaped, for `datasets` reads them as patterns.
    """
    for place in (folder / "data", folder):
        found: dict[str, list[str]] = {}
        for name, split in SPLIT_NAMES.items():
            found.setdefault(split, []).extend(_escaped(place.glob(f"{name}[-.]*parquet")))
        if any(found.values()):
            return {split: paths for split, paths in found.items() if paths}
    others = _escaped(folder.glob("*.parquet"))
    return {"train": others} if others else {}


def _escaped(paths: Iterable[Path]) -> list[str]:
    return [glob.escape(str(path)) for path in sorted(paths)]


def find_columns(rows: Dataset | IterableDataset, where: str, needed: tuple[str, ...] = ("image", "mask")) -> Columns:
    """
    Find the columns of a data set by their names and types.

    Args:
        rows (`Dataset` or `IterableDataset`): One split of it.
        where (`str`): What the error calls it.
        needed (`tuple[str, ...]`, *optional*): What there must be; by default images and masks.

    Raises:
        ValueError: If what is needed is missing, or two columns could be meant.
    """
    features = rows.features or Dataset.from_list([next(iter(rows))]).features
    found: dict[str, str | None] = {}
    for kind, names in _COLUMNS.items():
        candidates = [name for name in names if name in features]
        if kind in _IMAGES:  # a "label" is often a number
            candidates = [name for name in candidates if _holds_images(features[name])]
            if len(candidates) > 1:
                raise ValueError(
                    f"{where} has more than one column that could be the {kind}: {', '.join(candidates)}; rename the "
                    "others."
                )
        found[kind] = candidates[0] if candidates else None
    missing = [kind for kind in needed if found[kind] is None]
    if missing:
        known = "; ".join(f"{kind}: a column of images named {', '.join(_COLUMNS[kind])}" for kind in missing)
        raise ValueError(f"{where} has the columns {', '.join(features)}; missing: {', '.join(missing)} ({known}).")
    return Columns(**found, has_quality=all(grade in features for grade in QUALITY))


def _holds_images(feature) -> bool:
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def list_rows(
    splits: Mapping, columns: Columns, condition_pattern: str | None = None, texts: Mapping | None = None
) -> Listing:
    """
    List the rows of a saved data set.

    Args:
        splits (`Mapping[str, Dataset]` or `Mapping[str, IterableDataset]`): The data set.
        columns ([`Columns`]): Its columns.
        condition_pattern (`str`, *optional*): See [`list_saved`].
        texts (`Mapping`, *optional*): Where its columns of text are read; by default in `splits`.

    Raises:
        ValueError: If the pattern does not match.
    """
    rows, keys, conditions, declared = [], [], [], None
    for split, texts_of_split in (texts or splits).items():
        feature = (texts_of_split.features or {}).get(columns.condition)
        is_class = isinstance(feature, ClassLabel)
        declared = declared or (feature.names if is_class else None)
        has_texts = bool(columns.texts)
        for index, row in enumerate(
            texts_of_split.select_columns(columns.texts) if has_texts else [{}] * len(texts_of_split)
        ):
            condition = row.get(columns.condition)
            rows.append(row)
            keys.append((split, index))
            conditions.append(feature.int2str(condition) if is_class else str(condition))
    saved_names = [str(row.get(columns.name, "")) for row in rows]
    if all(matches := [_FIVES_ID.fullmatch(name) for name in saved_names]):
        names, published = [f"{match[1]}/{match[2]}" for match in matches], [match[1] for match in matches]
    else:
        published = [split for split, _ in keys]
        if columns.name is None:
            names = [f"{split}/{index + 1}" for split, index in keys]
        elif len(set(saved_names)) < len(saved_names):
            names = [f"{split}/{name}" for split, name in zip(published, saved_names, strict=True)]
        else:
            names = saved_names
    if columns.condition is None or condition_pattern is not None:
        conditions, declared = read_conditions(names, condition_pattern), None
    has_fields = columns.field_of_view is not None
    records = [
        Record(
            *known,
            field_of_view=b"" if has_fields else None,
            quality=tuple(row[grade] for grade in QUALITY) if columns.has_quality else None,
        )
        for *known, row in zip(names, published, conditions, rows, strict=True)
    ]
    if isinstance(splits, IterableDatasetDict):
        keys = [(split, name) for (split, _), name in zip(keys, saved_names, strict=True)]
    return Listing(records, SavedRecords(splits, columns, records, keys), declared)
