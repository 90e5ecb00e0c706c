"""Vessel masks as they are found, turned into zeros and ones; what is no mask is refused."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from .images import open_image, scaled_size

# The label of pixels that do not count.
IGNORED = 255
# How far from black and white an antialiased or compressed mask may stray.
_NEARLY = 32
# Share of pixels that may lie between black and white in a mask with antialiased edges.
_MAX_BETWEEN = 0.05
# Share of those that may lie inside an even patch of 3 x 3: edges have none, areas of a class of its own have many.
_MAX_EVEN = 0.05
_CURE = (
    "a mask is black and white, or has 0 and 1 (and 255 where pixels do not count); for a map of labels, such as "
    "arteries and veins, say which are vessels: vessel_labels=[1, 2]"
)


def binary_mask(mask: Image.Image, vessel_labels: Sequence[int] | None = None) -> np.ndarray:
    """
    Turn a mask as it is found into zeros and ones.

    | found | result |
    |---|---|
    | {0, 1}, any mode | as it is |
    | {0, 1, 255}, with some 1 | a label map: 255 stays, these pixels do not count |
    | {0, 255}, with antialiased edges or compressed, grey, RGB, RGBA, palette of greys, 1-bit, 16-bit | 1 where brighter than 127 |
    | palette of colours | its indices, as above |
    | with `vessel_labels` | 1 where the value is one of them, 255 stays unless it is one, 0 elsewhere |
    | anything else | refused |

    Args:
        mask (`PIL.Image.Image`): The mask. An alpha channel is ignored.
        vessel_labels (`Sequence[int]`, *optional*): The values of a label map that are vessels.

    Returns:
        `np.ndarray` of shape (height, width): `uint8` of {0, 1}, and 255 in label maps.

    Raises:
        ValueError: If the image is no mask; the values seen are in the message.
    """  # noqa: E501 the table
    pixels = _one_channel(mask)
    seen = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()
    if vessel_labels is not None:
        labels = np.zeros(256, np.uint8)
        labels[IGNORED] = IGNORED
        labels[list(vessel_labels)] = 1
        return labels[pixels]
    others = [value for value in seen if value != IGNORED]
    if not others or others[-1] <= 1:
        if 1 in seen or IGNORED not in seen:
            return pixels
        return (pixels > 127).astype(np.uint8)
    if seen[-1] < 255 - _NEARLY or others[-1] <= _NEARLY:
        raise ValueError(f"mask is not binary (its values are {_some(seen)}; {_CURE})")
    _check_edges(pixels, seen)
    return (pixels > 127).astype(np.uint8)


def check_vessel_labels(vessel_labels: Sequence[int] | None) -> None:
    """Raise `ValueError` unless these are distinct labels of 1 to 255, or `None`."""
    if vessel_labels is not None and (
        not vessel_labels
        or len(set(vessel_labels)) < len(vessel_labels)
        or not all(isinstance(label, int) and 1 <= label <= 255 for label in vessel_labels)
    ):
        raise ValueError(f"vessel_labels must be distinct whole numbers from 1 to 255, got {vessel_labels!r}.")


def counted_pixels(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Part a mask of {0, 1, 255} into what is vessel and what counts.

    Args:
        mask (`np.ndarray` of shape (height, width)): As [`binary_mask`] gives it.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: `bool`, of the same shape: vessel; not ignored.
    """
    return mask == 1, mask != IGNORED


def check_foreground(masks: Iterable[np.ndarray], where: str) -> None:
    """
    Refuse a data set whose masks are all empty: nothing can be learnt or measured there.

    Args:
        masks (`Iterable[np.ndarray]`): Masks or labels of {0, 1, 255}. Read up to the first that has a 1.
        where (`str`): What the message calls the data set.

    Raises:
        ValueError: If no mask has a 1; with the number of masks and of pixels of each value.
    """
    count, pixels = 0, np.zeros(256, np.int64)
    for mask in masks:
        if np.any(mask == 1):
            return
        count += 1
        pixels += np.bincount(np.asarray(mask, np.uint8).ravel(), minlength=256)
    found = ", ".join(f"{number} pixels of {value}" for value, number in enumerate(pixels.tolist()) if number)
    raise ValueError(f"{where} has no vessels: {count} masks with {found or 'no pixels'}, none of 1.")


def _one_channel(mask: Image.Image) -> np.ndarray:
    """Brightness, or the indices of a palette of colours, as `uint8`."""
    indices = None
    if mask.mode in ("P", "PA"):
        indices, mask = np.asarray(mask), mask.convert("RGB")
        indices = indices if indices.ndim == 2 else indices[..., 0]
    elif mask.mode in ("CMYK", "YCbCr", "LAB", "HSV"):  # where white is not the highest value of each channel
        mask = mask.convert("RGB")
    pixels = np.asarray(mask)
    if pixels.ndim == 3:
        colours = pixels[..., :1] if pixels.shape[-1] == 2 else pixels[..., :3]
        spread = np.abs(colours.astype(np.int16) - colours[..., :1]).max(initial=0)
        if spread <= 2:  # JPEG rounds
            pixels = colours[..., 0]
        elif indices is not None:
            pixels = indices
        else:
            raise ValueError(f"mask is not binary (its colour channels disagree; {_CURE})")
    if pixels.dtype == np.uint8:
        return pixels
    lowest, highest = pixels.min(initial=0), pixels.max(initial=0)
    if not (lowest >= 0 and highest <= 65535) or not np.array_equal(pixels, np.rint(pixels)):
        raise ValueError(f"mask is not binary (values from {lowest} to {highest} in mode {mask.mode}; {_CURE})")
    if highest <= 255:
        return pixels.astype(np.uint8)
    if np.any((pixels > 0) & (pixels < 256)):  # labels that 8 bits would lose
        raise ValueError(f"mask is not binary (16 bits, with both small and large values; {_CURE})")
    if highest < 2 * 257:  # would become 1, a vessel
        raise ValueError(f"mask is not binary (16 bits, with no value above {highest}; {_CURE})")
    return np.rint(pixels / 257).astype(np.uint8)


def _check_edges(pixels: np.ndarray, seen: list[int]) -> None:
    """Whether what is grey is only the edge between black and white."""
    grey = (pixels > _NEARLY) & (pixels < 255 - _NEARLY)
    between = float(np.mean(grey))
    if between > _MAX_BETWEEN:
        raise ValueError(
            f"mask is not binary ({between:.0%} of its pixels are neither near 0 nor near 255, its values are "
            f"{_some(seen)}; {_CURE})"
        )
    if between:
        even = ndimage.maximum_filter(pixels, 3) == ndimage.minimum_filter(pixels, 3)
        if np.count_nonzero(even & grey) > _MAX_EVEN * np.count_nonzero(grey):
            raise ValueError(f"mask is not binary (areas of grey among its values {_some(seen)}; {_CURE})")


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (f", ... {values[-1]}" if len(values) > 8 else "")


def resize_mask(mask: np.ndarray, longest: int) -> np.ndarray:
    """
    Bring a mask to a scale like its image: area average with a threshold at one half.

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
    Cut the same square out of an image and its mask, which may reach beyond them.

    Args:
        image (`PIL.Image.Image`): RGB.
        mask (`np.ndarray` of shape (height, width)): Its mask.
        left (`int`): First column, negative left of the image.
        top (`int`): First row.
        side (`int`): Side of the square.

    Returns:
        `tuple[PIL.Image.Image, np.ndarray]`: Beyond its edge the image is mirrored and the mask is 255.
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


def fingerprint_mask(mask: np.ndarray) -> str:
    """Fingerprint of where a mask is 1; `""` for an empty mask, which says nothing about twins."""
    vessels = mask == 1
    if not vessels.any():
        return ""
    return hashlib.blake2b(str(mask.shape).encode() + np.packbits(vessels).tobytes(), digest_size=16).hexdigest()


def read_mask(source: str | Path | bytes, vessel_labels: Sequence[int] | None = None) -> np.ndarray:
    """
    Read a vessel mask from a file or its bytes; turned as its EXIF orientation says, like the image.

    Args:
        source (`str`, `Path` or `bytes`): The file, or what it holds.
        vessel_labels (`Sequence[int]`, *optional*): See [`~datasets_fives.masks.binary_mask`].

    Returns:
        `np.ndarray` of shape (height, width): `uint8`, 1 is vessel, 0 is not, 255 (label maps only) does not count.

    Raises:
        ValueError: As [`read_image`], and if the picture is no mask.
    """
    return binary_mask(open_image(source), vessel_labels)
