"""Predictions as a data set for the Hub: Parquet shards and a card."""

import shutil
from pathlib import Path

from datasets import Dataset, Features, Image, Value
from datasets.table import embed_table_storage
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from ..inference.input_images import InputImage
from ..inference.output_folder import ResultFolder, result_of
from ..inference.result_table import PIXELS
from .transfer import has_tag

ROWS_PER_SHARD = 500
TAG = "reg4pru-predictions"
_NUMBERS = {"vessel_fraction": "float64", "skeleton_length": "int64", "skeleton_density": "float64"}
CARD = """# Vessel masks

Predictions of `{model}` by reg4pru (arXiv 2602.02163): {count} rows, one per image and keep rate.

- `mask`: 0 or 255, at the size of the image. `probability`: 16 bits, 65535 is probability 1.
- `vessel_fraction`, `skeleton_length` (pixels), `skeleton_density` (1 / pixel): inside the field of view.
- `num_tokens`: tokens that the layers ran on, summed over layers and tiles.

Research software, not a medical device. The images are not part of this data set and have a licence of their own.
"""
CLASS_CARD = """# Predicted {title}

Predictions of `{model}` by reg4pru (arXiv 2602.02163): {count} rows, one per image and keep rate.

- `mask`: {mask}
- `pixels_<class>`: how many pixels of the image have that class.
- `num_tokens`: tokens that the layers ran on, summed over layers and tiles.

Classes: {classes}.

Research software. The images are not part of this data set and have a licence of their own.
"""


def check_replaceable(folder: Path) -> None:
    """
    Refuse to replace files of somebody else.

    Args:
        folder (`Path`): Folder of the data set; an earlier one of this command is replaced.

    Raises:
        `ValueError`: if it is a file, or contains other files or a data set whose card does not have [`TAG`].
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, and the data set needs a folder there: choose another --output_dir.")
    found = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir()]
    card = folder / "README.md"
    foreign = [path for path in found if not (path == Path("README.md") or path.match("data/train-*.parquet"))]
    if not foreign and found and not (card.exists() and has_tag(card, TAG)):
        foreign = found
    if foreign:
        raise ValueError(
            f"{folder / foreign[0]} is not part of a data set of this command, which would replace {folder}: choose "
            "another --output_dir, or move it."
        )


def write_dataset(folder: Path, results: Path, images: list[InputImage], model: str) -> None:
    """
    Write `data/train-*.parquet` and `README.md` from the images and tables of `reg4pru predict`.

    Args:
        folder (`Path`): Folder of the data set; an earlier one is replaced when the new one is complete.
        results (`Path`): Output folder of the predictions.
        images (`list[InputImage]`): The images whose predictions are written.
        model (`str`): The model, named in the card; of a local folder only its own name.
    """
    rows = ResultFolder(results).rows_of(images)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "data").mkdir(parents=True)
    names = [name.removeprefix(PIXELS) for name in rows[0][1] if name.startswith(PIXELS)] if rows else []
    features = _features(names)
    dataset = Dataset.from_list([_row(row, results, image, features) for image, row in rows], features=features)
    write_shards(dataset, unfinished / "data", "train", ROWS_PER_SHARD)
    tags = ["semantic-segmentation", TAG] if names else ["retina", "vessels", TAG]
    card = DatasetCardData(task_categories=["image-segmentation"], tags=tags)
    MetadataConfigs({"default": {"data_files": [{"split": "train", "path": "data/train-*"}]}}).to_dataset_card_data(
        card
    )
    text = _card_text(Path(model).resolve().name if Path(model).exists() else model, len(rows), names)
    DatasetCard(f"---\n{card.to_yaml()}\n---\n\n{text}").save(unfinished / "README.md")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _features(names: list[str]) -> Features:
    """Columns of predictions of classes, or of vessels where they have no names; two classes have a probability."""
    columns = {"name": Value("string"), "keep_rate": Value("string"), "mask": Image()}
    if len(names) <= 2:
        columns["probability"] = Image()
    numbers = {f"{PIXELS}{name}": "int64" for name in names} or _NUMBERS
    return Features(columns | {name: Value(kind) for name, kind in {**numbers, "num_tokens": "int64"}.items()})


def _card_text(model: str, count: int, names: list[str]) -> str:
    if not names:
        return CARD.format(model=model, count=count)
    mask = "a label map with a palette, whose indices are the classes below, at the size of the image."
    if len(names) == 2:
        mask = f"0 or 255 ({names[1]}), at the size of the image. `probability`: 16 bits, 65535 is probability 1."
    listed = ", ".join(f"{index} {name}" for index, name in enumerate(names))
    title = "masks" if len(names) == 2 else "label maps"
    return CLASS_CARD.format(model=model, count=count, mask=mask, classes=listed, title=title)


def _row(row: dict[str, str], results: Path, image: InputImage, features: Features) -> dict:
    content = {"name": image.public_name, "keep_rate": row["keep_rate"]}
    for name, feature in features.items():
        if isinstance(feature, Image):
            path = results / result_of(row, name)
            # `datasets` takes '::' in a path for a chain of URLs; the others are read when they are written.
            content[name] = {"bytes": path.read_bytes(), "path": None} if "::" in str(path) else str(path)
        elif name not in content:
            content[name] = int(row[name]) if feature.dtype == "int64" else float(row[name])
    return content


# Few images of 2048 x 2048 (5 MB each), as streaming downloads a whole group to read its first row.
ROWS_PER_GROUP = 8


def write_shards(rows: Dataset, folder: Path, side: str, per_shard: int) -> None:
    """
    Write `<side>-<index>-of-<count>.parquet`.

    Args:
        rows (`Dataset`): The rows; of images that are paths the bytes are embedded.
        folder (`Path`): An existing folder.
        side (`str`): Name of the split.
        per_shard (`int`): Rows per file.
    """
    count = max(1, -(-len(rows) // per_shard))
    for index in range(count):
        shard = rows.shard(count, index, contiguous=True).with_format("arrow")
        shard = shard.map(embed_table_storage, batched=True, batch_size=ROWS_PER_GROUP, keep_in_memory=True)
        shard.to_parquet(folder / f"{side}-{index:05d}-of-{count:05d}.parquet", batch_size=ROWS_PER_GROUP)
