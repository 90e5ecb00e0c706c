"""The FIVES archive as a data set for the Hub: Parquet shards, and a card whose numbers are computed."""

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetInfo, Features, SplitDict, SplitInfo, Value
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image

from datasets_fives import FEATURES
from datasets_fives.features import CONDITIONS, FINGERPRINTS, Record
from datasets_fives.images import fingerprint
from datasets_fives.loading import checked_rows
from datasets_fives.sources.fives_archive import list_archive
from datasets_fives.splits import group_duplicates

from ..common.former_names import with_present_names
from ..reporting.tables import markdown_table
from .prediction_dataset import write_shards

logger = logging.getLogger(__name__)

TAG = "reg4pru-images"

CARD_TEMPLATE = Path(__file__).resolve().parent / "dataset_card_template.md"
# Vessels cover about a tenth of an image; in the masks of nearly unreadable images far less than this.
SPARSE_BELOW = 0.01
PREPARED = ".prepared.json"  # describes the source files; not uploaded
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
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        known = output_dir / PREPARED
        noted = with_present_names(json.loads(known.read_text(encoding="utf-8"))) if known.is_file() else {}
        if noted and noted == _made_from(images, repo_id, images_per_shard, noted.get("version", VERSION)):
            logger.info("%s was prepared from the same files and is used as it is.", output_dir)
            return
        raise ValueError(f"{output_dir} is not empty, and was not prepared from these files: choose another folder.")

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed, so that a killed run leaves nothing that looks finished.
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as scratch:
        made = Path(scratch) / "made"
        (made / "data").mkdir(parents=True)
        parts = {side: [image for image in images if image.split == side] for side in ("train", "test")}
        facts = {
            side: _write_side(members, side, made / "data", Path(scratch) / "cache", images_per_shard)
            for side, members in parts.items()
            if members
        }
        _card(facts, made / "data", repo_id).save(made / "README.md")
        made_from = _made_from(images, repo_id, images_per_shard, VERSION)
        (made / PREPARED).write_text(json.dumps(made_from), encoding="utf-8")
        if output_dir.exists():
            output_dir.rmdir()
        made.rename(output_dir)


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
    sizes = {side: sum(path.stat().st_size for path in data.glob(f"{side}-*.parquet")) for side in facts}
    infos = SplitDict()
    for side, rows in facts.items():
        infos.add(SplitInfo(name=side, num_bytes=sizes[side], num_examples=len(rows)))
    info = DatasetInfo(
        features=FEATURES, splits=infos, download_size=sum(sizes.values()), dataset_size=sum(sizes.values())
    )
    card_data = DatasetCardData(
        license="cc-by-4.0",
        pretty_name="FIVES",
        task_categories=["image-segmentation"],
        task_ids=["semantic-segmentation"],
        tags=["medical", "retina", "fundus", "vessels", TAG],
        size_categories=["n<1K" if len(everything) < 1000 else "1K<n<10K"],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(card_data)
    files = [{"split": side, "path": f"data/{side}-*"} for side in facts]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(card_data)
    return DatasetCard.from_template(
        card_data,
        template_path=str(CARD_TEMPLATE),
        repo_id=repo_id,
        num_images=len(everything),
        megabytes=sum(sizes.values()) / 1e6,
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
