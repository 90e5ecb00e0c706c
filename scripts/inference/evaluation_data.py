"""The images that a checkpoint is measured on, as the commands that measure take them."""

from datasets import Dataset
from transformers import BaseImageProcessor

from ..common.data_overlap import read_training_images, refuse_trained
from ..common.dataset_loading import load_sides
from ..common.spread import spread
from .arguments import AsSeenArguments, EvaluationDataArguments


def load_images(arguments: EvaluationDataArguments, side: str) -> Dataset:
    """The images of a side, to measure; raises `ValueError` if there are none."""
    sides = load_sides(arguments, arguments.seed)
    if side not in sides:
        raise ValueError(f"There is no side {side!r}: {arguments.dataset} has the sides {', '.join(sides)}.")
    images = sides[side]
    if not len(images):
        raise ValueError(f"The side {side!r} of {arguments.dataset} has no images.")
    return images.select(spread(len(images), arguments.limit))


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
