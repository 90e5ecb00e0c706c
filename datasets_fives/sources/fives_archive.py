"""The published layout on disk: find the pairs of image and mask, and refuse what is broken."""

import logging
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from PIL import Image

from ..features import QUALITY, prepare_pixels, raise_problems
from ..images import SUFFIXES

logger = logging.getLogger(__name__)

IMAGES, MASKS, QUALITY_FILE = "Original", "Ground truth", "Quality Assessment.xlsx"
_NAME = re.compile(r"(\d+)_([ADGN])\.png", re.IGNORECASE)
_PUBLISHED_NAME = re.compile(r"(train|test)/\d+_[ADGN]")
_PNG_END = b"IEND\xaeB`\x82"


class ArchiveImage(NamedTuple):
    """An image on disk and what belongs to it; size and time of the files tell a cache when they change."""

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
    places = [folder / split / kind for split in ("train", "test") for kind in (IMAGES, MASKS)]
    names = [path.name for place in places if place.is_dir() for path in place.iterdir()]
    named = any(_NAME.fullmatch(name) for name in names)
    others = any(name.lower().endswith(SUFFIXES) for name in names)
    return any(place.is_dir() for place in places) and (named or not others)


def is_published_name(name: str) -> bool:
    """Whether an image is named as [`list_images`] names those of FIVES: `"test/2_A"`."""
    return _PUBLISHED_NAME.fullmatch(name) is not None


def list_images(folder: Path) -> list[ArchiveImage]:
    """
    List the pairs of image and mask in the published layout, after checking everything that needs no decoding.

    Args:
        folder (`Path`): Holds `<split>/Original/<n>_<condition>.png` and `<split>/Ground truth/<n>_<condition>.png`
            for split `train`, `test` or both. Files that are not PNG (`Thumbs.db`) are ignored, but the grades of
            `Quality Assessment.xlsx` are read.

    Returns:
        `list[ArchiveImage]`: Sorted by split (train first) and number.

    Raises:
        ValueError: If a mask or an image is missing, a name is wrong, a file is no complete PNG, the two sizes of
            a pair differ, or there are no images. All problems of the folder are in one message, the first ten
            by name.
    """
    found, problems = [], []
    quality = read_quality(folder / QUALITY_FILE) if (folder / QUALITY_FILE).is_file() else {}
    for published in ("train", "test"):
        if not (folder / published).is_dir():
            continue
        images = _numbered_files(folder / published / IMAGES, problems)
        masks = _numbered_files(folder / published / MASKS, problems)
        problems += [f"{published}/{stem}: image without mask" for stem in images if stem not in masks]
        problems += [f"{published}/{stem}: mask without image" for stem in masks if stem not in images]
        for stem in sorted((s for s in images if s in masks), key=lambda s: (int(s.split("_")[0]), s)):
            name = f"{published}/{stem}"
            problem = _cheap_problem(images[stem], masks[stem])
            if problem:
                problems.append(f"{name}: {problem}")
                continue
            stamp = stamp_files(images[stem], masks[stem])
            image = ArchiveImage(name, published, stem[-1], str(images[stem]), str(masks[stem]), stamp)
            found.append(image._replace(quality=quality.get(name)))
    raise_problems(folder, problems)
    if not found:
        raise ValueError(f"No images in {folder}: expected <split>/{IMAGES}/<n>_<A|D|G|N>.png.")
    ungraded = [image.name for image in found if image.quality is None]
    if quality and ungraded:
        # A column is there for all or for none.
        logger.warning("%s grades not all images, and is left out: %s", QUALITY_FILE, ", ".join(ungraded[:10]))
        return [image._replace(quality=None) for image in found]
    return found


def read_images(
    images: tuple[ArchiveImage, ...],
    working_size: int | None,
    version: int,
    vessel_labels: tuple[int, ...] | None = None,
) -> Iterator[dict]:
    """
    Decode, check, and if asked for resize, the listed images.

    Args:
        images (`tuple[ArchiveImage, ...]`): From [`list_images`] or
            [`~datasets_fives.sources.image_folders.list_pairs`].
        working_size (`int`, *optional*): Longer side that images and masks are brought to.
        version (`int`): Unused here; part of the cache key, so that old caches are left when this code changes.
        vessel_labels (`tuple[int, ...]`, *optional*): See [`~datasets_fives.masks.binary_mask`].

    Yields:
        `dict`: A row, with `image_hash` and `mask_hash` beside the public columns.

    Raises:
        ValueError: If files cannot be decoded or masks are not binary; all of them are in one message.
    """
    problems = []
    for image in images:
        try:
            pixels = prepare_pixels(
                image.image_path,
                image.mask_path,
                image.field_of_view_path,
                working_size=working_size,
                vessel_labels=vessel_labels,
            )
        except ValueError as error:
            problems.append(f"{image.name}: {error}")
            continue
        if problems:
            continue  # nothing will be kept: only look for further problems
        grades = dict(zip(QUALITY, image.quality or (), strict=False))
        yield pixels | grades | {"name": image.name, "condition": image.condition}
    raise_problems("the images", problems)


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
    for kind, path in (("image", image_path), ("mask", mask_path)):
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
        return f"image is {sizes[0][0]}x{sizes[0][1]} but mask is {sizes[1][0]}x{sizes[1][1]}"
    return None


logger = logging.getLogger(__name__)

# The sheet's headings for our names: illumination and colour distortion, blur, low contrast.
_HEADINGS = dict(zip(QUALITY, ("IC", "BLUR", "LC"), strict=True))
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
# The published table has 800 lines; a file that unpacks to more than this is something else.
_MOST_BYTES = 20_000_000


def read_quality(path: Path) -> dict[str, tuple[str, ...]]:
    """
    Read how the images of FIVES were graded.

    The table has a sheet for train and one for test, and in each the columns Disease (A, D, G, N), Number, IC, Blur
    and LC. The grades are passed on as they stand there (1 for adequate, 0 for not). The workbook is unpacked with
    the standard library: a spreadsheet package would be a dependency for one optional table.

    Args:
        path (`Path`): The workbook.

    Returns:
        `dict[str, tuple[str, ...]]`: By name (`"train/1_A"`) the grades of illumination, blur and contrast; empty,
        with a warning, if the workbook cannot be understood, for nothing depends on it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name: grades
                for sheet, lines in _sheets(archive)
                for name, grades in _grades(sheet.strip().lower(), lines)
            }
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, IndexError, ValueError, OSError) as error:
        logger.warning("%s cannot be understood (%s): there will be no groups by quality.", path.name, error)
        return {}


def _grades(sheet: str, lines: list[dict[str, str]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    if sheet not in ("train", "test"):
        return
    places: dict[str, str] = {}
    for line in lines:
        headings = {text.strip().upper(): column for column, text in line.items()}
        if {"DISEASE", "NUMBER", *_HEADINGS.values()} <= set(headings):
            places = headings
        elif places and line.get(places["NUMBER"]):
            number = int(float(line[places["NUMBER"]]))
            condition = line[places["DISEASE"]].strip()[0].upper()
            yield f"{sheet}/{number}_{condition}", tuple(_plain(line[places[h]]) for h in _HEADINGS.values())
    if not places:
        raise ValueError(f"the sheet {sheet} has no columns Disease, Number, {', '.join(_HEADINGS.values())}")


def _plain(grade: str) -> str:
    """Spreadsheets write 1 as "1" or "1.0"."""
    return f"{float(grade):g}"


def _sheets(archive: zipfile.ZipFile) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Name of each sheet, and its lines as {column letter: text}."""
    targets = {
        relation.get("Id"): relation.get("Target", "").removeprefix("/xl/")
        for relation in _parse(archive, "xl/_rels/workbook.xml.rels")
    }
    shared: list[str] = []
    if "xl/sharedStrings.xml" in archive.namelist():
        entries = _parse(archive, "xl/sharedStrings.xml").iter(f"{_MAIN}si")
        shared = ["".join(part.text or "" for part in entry.iter(f"{_MAIN}t")) for entry in entries]
    for sheet in _parse(archive, "xl/workbook.xml").iter(f"{_MAIN}sheet"):
        rows = _parse(archive, f"xl/{targets[sheet.get(_RELATION)]}").iter(f"{_MAIN}row")
        yield (
            sheet.get("name", ""),
            [{_column(cell): _text(cell, shared) for cell in row.iter(f"{_MAIN}c")} for row in rows],
        )


def _parse(archive: zipfile.ZipFile, member: str) -> ElementTree.Element:
    size = archive.getinfo(member).file_size
    if size > _MOST_BYTES:
        raise ValueError(f"{member} unpacks to {size} bytes")
    return ElementTree.fromstring(archive.read(member))


def _column(cell: ElementTree.Element) -> str:
    return re.sub(r"\d", "", cell.get("r", ""))


def _text(cell: ElementTree.Element, shared: list[str]) -> str:
    if cell.get("t") == "inlineStr":
        return "".join(part.text or "" for part in cell.iter(f"{_MAIN}t"))
    value = cell.find(f"{_MAIN}v")
    text = "" if value is None else value.text or ""
    return shared[int(text)] if cell.get("t") == "s" else text
