"""Rows as iterable data sets, each with the number of its rows."""

from collections.abc import Callable

from datasets import DatasetDict, Features, IterableDataset, IterableDatasetDict, SplitDict, SplitInfo

from .sources.saved_datasets import SavedRecords


def stream_records(
    contents: SavedRecords,
    splits: dict[str, list[int]],
    features: Features,
    to_row: Callable[..., dict],
    options: dict,
) -> IterableDatasetDict:
    """
    Rows that are made while their images download.

    Args:
        contents ([`SavedRecords`]): The records.
        splits (`dict[str, list[int]]`): Indices of the records of each split. Names alone decided: only columns of
            text were read ahead, not the pixels.
        features (`Features`): Columns of the rows.
        to_row (`Callable`): Makes a row of a record.
        options (`dict`): Keyword arguments of `to_row`.
    """
    result = {}
    for name, indices in splits.items():
        rows = contents.stream(indices, to_row, **options).select_columns(list(features)).cast(features)
        result[name] = _count(rows, name, len(indices))
    return IterableDatasetDict(result)


def stream_rows(splits: DatasetDict) -> IterableDatasetDict:
    """Rows that are there already, as streams."""
    return IterableDatasetDict(
        {name: _count(rows.to_iterable_dataset(), name, len(rows)) for name, rows in splits.items()}
    )


def _count(rows: IterableDataset, split: str, count: int) -> IterableDataset:
    """Note the number of rows, which a stream cannot be asked for."""
    splits = SplitDict()
    splits.add(SplitInfo(name=split, num_examples=count))
    rows.info.splits = splits
    return rows
