"""
Which images a training saw: a fingerprint of its data, and a list that travels with the checkpoint, so that
nobody measures on them unawares.
"""

import hashlib
import json
import logging
from pathlib import Path

import datasets
from transformers.utils import cached_file

from .former_names import FORMER_TRAINING_IMAGES, with_present_names

logger = logging.getLogger(__name__)

FILE = "training_images.json"


def describe_data(sides: dict[str, datasets.Dataset | datasets.IterableDataset]) -> dict:
    """
    What a run or a measurement records of its data.

    Args:
        sides (`dict`): Images by side, loaded with their fingerprints.

    Returns:
        `dict`: `fingerprint` of names, pixels and masks of every side, and `images` by side; `None` and nothing
        for sides that are streamed, which nobody has seen whole.
    """
    digest, counts = hashlib.blake2b(digest_size=16), {}
    for side, rows in sorted(sides.items()):
        if not isinstance(rows, datasets.Dataset):
            return {"fingerprint": None, "images": {}}
        counts[side] = len(set(rows["image_hash"]))
        for row in sorted(zip(rows["name"], rows["image_hash"], rows["mask_hash"], strict=True)):
            digest.update("\0".join((side, *row)).encode())
    return {"fingerprint": digest.hexdigest(), "images": counts}


def image_fingerprints(rows: datasets.Dataset | datasets.IterableDataset) -> set[str] | None:
    """Fingerprints of the images of a side; `None` for a stream."""
    return set(rows["image_hash"]) if isinstance(rows, datasets.Dataset) else None


def read_training_images(model_name_or_path: str, revision: str | None = None) -> set[str] | None:
    """
    Fingerprints of all images that a checkpoint was trained on, at any time.

    Args:
        model_name_or_path (`str`): A folder, or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit.

    Returns:
        `set[str]`, or `None` if the checkpoint does not say.
    """
    for name in (FILE, FORMER_TRAINING_IMAGES):
        path = cached_file(
            model_name_or_path,
            name,
            revision=revision or "main",
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None:
            return set(with_present_names(json.loads(Path(path).read_text(encoding="utf-8")))["images"])
    return None


def write_training_images(folder: Path, images: set[str] | None) -> None:
    """Write the list into a checkpoint; nothing where it is not known whole."""
    if images is not None:
        content = {"fingerprint": "blake2b-128 of size and decoded RGB pixels", "images": sorted(images)}
        (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def refuse_trained(
    measured: dict[str, str], trained: set[str] | None, checkpoint: str, allowed: bool = False
) -> list[str]:
    """
    Images that a checkpoint was trained on say nothing of how it does on new ones.

    Args:
        measured (`dict[str, str]`): Fingerprints of the images that are measured, by name.
        trained (`set[str]`, *optional*): Those of the training; `None` if they are not known, which is logged.
        checkpoint (`str`): For the message.
        allowed (`bool`, *optional*, defaults to `False`): Whether the user wants to know it all the same.

    Returns:
        `list[str]`: Names of those among them.

    Raises:
        `ValueError`: if there are any, and they are not allowed.
    """
    if trained is None:
        logger.warning(
            "%s does not say which images it was trained on (no %s): so these images may be among them.",
            checkpoint,
            FILE,
        )
        return []
    seen = sorted(name for name, fingerprint in measured.items() if fingerprint in trained)
    if seen and not allowed:
        more = f" and {len(seen) - 5} more" if len(seen) > 5 else ""
        raise ValueError(
            f"{checkpoint} was trained on {len(seen)} of the {len(measured)} images to measure: "
            f"{', '.join(seen[:5])}{more}. Give the split, seed and side of the training, or "
            "--allow_training_images."
        )
    if seen:
        logger.warning("%s was trained on %d of the %d images.", checkpoint, len(seen), len(measured))
    return seen
