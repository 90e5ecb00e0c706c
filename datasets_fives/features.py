"""Rows: what every source gives, and how an image and its masks become one."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Features, Image, Value

from .images import as_rgb, decodes_plainly, encode_png, fingerprint_image, open_image, resize_image
from .masks import binary_mask, fingerprint_mask, resize_mask

# A age-related macular degeneration, D diabetic retinopathy, G glaucoma, N normal.
CONDITIONS = ("A", "D", "G", "N")
# The condition of images of which none is known.
UNKNOWN = "unknown"
QUALITY = ("illumination", "blur", "contrast")

FEATURES = Features(
    {
        "image": Image(mode="RGB"),
        "mask": Image(mode="L"),
        "name": Value("string"),
        "condition": ClassLabel(names=list(CONDITIONS)),
    }
)
# By these twins are found; the user sees them on request only.
FINGERPRINTS = ("image_hash", "mask_hash")


def row_features(
    conditions: Sequence[str], *, field_of_view: bool = False, quality: bool = False, fingerprints: bool = False
) -> Features:
    """
    The columns of a source; the first four are those of every source, in this order.

    Args:
        conditions (`Sequence[str]`): Names of the conditions.
        field_of_view (`bool`, *optional*, defaults to `False`): Whether each image has a mask of its field.
        quality (`bool`, *optional*, defaults to `False`): Whether each image was graded.
        fingerprints (`bool`, *optional*, defaults to `False`): Whether the fingerprints are among them.

    Returns:
        `datasets.Features`
    """
    features = Features({**FEATURES, "condition": ClassLabel(names=list(conditions))})
    if field_of_view:
        features["field_of_view"] = Image(mode="L")
    if quality:
        features.update({grade: Value("string") for grade in QUALITY})
    if fingerprints:
        features.update({fingerprint: Value("string") for fingerprint in FINGERPRINTS})
    return features


def prepare_pixels(
    image: str | bytes,
    mask: str | bytes,
    field_of_view: str | bytes | None = None,
    *,
    working_size: int | None = None,
    vessel_labels: Sequence[int] | None = None,
) -> dict:
    """
    Read an image with its masks, check them, and if asked for bring them to one scale.

    Args:
        image (`str` or `bytes`): Path of the image, or its bytes.
        mask (`str` or `bytes`): The same of its vessel mask.
        field_of_view (`str` or `bytes`, *optional*): The same of the mask of its field of view.
        working_size (`int`, *optional*): Longer side in pixels. By default as it is.
        vessel_labels (`Sequence[int]`, *optional*): See [`~datasets_fives.masks.binary_mask`].

    Returns:
        `dict`: `image`, `mask`, and `field_of_view` if there is one, as `datasets` stores images; `image_hash` and
        `mask_hash`.

    Raises:
        ValueError: If one of them cannot be read, is not what it should be, or their sizes differ.
    """
    decoded = _named("image", open_image, image)
    rgb = as_rgb(decoded)
    masks = {"mask": binary_mask(_named("mask", open_image, mask), vessel_labels)}
    if field_of_view is not None:
        opened = _named("field of view", open_image, field_of_view)
        masks["field_of_view"] = (_named("field of view", binary_mask, opened) == 1).astype(np.uint8)
        if not masks["field_of_view"].any():
            raise ValueError("field of view is empty")
    for kind, pixels in masks.items():
        if pixels.shape[::-1] != rgb.size:
            raise ValueError(
                f"image is {rgb.width}x{rgb.height} but {kind.replace('_', ' ')} is "
                f"{pixels.shape[1]}x{pixels.shape[0]}{_turned(pixels.shape[::-1], rgb.size)}"
            )
    hashes = {"image_hash": fingerprint_image(rgb), "mask_hash": fingerprint_mask(masks["mask"])}
    if working_size is not None:
        rgb = resize_image(rgb, working_size)
        masks = {kind: resize_mask(pixels, working_size) for kind, pixels in masks.items()}
    # An untouched file is pointed to, not copied: the full data set has gigabytes of them.
    if working_size is None and decodes_plainly(decoded):
        stored = {"path": None, "bytes": image} if isinstance(image, bytes) else {"path": image, "bytes": None}
    else:
        stored = encode_png(rgb)
    return {"image": stored, **{kind: encode_png(pixels) for kind, pixels in masks.items()}, **hashes}


def raise_problems(where: Path | str, problems: list[str]) -> None:
    """Raise one `ValueError` for all problems (first ten by name), or return when there is none."""
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{len(problems)} problems in {where}: {'; '.join(problems[:10])}{more}")


def _named(what: str, read, source):
    """Call a reading function; its error says of what it speaks."""
    try:
        return read(source)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(what) else f"{what} {message}") from error


def _turned(size: tuple[int, int], other: tuple[int, int]) -> str:
    if size != other[::-1]:
        return ""
    return " (both after their EXIF orientation: was the mask drawn on an image that was shown unturned?)"


# "1_A", "01_dr": a number and a short word, as FIVES and HRF name them.
_NUMBER_WORD = re.compile(r"\d+_([A-Za-z]{1,3})")


def compile_pattern(pattern: str | None) -> re.Pattern | None:
    """
    Compile a `condition_pattern`.

    Raises:
        ValueError: If it is no regular expression or has not exactly one group.
    """
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"condition_pattern is no regular expression: {pattern!r} ({error}).") from error
    if compiled.groups != 1:
        raise ValueError(
            f"condition_pattern must have one group in parentheses, the condition; {pattern!r} has {compiled.groups}."
        )
    return compiled


def read_conditions(names: Sequence[str], pattern: str | None) -> list[str]:
    """
    Read the condition of each image out of its name.

    Args:
        names (`Sequence[str]`): Names of the images; what stands before a slash is not looked at.
        pattern (`str`, *optional*):
            Regular expression with one group, searched for in the names. By default names are understood that are
            all a number and a short word, `01_dr`; otherwise no condition is known.

    Returns:
        `list[str]`: The condition of each, `"unknown"` where there is none.

    Raises:
        ValueError: If the pattern is wrong or does not fit a name; the first ten are listed.
    """
    stems = [name.rpartition("/")[2] for name in names]
    compiled = compile_pattern(pattern)
    if compiled is None:
        found = [_NUMBER_WORD.fullmatch(stem) for stem in stems]
        return [match[1] for match in found] if all(found) else [UNKNOWN] * len(names)
    found = [compiled.search(stem) for stem in stems]
    unfit = [name for name, match in zip(names, found, strict=True) if match is None or match[1] is None]
    if unfit:
        raise ValueError(
            f"condition_pattern {pattern!r} does not fit {len(unfit)} of {len(names)} names, "
            f"first {', '.join(unfit[:10])}."
        )
    return [match[1] for match in found]


def condition_names(conditions: Sequence[str]) -> list[str]:
    """Names of the classes: those of FIVES, or the ones that occur, sorted."""
    found = set(conditions)
    return list(CONDITIONS) if found <= set(CONDITIONS) else sorted(found)
