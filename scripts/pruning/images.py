"""The images that a model is pruned on: checked, and divided into those to fit on and those to report on."""

import logging
from collections.abc import Sequence
from statistics import median

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets_fives.images import fingerprint_image, read_image

from ..inference.input_images import InputImage

logger = logging.getLogger(__name__)

# Of the images of the report: every so many of all, and at most this number.
REPORT_EVERY, REPORT_MOST = 5, 16
THUMBNAIL = (16, 16)
# Of 255, the standard deviation over images, averaged over a thumbnail: below, they show one scene.
ALIKE = 2.0


class UnlabelledImages(Sequence):
    """
    Images that are read when they are asked for.

    Args:
        inputs (`list[InputImage]`): Where they are.

    Attributes:
        names (`list[str]`): What to call them.
        hashes (`list[str]`): Fingerprints of their pixels.
        sizes (`list[tuple[int, int]]`): Width and height.
        thumbnails (`np.ndarray` of shape `(num_images, 16, 16, 3)`, `float32`): What they show, roughly.

    Raises:
        `ValueError`: for images that cannot be read, all of them by name.
    """

    def __init__(self, inputs: list[InputImage]):
        distinct: dict[str, InputImage] = {}
        sizes, thumbnails, problems = {}, {}, []
        for image in tqdm(inputs, desc="Reading", unit="image"):
            try:
                opened = self._open(image)
            except ValueError as error:
                problems.append(f"{image.name}: {error}")
                continue
            key = fingerprint_image(opened)
            distinct.setdefault(key, image)
            sizes[key] = opened.size
            thumbnails[key] = np.asarray(opened.resize(THUMBNAIL, Image.Resampling.BOX), dtype=np.float32)
        if problems:
            raise ValueError(f"{len(problems)} images cannot be read: {'; '.join(problems[:10])}")
        if len(distinct) < len(inputs):
            logger.warning("%d of %d images are copies of others: left out.", len(inputs) - len(distinct), len(inputs))
        self.inputs, self.hashes = list(distinct.values()), list(distinct)
        self.sizes = [sizes[key] for key in distinct]
        self.thumbnails = np.stack([thumbnails[key] for key in distinct])
        self.names = [image.public_name for image in self.inputs]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Image.Image:
        return self._open(self.inputs[index])

    @staticmethod
    def _open(image: InputImage) -> Image.Image:
        return read_image(image.read())


def check_variety(images: UnlabelledImages) -> None:
    """Raises `ValueError` for images to fit on that are fewer than two, or show one scene."""
    if len(images) < 2:
        raise ValueError(f"Got {len(images)} distinct images: at least 2 are needed, better 10 or more.")
    if images.thumbnails.std(axis=0).mean() < ALIKE:
        raise ValueError(
            f"The {len(images)} images look alike: what is fitted to one scene holds for that scene only. Give "
            "images as varied as those that will be predicted."
        )


def divide_images(num_images: int, seed: int) -> tuple[list[int], list[int]]:
    """Places of the images to fit on, and of those to report on, which nothing is fitted to."""
    order = np.random.default_rng(seed).permutation(num_images).tolist()
    num_reported = min(REPORT_MOST, max(1, num_images // REPORT_EVERY))
    return sorted(order[num_reported:]), sorted(order[:num_reported])


def check_scale(sizes: Sequence[tuple[int, int]], working_size: int | None) -> None:
    """Warn where images are much smaller than the model sees them: enlarged ones show nothing new."""
    longest = median(max(size) for size in sizes)
    if working_size and working_size > 2 * longest:
        logger.warning(
            "The images have %d pixels (the longer side), and are enlarged to the %d at which the checkpoint sees "
            "images: they show less than it knows. Set --working_size if that is not meant.",
            longest,
            working_size,
        )
