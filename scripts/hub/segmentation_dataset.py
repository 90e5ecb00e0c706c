"""Any data set of images and label maps as one for the Hub, with a card that counts its classes."""

import hashlib
import json
from pathlib import Path

import numpy as np
from datasets import Dataset
from huggingface_hub import DatasetCard

from datasets_fives import class_names
from datasets_fives.features import FINGERPRINTS, UNKNOWN
from datasets_fives.masks import IGNORED

from ..reporting.tables import markdown_table
from .dataset_folder import TAG, card_header, write_folder
from .prediction_dataset import write_shards

CARD_TEMPLATE = Path(__file__).resolve().parent / "segmentation_card_template.md"


def prepare_sides(
    sides: dict[str, Dataset], output_dir: Path, repo_id: str, license: str | None = None, images_per_shard: int = 100
) -> None:
    """
    Write `data/<split>-*.parquet` and `README.md`.

    Args:
        sides (`dict[str, Dataset]`): Rows by split, of [`~datasets_fives.load_segmentation`], with fingerprints.
        output_dir (`Path`): A new or empty folder, or one prepared from the same rows, which is left as it is.
        repo_id (`str`): Repository of the data set, for the card, `"user/name"`.
        license (`str`, *optional*): Licence of the images, as the Hub calls it.
        images_per_shard (`int`, *optional*, defaults to 100): Images per Parquet file.

    Raises:
        `ValueError`: If the output folder contains something else. Then nothing is written.
    """
    listed = {split: [rows[column][:] for column in ("name", *FINGERPRINTS)] for split, rows in sides.items()}
    names = class_names(next(iter(sides.values())))
    digest = hashlib.sha256(json.dumps([listed, names]).encode()).hexdigest()
    made_from = {"rows": digest, "repo_id": repo_id, "license": license, "images_per_shard": images_per_shard}

    def write(data: Path, cache: Path) -> DatasetCard:
        for split, rows in sides.items():
            write_shards(rows.remove_columns(list(FINGERPRINTS)), data, split, images_per_shard)
        return _card(sides, data, repo_id, license)

    write_folder(output_dir, [made_from], write)


def _card(sides: dict[str, Dataset], data: Path, repo_id: str, license: str | None) -> DatasetCard:
    first = next(iter(sides.values()))
    names, features = class_names(first), first.remove_columns(list(FINGERPRINTS)).features
    counted = {split: _count_pixels(rows) for split, rows in sides.items()}
    pixels = {split: counts for split, (counts, _) in counted.items()}
    sizes = {split: found for split, (_, found) in counted.items()}
    header = card_header(
        data,
        {split: len(rows) for split, rows in sides.items()},
        features,
        license=license,
        pretty_name=repo_id.partition("/")[2],
        tags=[TAG],
    )
    return DatasetCard.from_template(
        header,
        template_path=str(CARD_TEMPLATE),
        repo_id=repo_id,
        title=repo_id.partition("/")[2],
        num_images=sum(map(len, sides.values())),
        num_classes=len(names),
        megabytes=header.dataset_info["download_size"] / 1e6,
        splits_table=_splits_table(sides, pixels, sizes),
        classes_table=_classes_table(names, pixels),
        first_split=next(iter(sides)),
        columns=list(features),
        conditions=[name for name in features["condition"].names if name != UNKNOWN],
        license=license,
    )


def _count_pixels(rows: Dataset) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """Number of pixels of each label, and of images that show it, (2, 256); and the sizes of the images."""
    counts, sizes = np.zeros((2, 256), np.int64), set()
    for row in rows.select_columns("mask"):
        found = np.bincount(np.asarray(row["mask"]).ravel(), minlength=256)
        counts += [found, found > 0]
        sizes.add(row["mask"].size)
    return counts, sizes


def _splits_table(
    sides: dict[str, Dataset], pixels: dict[str, np.ndarray], sizes: dict[str, set[tuple[int, int]]]
) -> str:
    lines = [["split", "images", "width × height", "ignored pixels"]]
    for split, rows in sides.items():
        spans = [
            f"{min(lengths)}–{max(lengths)}" if len(set(lengths)) > 1 else str(lengths[0])
            for lengths in zip(*sizes[split], strict=True)
        ]
        ignored = pixels[split][0, IGNORED] / pixels[split][0].sum()
        lines.append([split, str(len(rows)), " × ".join(spans), f"{ignored:.2%}"])
    return markdown_table(lines)


def _classes_table(names: list[str], pixels: dict[str, np.ndarray]) -> str:
    """Of each split the share of a class in the pixels that count, and the number of images that show it."""
    lines = [["class", "label", *(column for split in pixels for column in (f"{split}: pixels", "images"))]]
    for label, name in enumerate(names):
        cells = []
        for counts, images in pixels.values():
            cells += [f"{counts[label] / max(1, counts[:IGNORED].sum()):.2%}", str(images[label])]
        lines.append([name, str(label), *cells])
    return markdown_table(lines)
