"""A data set for the Hub in a folder of its own: Parquet shards and a card, complete or not there."""

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from ..common.former_names import with_present_names

logger = logging.getLogger(__name__)

TAG = "reg4pru-images"
PREPARED = ".prepared.json"  # describes the source files; not uploaded
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_folder(output_dir: Path, made_from: Sequence[dict], write: Callable[[Path, Path], DatasetCard]) -> None:
    """
    Write `data/<split>-*.parquet` and `README.md`.

    Args:
        output_dir (`Path`): A new or empty folder, or one prepared from the same, which is left as it is.
        made_from (`Sequence[dict]`): Tells whether it is the same: what is written to [`PREPARED`], and what earlier
            versions wrote there.
        write (`Callable`): Writes the shards into its first argument, an existing folder, and returns the card; the
            second is a folder for what it needs meanwhile.

    Raises:
        `ValueError`: If the output folder contains something else. Then nothing is written.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        known = output_dir / PREPARED
        if known.is_file() and with_present_names(json.loads(known.read_text(encoding="utf-8"))) in made_from:
            logger.info("%s was prepared from the same files and is used as it is.", output_dir)
            return
        raise ValueError(f"{output_dir} is not empty, and was not prepared from these files: choose another folder.")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed, so that a killed run leaves nothing that looks finished.
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as scratch:
        made = Path(scratch) / "made"
        (made / "data").mkdir(parents=True)
        write(made / "data", Path(scratch) / "cache").save(made / "README.md")
        (made / PREPARED).write_text(json.dumps(made_from[0]), encoding="utf-8")
        if output_dir.exists():
            output_dir.rmdir()
        made.rename(output_dir)


def card_header(data: Path, counts: dict[str, int], features: Features, **fields) -> DatasetCardData:
    """
    The header of a card: what the Hub and `datasets` read of it.

    Args:
        data (`Path`): Folder of the shards.
        counts (`dict[str, int]`): Number of images by split.
        features (`Features`): Columns of the rows.
        fields: Others of `DatasetCardData`.
    """
    sizes = {split: sum(path.stat().st_size for path in data.glob(f"{split}-*.parquet")) for split in counts}
    infos = SplitDict()
    for split, count in counts.items():
        infos.add(SplitInfo(name=split, num_bytes=sizes[split], num_examples=count))
    size = sum(sizes.values())
    info = DatasetInfo(features=features, splits=infos, download_size=size, dataset_size=size)
    header = DatasetCardData(
        task_categories=["image-segmentation"],
        task_ids=["semantic-segmentation"],
        size_categories=[next((name for most, name in _SIZES if sum(counts.values()) < most), "n>1M")],
        **fields,
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(header)
    files = [{"split": split, "path": f"data/{split}-*"} for split in counts]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(header)
    return header
