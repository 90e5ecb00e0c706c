"""Image files of any kind as upright RGB of 8 bits, bounded in size; their scale, fingerprint and encoding."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .extra_formats import extra_format, read_extra_format
from .image_files import FORMATS


def read_image(source: str | Path | bytes) -> Image.Image:
    """
    Read an image file.

    Args:
        source (`str`, `Path` or `bytes`): The file, or its content. The content decides, not the suffix.

    Returns:
        `PIL.Image.Image`: RGB, 8 bits, turned as its EXIF orientation says.

    Raises:
        ValueError: If there is no such file, it is not a complete image, has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`, or does not say how bright white is (see [`as_rgb`]).
    """
    return as_rgb(open_image(source))


def open_image(source: str | Path | bytes) -> Image.Image:
    """
    Decode an image file in the mode in which it is stored; of several frames or pages the first. DICOM and HEIC need
    the extra `formats`.

    Args:
        source (`str`, `Path` or `bytes`): The file, or its content.

    Returns:
        `PIL.Image.Image`: Decoded, and turned as its EXIF orientation says.

    Raises:
        ValueError: See [`read_image`].
    """
    if not isinstance(source, bytes) and not Path(source).is_file():  # reading a pipe or a device would not end
        raise ValueError("cannot be read (no such file)")
    try:
        if kind := extra_format(source):
            return read_extra_format(source, kind)
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as opened:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and opened.width * opened.height > limit:
                raise ValueError(
                    f"{opened.width}x{opened.height} pixels are more than {limit}; if you trust the file, raise "
                    "PIL.Image.MAX_IMAGE_PIXELS"
                )
            return ImageOps.exif_transpose(opened)
    # Damaged files make Pillow's decoders stumble in any way: struct.error, KeyError, EOFError, ...
    except Exception as error:
        raise ValueError(f"cannot be read ({error})") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """
    Convert a decoded image of any mode to RGB of 8 bits.

    Args:
        image (`PIL.Image.Image`):
            Grey, palette, CMYK, with alpha (which is dropped), 16-bit grey (divided by 65535) or floating point
            from 0 to 1.

    Returns:
        `PIL.Image.Image`: RGB.

    Raises:
        ValueError: If 16-bit or floating-point values do not say how bright white is.
    """
    if has_8_bits(image):
        return image if image.mode == "RGB" else image.convert("RGB")
    pixels = np.asarray(image)
    lowest, highest = pixels.min(initial=0), pixels.max(initial=0)
    white = 1 if image.mode == "F" else 65535
    if not (lowest >= 0 and highest <= white):  # written so that nan fails too
        raise ValueError(f"image has values from {lowest} to {highest}, allowed in mode {image.mode}: 0 to {white}")
    if white > 1 and 0 < highest < 1 << 12:  # 8, 10 or 12 bits in 16, which would come out black
        raise ValueError(f"image has 16 bits but no value above {highest}: scale its values so that white is 65535")
    grey = np.rint(pixels.astype(np.float64) * (255 / white)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def has_8_bits(image: Image.Image) -> bool:
    """Whether Pillow's own `convert("RGB")` is right for this mode; it clips integers and floats to white."""
    return image.mode[0] not in "IF"


def scaled_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height when the longer side is brought to `longest`; the other side is rounded."""
    return tuple(max(1, round(side * longest / max(width, height))) for side in (width, height))


def resize_image(image: Image.Image, longest: int) -> Image.Image:
    """
    Scale an image, its aspect ratio kept.

    Args:
        image (`PIL.Image.Image`): RGB.
        longest (`int`): Its longer side afterwards, in pixels; a smaller image is enlarged.

    Returns:
        `PIL.Image.Image`: Bilinear, antialiased when it shrinks: the filter of the image processor.
    """
    size = scaled_size(*image.size, longest)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def stamp_files(*paths: Path) -> tuple[int, ...]:
    """Size and time of each file."""
    return tuple(value for stat in (path.stat() for path in paths) for value in (stat.st_size, stat.st_mtime_ns))


def fingerprint(content: bytes) -> str:
    """Digest by which equal content is recognised."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint_image(image: Image.Image) -> str:
    """Fingerprint of the decoded pixels, so that the same image in two files is recognised."""
    return fingerprint(str(image.size).encode() + image.tobytes())


def encode_png(pixels: Image.Image | np.ndarray) -> dict:
    """PNG bytes in the form in which `datasets` stores an image."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return {"path": None, "bytes": buffer.getvalue()}
