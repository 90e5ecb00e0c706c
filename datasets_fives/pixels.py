"""Pixels of photographs and masks: binary masks, resizing, fingerprints, PNG bytes."""

import hashlib
from io import BytesIO

import numpy as np
from PIL import Image

# Share of pixels that may lie between black and white in a mask with antialiased edges.
_MAX_BETWEEN = 0.05


def binary_mask(mask: Image.Image) -> np.ndarray:
    """
    Turn a mask as it is found (RGB, RGBA or grey; {0, 255}, antialiased, or {0, 1}) into zeros and ones.

    Args:
        mask (`PIL.Image.Image`): The mask. An alpha channel is ignored.

    Returns:
        `np.ndarray` of shape (height, width): `uint8`, 1 where the mask is brighter than 127.

    Raises:
        ValueError: If the image is evidently no mask: colour channels that disagree, or more than 5% of the pixels
            neither dark nor bright.
    """
    if mask.mode in ("P", "PA"):
        mask = mask.convert("RGBA")
    elif mask.mode == "1":
        mask = mask.convert("L")
    pixels = np.asarray(mask)
    if pixels.ndim == 3:
        colours = pixels[..., :1] if pixels.shape[-1] == 2 else pixels[..., :3]
        if np.abs(colours.astype(np.int16) - colours[..., :1]).max() > 2:
            raise ValueError("mask is not binary (its colour channels disagree)")
        pixels = colours[..., 0]
    if pixels.dtype != np.uint8:
        raise ValueError(f"mask is not binary (pixels of type {pixels.dtype}, mode {mask.mode})")
    if pixels.max(initial=0) <= 1:
        return pixels
    between = np.mean((pixels > 32) & (pixels < 223))
    if between > _MAX_BETWEEN:
        raise ValueError(f"mask is not binary ({between:.0%} of its pixels are neither near 0 nor near 255)")
    return (pixels > 127).astype(np.uint8)


def resize_image(image: Image.Image, size: int) -> Image.Image:
    """Resize a photograph to `size` by `size` pixels with an antialiasing (Lanczos) filter."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask of zeros and ones to `size` by `size` pixels: area average, threshold at one half."""
    if mask.shape == (size, size):
        return mask
    shrunk = Image.fromarray(mask * np.uint8(255)).resize((size, size), Image.Resampling.BOX)
    return (np.asarray(shrunk) > 127).astype(np.uint8)


def fingerprint_image(image: Image.Image) -> str:
    """Fingerprint of the decoded pixels, so that the same photograph in two files is recognised."""
    return hashlib.blake2b(str(image.size).encode() + image.tobytes(), digest_size=16).hexdigest()


def fingerprint_mask(mask: np.ndarray) -> str:
    """Fingerprint of a mask of zeros and ones; `""` for an empty mask, which says nothing about twins."""
    if not mask.any():
        return ""
    return hashlib.blake2b(str(mask.shape).encode() + np.packbits(mask).tobytes(), digest_size=16).hexdigest()


def encode_png(pixels: Image.Image | np.ndarray) -> dict:
    """PNG bytes in the form in which `datasets` stores an image."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return {"path": None, "bytes": buffer.getvalue()}
