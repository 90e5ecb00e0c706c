"""The published layout on disk: find the pairs of photograph and mask, and refuse what is broken."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .quality import read_quality
from .reading import SUFFIXES
from .rows import QUALITY, prepare_pixels, raise_problems

logger = logging.getLogger(__name__)

PHOTOGRAPHS, MASKS, QUALITY_FILE = "Original", "Ground truth", "Quality Assessment.xlsx"
_NAME = re.compile(r"(\d+)_([ADGN])\.png", re.IGNORECASE)
_PUBLISHED_NAME = re.compile(r"(train|test)/\d+_[ADGN]")
_PNG_END = b"IEND\xaeB`\x82"


class Photograph(NamedTuple):
    """A photograph on disk and what belongs to it; size and time of the files tell a cache when they change."""

    name: str
    published: str  # side of the official split, "" where there is none
    condition: str
    image_path: str
    mask_path: str
    stamp: tuple[int, ...]
    field_of_view_path: str | None = None
    quality: tuple[str, ...] | None = None  # the grades of `QUALITY`


def is_published_layout(folder: Path) -> bool:
    """Whether `folder` holds `<split>/Original` or `<split>/Ground truth`, and not only pictures of other names."""
    places = [folder / split / kind for split in ("train", "test") for kind in (PHOTOGRAPHS, MASKS)]
    names = [path.name for place in places if place.is_dir() for path in place.iterdir()]
    named = any(_NAME.fullmatch(name) for name in names)
    others = any(name.lower().endswith(SUFFIXES) for name in names)
    return any(place.is_dir() for place in places) and (named or not others)


def is_published_name(name: str) -> bool:
    """Whether a photograph is named as [`list_photographs`] names those of FIVES: `"test/2_A"`."""
    return _PUBLISHED_NAME.fullmatch(name) is not None


def list_photographs(folder: Path) -> list[Photograph]:
    """
    List the pairs of photograph and mask in the published layout, after checking everything that needs no decoding.

    Args:
        folder (`Path`): Holds `<split>/Original/<n>_<condition>.png` and `<split>/Ground truth/<n>_<condition>.png`
            for split `train`, `test` or both. Files that are not PNG (`Thumbs.db`) are ignored, but the grades of
            `Quality Assessment.xlsx` are read.

    Returns:
        `list[Photograph]`: Sorted by split (train first) and number.

    Raises:
        ValueError: If a mask or a photograph is missing, a name is wrong, a file is no complete PNG, the two sizes of
            a pair differ, or there are no photographs. All problems of the folder are in one message, the first ten
            by name.
    """
    photographs, problems = [], []
    quality = read_quality(folder / QUALITY_FILE) if (folder / QUALITY_FILE).is_file() else {}
    for published in ("train", "test"):
        if not (folder / published).is_dir():
            continue
        images = _numbered_files(folder / published / PHOTOGRAPHS, problems)
        masks = _numbered_files(folder / published / MASKS, problems)
        problems += [f"{published}/{stem}: photograph without mask" for stem in images if stem not in masks]
        problems += [f"{published}/{stem}: mask without photograph" for stem in masks if stem not in images]
        for stem in sorted((s for s in images if s in masks), key=lambda s: (int(s.split("_")[0]), s)):
            name = f"{published}/{stem}"
            problem = _cheap_problem(images[stem], masks[stem])
            if problem:
                problems.append(f"{name}: {problem}")
                continue
            stamp = stamp_files(images[stem], masks[stem])
            photograph = Photograph(name, published, stem[-1], str(images[stem]), str(masks[stem]), stamp)
            photographs.append(photograph._replace(quality=quality.get(name)))
    raise_problems(folder, problems)
    if not photographs:
        raise ValueError(f"No photographs in {folder}: expected <split>/{PHOTOGRAPHS}/<n>_<A|D|G|N>.png.")
    ungraded = [photograph.name for photograph in photographs if photograph.quality is None]
    if quality and ungraded:
        # A column is there for all or for none.
        logger.warning("%s grades not all photographs, and is left out: %s", QUALITY_FILE, ", ".join(ungraded[:10]))
        return [photograph._replace(quality=None) for photograph in photographs]
    return photographs


def read_photographs(
    photographs: tuple[Photograph, ...],
    photograph_size: int | None,
    version: int,
    vessel_labels: tuple[int, ...] | None = None,
) -> Iterator[dict]:
    """
    Decode, check, and if asked for resize, the listed photographs.

    Args:
        photographs (`tuple[Photograph, ...]`): From [`list_photographs`] or
            [`~datasets_fives.two_folders.list_pairs`].
        photograph_size (`int`, *optional*): Longer side that photographs and masks are brought to.
        version (`int`): Unused here; part of the cache key, so that old caches are left when this code changes.
        vessel_labels (`tuple[int, ...]`, *optional*): See [`~datasets_fives.masks.binary_mask`].

    Yields:
        `dict`: A row, with `image_hash` and `mask_hash` beside the public columns.

    Raises:
        ValueError: If files cannot be decoded or masks are not binary; all of them are in one message.
    """
    problems = []
    for photograph in photographs:
        try:
            pixels = prepare_pixels(
                photograph.image_path,
                photograph.mask_path,
                photograph.field_of_view_path,
                photograph_size=photograph_size,
                vessel_labels=vessel_labels,
            )
        except ValueError as error:
            problems.append(f"{photograph.name}: {error}")
            continue
        if problems:
            continue  # nothing will be kept: only look for further problems
        grades = dict(zip(QUALITY, photograph.quality or (), strict=False))
        yield pixels | grades | {"name": photograph.name, "condition": photograph.condition}
    raise_problems("the photographs", problems)


def stamp_files(*paths: Path) -> tuple[int, ...]:
    """Size and time of each file."""
    return tuple(value for stat in (path.stat() for path in paths) for value in (stat.st_size, stat.st_mtime_ns))


def _numbered_files(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Map "12_A" to its file; PNG files of other names are problems, anything else is ignored."""
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".png" or path.name.startswith("."):
            continue
        match = _NAME.fullmatch(path.name)
        if match:
            found[f"{match[1]}_{match[2].upper()}"] = path
        else:
            problems.append(f"{path.relative_to(folder.parents[1])}: the name is not <number>_<A|D|G|N>.png")
    return found


def _cheap_problem(image_path: Path, mask_path: Path) -> str | None:
    """What the header and the last bytes of the two files tell, without decoding pixels."""
    sizes = []
    for kind, path in (("photograph", image_path), ("mask", mask_path)):
        if not path.is_file():
            return f"{kind} cannot be read (no such file)"
        try:
            with Image.open(path) as opened:
                sizes.append(opened.size)
                if opened.format != "PNG":
                    return f"{kind} is not a PNG file but {opened.format}"
        except Exception as error:  # whatever a damaged header makes Pillow stumble over
            return f"{kind} cannot be read ({error})"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            if _PNG_END not in file.read():
                return f"{kind} cannot be read (truncated PNG file)"
    if sizes[0] != sizes[1]:
        return f"photograph is {sizes[0][0]}x{sizes[0][1]} but mask is {sizes[1][0]}x{sizes[1][1]}"
    return None
