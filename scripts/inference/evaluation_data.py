"""The images that a checkpoint is measured on, as the commands that measure take them."""

from dataclasses import dataclass, field
from typing import Literal

from datasets import Dataset
from transformers import BaseImageProcessor

from datasets_fives import load_vessels

from ..common.data_overlap import read_training_images, refuse_trained


@dataclass(kw_only=True)
class EvaluationDataArguments:
    """What is measured, and on which images."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint: a folder or a Hub id."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    dataset: str = field(default="synthetic", metadata={"help": "Folder, Hub id, saved DatasetDict or 'synthetic'."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub data set."})
    split: str = field(
        default="official",
        metadata={"help": "'official', 'resplit', 'sample', or a YAML or JSON file of names by side."},
    )
    condition_pattern: str | None = field(
        default=None, metadata={"help": "Regular expression whose one group is the condition in a name."}
    )
    vessel_labels: list[int] | None = field(
        default=None, metadata={"help": "Values of a label map that are vessels, such as 1 2; the rest is background."}
    )
    synthetic_counts: list[int] = field(
        default_factory=lambda: [64, 8, 16],
        metadata={"help": "Synthetic images for train, validation and test; give what the training was given."},
    )
    working_size: int | None = field(
        default=None, metadata={"help": "Longer side at which it is measured; default: the images' own size."}
    )
    allow_training_images: bool = field(
        default=False, metadata={"help": "Measure images that the checkpoint was trained on, too."}
    )
    limit: int | None = field(default=None, metadata={"help": "Measure only the first so many images."})
    seed: int = field(default=0, metadata={"help": "Seed of synthetic images, splits and random selection."})
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})


@dataclass(kw_only=True)
class AsSeenArguments(EvaluationDataArguments):
    """The same, for commands that measure at the size at which the model sees images."""

    working_size: int | None = field(
        default=None,
        metadata={"help": "Longer side at which it is measured; default: that at which the model sees it."},
    )


def load_images(arguments: EvaluationDataArguments, side: str) -> Dataset:
    """The images of a side, to measure; raises `ValueError` if there are none."""
    sides = load_vessels(
        arguments.dataset,
        split=arguments.split,
        seed=arguments.seed,
        working_size=arguments.working_size,
        condition_pattern=arguments.condition_pattern,
        vessel_labels=arguments.vessel_labels,
        revision=arguments.dataset_revision,
        synthetic_counts=tuple(arguments.synthetic_counts),
        fingerprints=True,
    )
    if side not in sides:
        raise ValueError(f"There is no side {side!r}: {arguments.dataset} has the sides {', '.join(sides)}.")
    images = sides[side]
    if not len(images):
        raise ValueError(f"The side {side!r} of {arguments.dataset} has no images.")
    return images.select(range(min(arguments.limit or len(images), len(images))))


def refuse_trained_on(arguments: EvaluationDataArguments, images: Dataset) -> tuple[dict[str, str], list[str]]:
    """
    Fingerprints of the images by name, and the names of those that the checkpoint was trained on; raises
    `ValueError` if there are any, and the arguments do not allow it.
    """
    hashes = dict(zip(images["name"], images["image_hash"], strict=True))
    trained = read_training_images(arguments.model_name_or_path, arguments.model_revision)
    allowed = arguments.allow_training_images
    return hashes, refuse_trained(hashes, trained, arguments.model_name_or_path, allowed)


def load_as_seen(arguments: AsSeenArguments, processor: BaseImageProcessor, side: str) -> Dataset:
    """
    The images of a side, at the size at which the model of an image processor sees them, which is then that of
    the arguments; raises `ValueError` if there are none, or the checkpoint was trained on some of them.
    """
    arguments.working_size = arguments.working_size or processor.working_size
    images = load_images(arguments, side)
    refuse_trained_on(arguments, images)
    return images
