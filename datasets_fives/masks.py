"""Vessel masks of any kind as 0, 1 and 255 (ignored); what is not a mask is refused."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from .images import fingerprint, open_image, scaled_size

# The label of pixels that do not count.
IGNORED = 255
# An antialiased or compressed mask has pixels between black and white, but few, and few of these in even patches of
# 3 x 3: edges have none there, areas of a class of their own have many.
_GREY = range(33, 223)
_FEW = 0.05
# Dark grey that is no edge of anything white is lost. Thin vessels that were shrunk leave little of it, in many
# values; a class of its own, such as arteries of 100 beside veins of 255, leaves all of it, in very few values.
_LOST, _LOST_OF_FEW_VALUES = 0.5, 0.1
_FEW_VALUES = 4
# More of an image is never vessel: it was drawn black on white, or labels the background 1.
_MOST = 0.6
_EXPECTED = (
    "expected black and white, or 0 and 1, with 255 for pixels to be ignored; in a label map, such as one of arteries "
    "and veins, name the vessels: vessel_labels=[1, 2], or all classes: classes=[...]"
)


def read_mask(source: str | Path | bytes, vessel_labels: Sequence[int] | None = None) -> np.ndarray:
    """
    Read a vessel mask file, turned as its EXIF orientation says, like the image.

    Args:
        source (`str`, `Path` or `bytes`): The file, or its content.
        vessel_labels (`Sequence[int]`, *optional*): See [`binary_mask`].

    Returns:
        `np.ndarray` of shape `(height, width)`: See [`binary_mask`].

    Raises:
        ValueError: As [`~datasets_fives.images.open_image`], [`binary_mask`] and, without `vessel_labels`,
            [`check_share`].
    """
    mask = binary_mask(open_image(source), vessel_labels)
    if vessel_labels is None:
        check_share(mask)
    return mask


def binary_mask(mask: Image.Image, vessel_labels: Sequence[int] | None = None) -> np.ndarray:
    """
    Convert a mask to zeros and ones.

    | mask | result |
    |---|---|
    | {0, 1}, any mode | unchanged |
    | {0, 1, 255}, with some 1 | a label map: 255 stays, these pixels are ignored |
    | {0, 255}, antialiased or compressed, too; grey, RGB, RGBA, palette of greys, 1-bit, 16-bit | 1 where above 127 |
    | palette of colours | its indices, as above |
    | one colour with a transparent background | its opacity, as above |
    | with `vessel_labels` | 1 where the value is one of them, 255 stays unless it is one, 0 elsewhere |
    | anything else | refused |

    Args:
        mask (`PIL.Image.Image`): The mask. What is transparent must be black, unless all is of one colour.
        vessel_labels (`Sequence[int]`, *optional*): The values of a label map that are vessels.

    Returns:
        `np.ndarray` of shape `(height, width)`: `uint8`, 1 is vessel, 0 is not, 255 (label maps only) is ignored.

    Raises:
        ValueError: If the image is not a mask; with the values found in it.
    """
    return interpret_mask(mask, vessel_labels)[0]


def interpret_mask(mask: Image.Image, vessel_labels: Sequence[int] | None = None) -> tuple[np.ndarray, str]:
    """
    [`binary_mask`], and what 255 means in it: the masks of a data set must not disagree about that.

    Returns:
        `tuple[np.ndarray, str]`: The mask, and `"vessel"`, `"ignored"`, or `""` if there is no 255 or the labels were
        named.
    """
    pixels = _one_channel(mask)
    if vessel_labels is not None:
        labels = np.zeros(256, np.uint8)
        labels[IGNORED] = IGNORED
        labels[list(vessel_labels)] = 1
        return labels[pixels], ""
    values = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()
    others = [value for value in values if value != IGNORED]
    if IGNORED not in values and others[-1] <= 1:
        return pixels, ""
    if others and others[-1] == 1:
        return pixels, "ignored"
    if others and others[-1] > 1:
        _check_edges(pixels, values, others)
    return (pixels > 127).astype(np.uint8), "vessel"


def _check_edges(pixels: np.ndarray, values: list[int], others: list[int]) -> None:
    """Refuse values between black and white unless they are the soft edges of what is white."""
    listed = ", ".join(map(str, values[:8])) + (f", ... {values[-1]}" if len(values) > 8 else "")
    if values[-1] < _GREY.stop or others[-1] < _GREY.start:
        raise _not_binary(f"its values are {listed}")
    grey = (pixels >= _GREY.start) & (pixels < _GREY.stop)
    share = float(np.mean(grey))
    if share > _FEW:
        raise _not_binary(f"{share:.0%} of its pixels are neither near 0 nor near 255, its values are {listed}")
    brightest = ndimage.maximum_filter(pixels, 3)
    if share and np.mean((brightest == ndimage.minimum_filter(pixels, 3))[grey]) > _FEW:
        raise _not_binary(f"areas of grey among its values {listed}")
    # Compression spreads what is nearly black over many values; where there are few, none is noise.
    darkest = 0 if len(values) <= 8 else _GREY.start - 1
    lost = np.bincount(pixels[(pixels > darkest) & (brightest <= 127)], minlength=256)
    few_values = np.sort(lost)[-_FEW_VALUES:].sum() > 0.8 * lost.sum()
    if lost.sum() > (_LOST_OF_FEW_VALUES if few_values else _LOST) * np.count_nonzero(pixels > 127):
        raise _not_binary(f"lines of grey among its values {listed}")


def _one_channel(mask: Image.Image) -> np.ndarray:
    """Brightness, opacity if all is of one colour, or the indices of a palette of colours; as `uint8`."""
    indices = np.asarray(mask.getchannel(0)) if mask.mode in ("P", "PA") else None
    if mask.has_transparency_data and mask.mode in ("1", "L", "P", "PA", "RGB"):
        mask = mask.convert("RGBA")
    # A palette of colours; CMYK, YCbCr, LAB, HSV.
    elif indices is not None or (len(mask.getbands()) > 2 and mask.getbands()[:3] != ("R", "G", "B")):
        mask = mask.convert("RGB")
    pixels = np.asarray(mask)
    if pixels.ndim == 3:
        colours = pixels[..., :1] if pixels.shape[-1] == 2 else pixels[..., :3]
        opacity = pixels[..., -1] if pixels.shape[-1] in (2, 4) else None
        spread = np.abs(colours.astype(np.int16) - colours[..., :1]).max(initial=0)
        if opacity is not None and opacity.min() < 255 and np.all(colours == colours[0, 0]):
            pixels = np.where((opacity == 1) & (opacity.max() > 1), 0, opacity)  # 1 of 255 is no label here
        elif spread <= 2:  # JPEG rounds
            pixels = colours[..., 0]
            if opacity is not None and opacity.min() < opacity.max() and np.any((pixels > 0) & (opacity < 255)):
                raise _not_binary("what is transparent in it is not black: save it without an alpha channel")
        elif indices is not None:
            pixels = indices
        else:
            raise _not_binary("its colour channels disagree")
    if pixels.dtype == np.uint8:
        return pixels
    lowest, highest = pixels.min(initial=0), pixels.max(initial=0)
    if not (lowest >= 0 and highest <= 65535) or not np.array_equal(pixels, np.rint(pixels)):
        raise _not_binary(f"values from {lowest} to {highest} in mode {mask.mode}")
    if highest <= 255:
        return pixels.astype(np.uint8)
    if np.any((pixels > 0) & (pixels < 256)):  # labels that 8 bits would lose
        raise _not_binary("16 bits, with both small and large values")
    if highest < 2 * 257:  # would become 1, a vessel
        raise _not_binary(f"16 bits, with no value above {highest}")
    scaled = np.rint(pixels / 257).astype(np.uint8)
    if scaled[scaled < 255].max(initial=0) == 1:  # would be taken for the vessel of a label map, and white for ignored
        raise _not_binary("16 bits, with values just above 0")
    return scaled


def _not_binary(reason: str) -> ValueError:
    return ValueError(f"mask is not binary ({reason}; {_EXPECTED})")


def check_vessel_labels(vessel_labels: Sequence[int] | None) -> None:
    """Raise `ValueError` unless these are distinct labels of 1 to 255, or `None`."""
    if vessel_labels is not None and (
        not vessel_labels
        or len(set(vessel_labels)) < len(vessel_labels)
        or not all(isinstance(label, int) and 1 <= label <= 255 for label in vessel_labels)
    ):
        raise ValueError(f"vessel_labels must be distinct whole numbers from 1 to 255, got {vessel_labels!r}.")


def check_share(mask: np.ndarray) -> None:
    """
    Refuse a mask of which far more is vessel than not.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): As [`binary_mask`] returns it.

    Raises:
        ValueError: If more than 60 % of the pixels that count are 1; with their share.
    """
    vessels, counted = counted_pixels(mask)
    share = np.count_nonzero(vessels) / max(1, np.count_nonzero(counted))
    if share > _MOST:
        raise ValueError(
            f"mask is {share:.0%} vessel: it seems to be inverted. If it is not, name the value of the vessels: "
            "vessel_labels=[255] where they are white, or vessel_labels=[1]"
        )


def check_foreground(masks: Iterable[np.ndarray], where: str) -> None:
    """
    Refuse a data set whose masks are all empty: nothing can be learnt or measured there.

    Args:
        masks (`Iterable[np.ndarray]`): Masks of {0, 1, 255}. Read up to the first that has a 1.
        where (`str`): What the error calls the data set.

    Raises:
        ValueError: If no mask has a 1; with the number of masks, and of pixels of each value.
    """
    count, pixels = 0, np.zeros(256, np.int64)
    for mask in masks:
        if np.any(mask == 1):
            return
        count += 1
        pixels += np.bincount(np.asarray(mask, np.uint8).ravel(), minlength=256)
    found = ", ".join(f"{number} pixels of {value}" for value, number in enumerate(pixels.tolist()) if number)
    raise ValueError(f"{where} has no vessels: {count} masks with {found or 'no pixels'}, none of 1.")


def check_labels(labels: np.ndarray, name: str = "A mask") -> None:
    """
    Refuse what is no mask of {0, 1, 255}, before numbers are made of it.

    Args:
        labels (`np.ndarray`): Perhaps a mask, of `bool` or `uint8` and shape `(height, width)`.
        name (`str`, *optional*, defaults to `"A mask"`): What the error calls it.

    Raises:
        ValueError: If it has another shape, type or value.
    """
    highest = labels.max(initial=0)
    if labels.ndim == 2 and (labels.dtype == bool or (labels.dtype == np.uint8 and highest <= 1)):
        return
    if labels.ndim != 2 or labels.dtype != np.uint8 or highest < IGNORED or np.any((labels > 1) & (labels < IGNORED)):
        raise ValueError(
            f"{name} has values up to {highest}; labels are 0, 1 and {IGNORED} (ignored), as load_vessels and "
            "datasets_fives.masks.read_mask give them."
        )
    if not np.any(labels == 1):
        # Right for a map of labels without a vessel, and a mistake for a mask that is drawn in white.
        warnings.warn(
            f"{name} has pixels of 255, which are ignored, and none of 1. If its vessels are white, read it with "
            "datasets_fives.masks.read_mask.",
            stacklevel=2,
        )


def check_classes(labels: np.ndarray, num_labels: int, name: str = "A label map") -> None:
    """
    Refuse a label map with values that no class has.

    Args:
        labels (`np.ndarray`): Perhaps a label map, of `uint8` and shape `(height, width)`.
        num_labels (`int`): Number of classes.
        name (`str`, *optional*, defaults to `"A label map"`): What the error calls it.

    Raises:
        ValueError: If it has another shape, type or value; with the values.
    """
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"{name} has shape {labels.shape} and type {labels.dtype}: it must be (height, width), uint8."
        )
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORED))
    wrong = [str(value) for value in values.tolist() if num_labels <= value != IGNORED]
    if wrong:
        listed = ", ".join(wrong[:8]) + (", ..." if len(wrong) > 8 else "")
        raise ValueError(
            f"{name} has the values {listed}: the {num_labels} classes are 0 to {num_labels - 1}, and {IGNORED} is "
            "ignored."
        )


def counted_pixels(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    What is vessel, and what counts.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): As [`binary_mask`] returns it.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: `bool`, of the same shape: vessel; not ignored.
    """
    return mask == 1, mask != IGNORED


def resize_mask(mask: np.ndarray, longest: int, num_labels: int = 2) -> np.ndarray:
    """
    Scale a mask like its image: area average with a threshold at one half; of a label map the nearest pixels.

    The area average equals the nearest pixel when enlarging, and keeps thin vessels best when shrinking.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): As [`binary_mask`] returns it.
        longest (`int`): Its longer side afterwards, in pixels.
        num_labels (`int`, *optional*, defaults to 2): Number of classes.

    Returns:
        `np.ndarray`: `uint8` of {0, 1}, and 255 where most of the pixels were ignored; of more classes their labels.
    """
    size = scaled_size(*mask.shape[::-1], longest)
    if mask.shape[::-1] == size:
        return mask
    if num_labels > 2:
        return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    resized = _majority(mask == 1, size).astype(np.uint8)
    if mask.max() == IGNORED:
        resized[_majority(mask == IGNORED, size)] = IGNORED
    return resized


def _majority(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    average = Image.fromarray(region * np.uint8(255)).resize(size, Image.Resampling.BOX)
    return np.asarray(average) > 127


def fingerprint_mask(mask: np.ndarray, num_labels: int = 2) -> str:
    """
    Fingerprint of where a mask is 1, or of a label map; `""` where all that counts is of one class, which says nothing
    about duplicates.
    """
    if num_labels > 2:
        is_mixed = np.count_nonzero(np.bincount(mask.ravel(), minlength=IGNORED)[:IGNORED]) > 1
        return fingerprint(str(mask.shape).encode() + mask.tobytes()) if is_mixed else ""
    foreground = mask == 1
    is_mixed = foreground.any() and (mask == 0).any()
    return fingerprint(str(mask.shape).encode() + np.packbits(foreground).tobytes()) if is_mixed else ""
