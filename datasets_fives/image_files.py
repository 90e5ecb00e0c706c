"""Which files of a folder are images; what is left over is told, not passed over."""

from pathlib import Path

from PIL import Image

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
