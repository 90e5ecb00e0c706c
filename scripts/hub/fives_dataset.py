"""The FIVES archive as a data set for the Hub: Parquet shards, and a card whose numbers are computed."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from huggingface_hub import DatasetCard
from PIL import Image

from datasets_fives import FEATURES
from datasets_fives.features import CONDITIONS, FINGERPRINTS, Record
from datasets_fives.images import fingerprint
from datasets_fives.loading import checked_rows
from datasets_fives.sources.fives_archive import list_archive
from datasets_fives.splits import group_duplicates

from ..reporting.tables import markdown_table
from .dataset_folder import TAG, card_header, write_folder
from .prediction_dataset import write_shards

CARD_TEMPLATE = Path(__file__).resolve().parent / "dataset_card_template.md"
# Vessels cover about a tenth of an image; in the masks of nearly unreadable images far less than this.
SPARSE_BELOW = 0.01
VERSION = 2  # of that description
_FACTS = {"image_hash": Value("string"), "mask_hash": Value("string"), "vessel_fraction": Value("float64"),
          "mask_mode": Value("string"), "antialiased": Value("bool")}  # fmt: skip


def prepare(fives_dir: Path, output_dir: Path, repo_id: str, images_per_shard: int = 100) -> None:
    """
    Write `data/<split>-*.parquet` and `README.md`.

    Args:
        fives_dir (`Path`): Folder of the published archive, complete or in part.
        output_dir (`Path`): A new or empty folder, or one prepared from the same files, which is left as it is.
        repo_id (`str`): Repository of the data set, for the card, `"user/name"`.
        images_per_shard (`int`, *optional*, defaults to 100): Images per Parquet file.

    Raises:
        `ValueError`: If the archive is damaged, or the output folder contains something else. Then nothing is written.
    """
    images = list_archive(fives_dir.resolve()).records
    parts = {side: [image for image in images if image.split == side] for side in ("train", "test")}

    def write(data: Path, cache: Path) -> DatasetCard:
        facts = {
            side: _write_side(members, side, data, cache, images_per_shard)
            for side, members in parts.items()
            if members
        }
        return _card(facts, data, repo_id)

    made_from = [_made_from(images, repo_id, images_per_shard, version) for version in range(VERSION, 0, -1)]
    write_folder(output_dir, made_from, write)


def _made_from(images: Sequence[Record], repo_id: str, images_per_shard: int, version: int) -> dict:
    """What a prepared folder is known by; version 1 knew its files by size and time, which others may have, too."""

    def known_by(path: Path) -> list:
        return [path.stat().st_size, path.stat().st_mtime_ns] if version == 1 else [fingerprint(path.read_bytes())]

    listed = [(image.name, known_by(Path(image.image)) + known_by(Path(image.mask))) for image in images]
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return {"files": digest, "repo_id": repo_id, "images_per_shard": images_per_shard, "version": version}


def _rows(images: Sequence[Record]) -> Iterator[dict]:
    mask_of = {image.name: image.mask for image in images}
    for row in checked_rows(images):
        with Image.open(mask_of[row["name"]]) as mask:
            mode, grey = mask.mode, np.asarray(mask.convert("L"))
        yield {column: row[column] for column in (*FEATURES, *FINGERPRINTS)} | {
            "vessel_fraction": float(np.mean(grey > 127)),
            "mask_mode": mode,
            "antialiased": bool(((grey > 0) & (grey < 255)).any() and grey.max() > 1),
        }


def _write_side(images: Sequence[Record], side: str, folder: Path, cache: Path, per_shard: int) -> list[dict]:
    """Write the shards of one side; returns the facts about each image that the card needs."""
    rows = Dataset.from_generator(
        _rows,
        features=Features({**FEATURES, **_FACTS}),
        gen_kwargs={"images": images},
        cache_dir=str(cache / side),
        writer_batch_size=16,
    )
    facts = [{**fact, "condition": CONDITIONS[fact["condition"]]} for fact in rows.remove_columns(["image", "mask"])]
    write_shards(rows.select_columns(list(FEATURES)), folder, side, per_shard)
    return facts


def _card(facts: dict[str, list[dict]], data: Path, repo_id: str) -> DatasetCard:
    everything = [fact for side in facts.values() for fact in side]
    names = [fact["name"] for fact in everything]
    groups = group_duplicates([f["image_hash"] for f in everything], [f["mask_hash"] for f in everything])
    twins = [
        [name for name, group in zip(names, groups, strict=True) if group == number]
        for number, count in sorted(Counter(groups).items())
        if count > 1
    ]
    header = card_header(
        data,
        {side: len(rows) for side, rows in facts.items()},
        FEATURES,
        license="cc-by-4.0",
        pretty_name="FIVES",
        tags=["medical", "retina", "fundus", "vessels", TAG],
    )
    return DatasetCard.from_template(
        header,
        template_path=str(CARD_TEMPLATE),
        repo_id=repo_id,
        num_images=len(everything),
        megabytes=header.dataset_info["download_size"] / 1e6,
        splits_table=_splits_table(facts),
        first_split=next(iter(facts)),
        split_sentence=_split_sentence(facts),
        twins=twins,
        rgba_masks=[fact["name"] for fact in everything if fact["mask_mode"] == "RGBA"],
        antialiased=[fact["name"] for fact in everything if fact["antialiased"]],
        sparse=[fact["name"] for fact in everything if fact["vessel_fraction"] < SPARSE_BELOW],
        sparse_below=SPARSE_BELOW,
    )


def _splits_table(facts: dict[str, list[dict]]) -> str:
    lines = [["published split", "images", *CONDITIONS, "vessel pixels"]]
    for side, rows in facts.items():
        conditions = [str(sum(row["condition"] == condition for row in rows)) for condition in CONDITIONS]
        vessels = float(np.mean([row["vessel_fraction"] for row in rows]))
        lines.append([side, str(len(rows)), *conditions, f"{100 * vessels:.1f} %"])
    return markdown_table(lines)


def _split_sentence(facts: dict[str, list[dict]]) -> str:
    if len(facts) == 2:
        return "Train and test are those of the published archive, complete."
    return f"It contains only images of the published {next(iter(facts))} split."
