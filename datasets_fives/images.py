"""The one way in which files of images and masks are read: upright, 8 bits, and bounded in size and time."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# What cameras and annotators write. Not more: of the formats that Pillow knows, EPS starts another program.
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "PPM", "BMP", "WEBP", "JPEG2000")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".webp", ".jp2",
)  # fmt: skip
# 16-bit files with nothing above this hold 8, 10 or 12 bits, which would come out black.
_DARKEST_16_BIT = 4095


def read_image(source: str | Path | bytes) -> Image.Image:
    """
    Read an image from a file or its bytes.

    Args:
        source (`str`, `Path` or `bytes`): The file, or what it holds. The content decides, not the ending.

    Returns:
        `PIL.Image.Image`: RGB, 8 bits, turned as its EXIF orientation says.

    Raises:
        ValueError: If there is no such file, it is no complete picture, or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    return as_rgb(open_image(source))


def open_image(source: str | Path | bytes) -> Image.Image:
    """
    Decode a file, or its bytes, in the mode in which it is stored. Of several frames or pages the first is taken.

    Args:
        source (`str`, `Path` or `bytes`): The file, or what it holds.

    Returns:
        `PIL.Image.Image`: Decoded, and turned as its EXIF orientation says.

    Raises:
        ValueError: See [`read_image`].
    """
    if not isinstance(source, bytes) and not Path(source).is_file():  # a pipe or a device would be read for ever
        raise ValueError("cannot be read (no such file)")
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as opened:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and opened.width * opened.height > limit:
                raise ValueError(
                    f"{opened.width}x{opened.height} pixels are more than {limit}; if you trust the file, raise "
                    "PIL.Image.MAX_IMAGE_PIXELS"
                )
            opened.load()
            return ImageOps.exif_transpose(opened)
    # Damaged files make Pillow's decoders stumble in any way: struct.error, KeyError, EOFError, ...
    except Exception as error:
        raise ValueError(f"cannot be read ({error})") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """
    Convert a decoded image of any mode to RGB of 8 bits.

    Args:
        image (`PIL.Image.Image`):
            Grey, palette, CMYK, with alpha (which is left away), 16-bit grey (divided by 65535) or floating point
            from 0 to 1.

    Returns:
        `PIL.Image.Image`: RGB.

    Raises:
        ValueError: If 16-bit or floating point values do not say how bright white is.
    """
    if decodes_plainly(image):
        return image if image.mode == "RGB" else image.convert("RGB")
    pixels = np.asarray(image)
    lowest, highest = pixels.min(initial=0), pixels.max(initial=0)
    white = 1 if image.mode == "F" else 65535
    if not (lowest >= 0 and highest <= white):  # written so that nan fails too
        raise ValueError(f"image has values from {lowest} to {highest}, allowed in mode {image.mode}: 0 to {white}")
    if white == 65535 and 0 < highest <= _DARKEST_16_BIT:
        raise ValueError(f"image has 16 bits but no value above {highest}: scale its values so that white is 65535")
    grey = np.rint(pixels.astype(np.float64) * (255 / white)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def decodes_plainly(image: Image.Image) -> bool:
    """Whether Pillow's own `convert("RGB")` is right for this mode; it clips more than 8 bits to white."""
    return image.mode[0] not in "IF"


def scaled_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height of a picture whose longer side is brought to `longest`; the other side is rounded."""
    return tuple(max(1, round(side * longest / max(width, height))) for side in (width, height))


def resize_image(image: Image.Image, longest: int) -> Image.Image:
    """
    Bring an image to a scale, its aspect kept.

    Args:
        image (`PIL.Image.Image`): RGB.
        longest (`int`): Its longer side afterwards, in pixels; a smaller image is enlarged.

    Returns:
        `PIL.Image.Image`: Bilinear, antialiased when it shrinks: the filter of the image processor.
    """
    size = scaled_size(*image.size, longest)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def fingerprint_image(image: Image.Image) -> str:
    """Fingerprint of the decoded pixels, so that the same image in two files is recognised."""
    return hashlib.blake2b(str(image.size).encode() + image.tobytes(), digest_size=16).hexdigest()


def fingerprint_text(text: str) -> str:
    """Fingerprint of something that is known by its description."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def encode_png(pixels: Image.Image | np.ndarray) -> dict:
    """PNG bytes in the form in which `datasets` stores an image."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return {"path": None, "bytes": buffer.getvalue()}
