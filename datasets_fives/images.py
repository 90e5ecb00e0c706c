"""Image files: which they are; any kind as upright RGB of 8 bits, bounded in size; scale, fingerprint, encoding."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .extra_formats import read_extra_format

# What cameras and annotators write. Not more: of the formats that Pillow knows, EPS starts another program.
PILLOW_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".webp",
    ".jp2",
)  # fmt: skip
# With these they are read where pydicom and pillow-heif are installed, see `extra_formats.py`.
SUFFIXES = (*PILLOW_SUFFIXES, ".dcm", ".heic", ".heif")
# The formats of Pillow that have these suffixes.
FORMATS = tuple(dict.fromkeys(Image.registered_extensions()[suffix] for suffix in PILLOW_SUFFIXES))
# What systems leave in folders; so do all names that begin with a dot, such as "._x.png" of macOS.
_CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def has_image_name(path: Path) -> bool:
    """Whether a file is called like an image, and is neither hidden nor what a system left."""
    return path.suffix.lower() in SUFFIXES and not _is_clutter(path.name)


def image_stem(name: str) -> str:
    """A name without the suffix of an image, if it has one: `1.2.840.100` is a name as a whole."""
    return name[: -len(suffix)] if (suffix := Path(name).suffix).lower() in SUFFIXES else name


def list_image_files(folder: Path, pattern: str = "*") -> tuple[list[Path], list[str]]:
    """
    The images of a folder, and what lies beside them.

    Args:
        folder (`Path`): The folder.
        pattern (`str`, *optional*, defaults to `"*"`): Which of its files are meant, as in `Path.glob`.

    Returns:
        `tuple[list[Path], list[str]]`: The images, sorted, by their names alone: a broken link is among them, so that
        whoever reads it reports it. The names of what else there is; folders with a slash behind. Hidden files and
        what systems leave is in neither.
    """
    images, others = [], []
    for path in sorted(folder.glob(pattern)):
        inside = path.relative_to(folder)
        if any(map(_is_clutter, inside.parts)):
            continue
        if path.is_dir():
            others.append(f"{inside}/")
        elif has_image_name(path):
            images.append(path)
        else:
            others.append(str(inside))
    return images, others


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def extra_format(source: str | Path | bytes) -> str | None:
    """`"DICOM"` or `"HEIC"` if the first bytes of a file, or of its content, are those of one, else `None`."""
    if isinstance(source, bytes):
        start = source[:132]
    else:
        with open(source, "rb") as file:
            start = file.read(132)
    if start[128:] == b"DICM":
        return "DICOM"
    return "HEIC" if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS else None


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
    except UnidentifiedImageError:  # whose message is an address in memory, or repeats the path
        raise ValueError(f"cannot be read (none of the formats {', '.join(FORMATS)}, or damaged)") from None
    # Damaged files make Pillow's decoders stumble in any way: struct.error, KeyError, EOFError, ...
    except Exception as error:
        raise ValueError(f"cannot be read ({error})") from error


def open_content(kind: str, content: str | bytes | Image.Image) -> Image.Image:
    """
    Decode the content of a record, see [`open_image`].

    Args:
        kind (`str`): What errors call it.
        content (`str`, `bytes` or `PIL.Image.Image`): Path of a file, its content, or the image.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    if isinstance(content, Image.Image):
        return content
    if not content:
        raise ValueError(f"{kind} is missing")
    try:
        return open_image(content)
    except ValueError as error:
        raise ValueError(f"{kind} {error}") from error


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
    """Size and times of each file; that of its last change (`ctime`) no tool sets back, as `cp -p` does the other."""
    return tuple(
        value
        for stat in (path.stat() for path in paths)
        for value in (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    )


def fingerprint(content: bytes) -> str:
    """Digest by which equal content is recognised."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint_image(image: Image.Image) -> str:
    """Fingerprint of the decoded pixels, so that the same image in two files is recognised."""
    return fingerprint(str(image.size).encode() + image.tobytes())


def store_content(content: str | bytes | Image.Image, image: Image.Image, is_original: bool) -> dict:
    """
    An image in the form in which `datasets` stores one.

    Args:
        content (`str`, `bytes` or `PIL.Image.Image`): What it was decoded from.
        image (`PIL.Image.Image`): RGB.
        is_original (`bool`): Whether it was neither scaled nor reduced to 8 bits. Such a file is pointed to, not
            copied, if `datasets` can read it: the full data set has gigabytes of them.
    """
    if not is_original or isinstance(content, Image.Image) or extra_format(content) is not None:
        return encode_png(image)
    is_path = isinstance(content, str)
    return {"path": content if is_path else None, "bytes": None if is_path else content}


def encode_png(pixels: Image.Image | np.ndarray) -> dict:
    """PNG bytes in the form in which `datasets` stores an image."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return {"path": None, "bytes": buffer.getvalue()}
