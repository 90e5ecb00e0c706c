"""Pixels of photographs and masks: one way to resize, to continue beyond the edge, fingerprints, PNG bytes."""

import hashlib
from io import BytesIO

import numpy as np
from PIL import Image

from .masks import IGNORED


def scaled_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height of a picture whose longer side is brought to `longest`; the other side is rounded."""
    return tuple(max(1, round(side * longest / max(width, height))) for side in (width, height))


def resize_image(image: Image.Image, longest: int) -> Image.Image:
    """
    Bring a photograph to a scale, its aspect kept.

    Args:
        image (`PIL.Image.Image`): RGB.
        longest (`int`): Its longer side afterwards, in pixels; a smaller photograph is enlarged.

    Returns:
        `PIL.Image.Image`: Bilinear, antialiased when it shrinks: the filter of the image processor.
    """
    size = scaled_size(*image.size, longest)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, longest: int) -> np.ndarray:
    """
    Bring a mask to a scale like its photograph: area average with a threshold at one half.

    The area average equals the nearest pixel when enlarging, and keeps thin vessels best when shrinking.

    Args:
        mask (`np.ndarray` of shape (height, width)): `uint8` of {0, 1}, 255 where pixels do not count.
        longest (`int`): Its longer side afterwards, in pixels.

    Returns:
        `np.ndarray`: `uint8` of {0, 1}, and 255 where most of the pixels did not count.
    """
    size = scaled_size(*mask.shape[::-1], longest)
    if mask.shape[::-1] == size:
        return mask
    resized = _most(mask == 1, size).astype(np.uint8)
    if mask.max() == IGNORED:
        resized[_most(mask == IGNORED, size)] = IGNORED
    return resized


def _most(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    average = Image.fromarray(region * np.uint8(255)).resize(size, Image.Resampling.BOX)
    return np.asarray(average) > 127


def cut_box(image: Image.Image, mask: np.ndarray, left: int, top: int, side: int) -> tuple[Image.Image, np.ndarray]:
    """
    Cut the same square out of a photograph and its mask, which may reach beyond them.

    Args:
        image (`PIL.Image.Image`): RGB.
        mask (`np.ndarray` of shape (height, width)): Its mask.
        left (`int`): First column, negative left of the photograph.
        top (`int`): First row.
        side (`int`): Side of the square.

    Returns:
        `tuple[PIL.Image.Image, np.ndarray]`: Beyond its edge the photograph is mirrored and the mask is 255.
    """
    height, width = mask.shape
    right, bottom = left + side, top + side
    inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    image, mask = image.crop(inside), mask[inside[1] : inside[3], inside[0] : inside[2]]
    if mask.shape == (side, side):
        return image, mask
    margins = ((inside[1] - top, bottom - inside[3]), (inside[0] - left, right - inside[2]))
    # Of indices, not of pixels: mirrors strips of less than half the square, too, and copies the pixels once.
    rows, columns = (
        np.pad(np.arange(length), margin, mode="reflect") for length, margin in zip(mask.shape, margins, strict=True)
    )
    mirrored = Image.fromarray(np.asarray(image)[rows[:, None], columns])
    return mirrored, np.pad(mask, margins, constant_values=IGNORED)


def fingerprint_image(image: Image.Image) -> str:
    """Fingerprint of the decoded pixels, so that the same photograph in two files is recognised."""
    return hashlib.blake2b(str(image.size).encode() + image.tobytes(), digest_size=16).hexdigest()


def fingerprint_text(text: str) -> str:
    """Fingerprint of something that is known by its description."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fingerprint_mask(mask: np.ndarray) -> str:
    """Fingerprint of where a mask is 1; `""` for an empty mask, which says nothing about twins."""
    vessels = mask == 1
    if not vessels.any():
        return ""
    return hashlib.blake2b(str(mask.shape).encode() + np.packbits(vessels).tobytes(), digest_size=16).hexdigest()


def encode_png(pixels: Image.Image | np.ndarray) -> dict:
    """PNG bytes in the form in which `datasets` stores an image."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return {"path": None, "bytes": buffer.getvalue()}
