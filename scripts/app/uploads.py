"""Images that visitors upload: limits of their size, and errors that say what to do but nothing about this machine."""

import base64
import binascii
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from datasets_fives.images import FORMATS, as_rgb, open_image
from datasets_fives.masks import counted_pixels, read_mask
from modeling_reg4pru.label_maps import read_label_map

MAX_MEGABYTES = 40
MAX_MEGAPIXELS = 25  # a 4096 x 4096 image has 17
_SMALLEST_SIDE = 16


def open_upload(content: bytes) -> Image.Image:
    """
    The image in the bytes of a file, upright RGB of 8 bits.

    Args:
        content (`bytes`): What the file holds.

    Raises:
        `ValueError`: If it is no image, or one that is too large or too small.
    """
    _check_size(content)
    try:
        image = open_image(content)
    except ValueError:
        raise ValueError("This image is damaged or incomplete: save it again as PNG or JPEG.") from None
    return as_rgb(image)


def open_truth(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """
    The vessel mask in the bytes of a file.

    Args:
        content (`bytes`): What the file holds.
        size (`tuple[int, int]`): Height and width of the image.

    Returns:
        `np.ndarray` of shape `(height, width)`, `bool`.

    Raises:
        `ValueError`: If it is no mask, or that of an image of another size.
    """
    _check_size(content)
    try:
        mask = read_mask(content)
    except ValueError as error:
        raise ValueError(f"The true mask is not a vessel mask: {error}") from None
    _check_same_size(mask, size, "mask")
    return counted_pixels(mask)[0]


def open_label_map(content: bytes, size: tuple[int, int], num_labels: int) -> np.ndarray:
    """
    The label map in the bytes of a file.

    Args:
        content (`bytes`): What the file holds.
        size (`tuple[int, int]`): Height and width of the image.
        num_labels (`int`): Number of classes.

    Returns:
        `np.ndarray` of shape `(height, width)`, `int32`: classes, and 255 where pixels do not count.

    Raises:
        `ValueError`: If it is no label map of these classes, or that of an image of another size.
    """
    _check_size(content)
    try:
        labels = read_label_map(open_image(content), num_labels)
    except ValueError as error:
        raise ValueError(f"The true label map does not have these classes: {error}") from None
    _check_same_size(labels, size, "label map")
    return labels


def decode_base64(text: str) -> bytes:
    """
    The bytes of a file that was sent as text.

    Args:
        text (`str`): Base64, with or without `data:image/...;base64,` before it.

    Raises:
        `ValueError`: If it is no base64, or longer than a file may be.
    """
    if len(text) > MAX_MEGABYTES * 1_400_000:
        raise ValueError(f"The image is larger than {MAX_MEGABYTES} MB.")
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("`image` is not base64: send the bytes of an image file, encoded in base64.") from None


def read_upload(path: str | Path) -> bytes:
    """The bytes of an uploaded file; raises `ValueError` if there are too many."""
    if Path(path).stat().st_size > MAX_MEGABYTES * 1_000_000:
        raise ValueError(f"This file is larger than {MAX_MEGABYTES} MB.")
    return Path(path).read_bytes()


def _check_size(content: bytes) -> None:
    """Raises `ValueError` unless the header is that of an image within the limits; no pixel is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the stricter one
            with Image.open(BytesIO(content), formats=FORMATS) as opened:
                width, height = opened.size
    except Image.DecompressionBombError:
        raise ValueError(f"This image has more than the {MAX_MEGAPIXELS} megapixels that are allowed here.") from None
    except Exception:  # damaged headers make Pillow's readers stumble in any way
        raise ValueError("This file is not an image: choose a PNG, JPEG or TIFF file.") from None
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise ValueError(
            f"This image has {width} × {height} pixels, more than the {MAX_MEGAPIXELS} megapixels that are allowed "
            "here: make it smaller first."
        )
    if min(width, height) < _SMALLEST_SIDE:
        raise ValueError(f"This image has {width} × {height} pixels: both sides must be at least {_SMALLEST_SIDE}.")


def _check_same_size(truth: np.ndarray, size: tuple[int, int], what: str) -> None:
    if truth.shape != size:
        raise ValueError(
            f"The true {what} has {truth.shape[1]} × {truth.shape[0]} pixels, the image {size[1]} × {size[0]}: "
            "they must be the same."
        )
