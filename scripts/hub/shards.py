"""Rows with pictures as Parquet shards, as the Hub shows and streams them."""

from pathlib import Path

from datasets import Dataset
from datasets.table import embed_table_storage

# A few photographs of 2048 x 2048 (5 MB each): what a reader who streams has to fetch to see the first row.
ROWS_PER_GROUP = 8


def write_shards(rows: Dataset, folder: Path, side: str, per_shard: int) -> None:
    """
    Write `<side>-<index>-of-<count>.parquet`.

    Args:
        rows (`Dataset`): What is written; pictures may be paths, a shard holds their bytes.
        folder (`Path`): Where to; exists.
        side (`str`): Name of the split.
        per_shard (`int`): Rows in a file.
    """
    count = max(1, -(-len(rows) // per_shard))
    for index in range(count):
        shard = rows.shard(count, index, contiguous=True).with_format("arrow")
        shard = shard.map(embed_table_storage, batched=True, batch_size=ROWS_PER_GROUP, keep_in_memory=True)
        shard.to_parquet(folder / f"{side}-{index:05d}-of-{count:05d}.parquet", batch_size=ROWS_PER_GROUP)
