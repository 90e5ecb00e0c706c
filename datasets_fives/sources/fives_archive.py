"""The FIVES archive as published: pairs of image and mask, checked before anything is decoded, and their grades."""

import logging
import re
import zipfile
from pathlib import Path

import pandas as pd
from PIL import Image

from ..features import CONDITIONS, QUALITY, Listing, Record, problems_error
from ..images import stamp_files

logger = logging.getLogger(__name__)

IMAGES, MASKS, QUALITY_FILE = "Original", "Ground truth", "Quality Assessment.xlsx"
FILE_NAME = re.compile(r"(\d+)_([ADGN])\.png", re.IGNORECASE)
_RECORD_NAME = re.compile(r"(train|test)/\d+_[ADGN]")
_PNG_END = b"IEND\xaeB`\x82"
# The sheet's headings for our names: illumination and colour distortion, blur, low contrast.
_GRADES = dict(zip(QUALITY, ("IC", "BLUR", "LC"), strict=True))
# The published table has 800 lines; a workbook that unpacks to more than this is something else.
_MAX_BYTES = 20_000_000


def is_archive_name(name: str) -> bool:
    """Whether an image is named as [`list_archive`] names those of FIVES: `"test/2_A"`."""
    return _RECORD_NAME.fullmatch(name) is not None


def list_archive(folder: Path) -> Listing:
    """
    List the pairs of image and mask of the archive, after checking everything that needs no decoding.

    Args:
        folder (`Path`): Holds `<split>/Original/<n>_<condition>.png` and `<split>/Ground truth/<n>_<condition>.png`
            for split `train`, `test` or both. Files that are not PNG (`Thumbs.db`) are ignored, but the grades of
            `Quality Assessment.xlsx` are read.

    Returns:
        [`Listing`]: Sorted by split (train first) and number.

    Raises:
        ValueError: If a mask or an image is missing, a name is wrong, a file is not a complete PNG, the two sizes of
            a pair differ, or there are no images. All problems of the folder are in one message, the first ten
            by name.
    """
    found, problems = [], []
    quality = read_quality(folder / QUALITY_FILE) if (folder / QUALITY_FILE).is_file() else {}
    for split in ("train", "test"):
        images, masks = (_list_pngs(folder, f"{split}/{kind}", problems) for kind in (IMAGES, MASKS))
        problems += [f"{split}/{stem}: image without mask" for stem in images if stem not in masks]
        problems += [f"{split}/{stem}: mask without image" for stem in masks if stem not in images]
        for stem in sorted(images.keys() & masks.keys(), key=lambda stem: (int(stem.split("_")[0]), stem)):
            name, image, mask = f"{split}/{stem}", images[stem], masks[stem]
            if problem := _header_problem(image, mask):
                problems.append(f"{name}: {problem}")
                continue
            record = Record(name, split, stem[-1], str(image), str(mask), stamp=stamp_files(image, mask))
            found.append(record._replace(quality=quality.get(name)))
    if problems:
        raise problems_error(folder, problems)
    if not found:
        raise ValueError(f"No images in {folder}: expected <split>/{IMAGES}/<n>_<A|D|G|N>.png.")
    ungraded = [record.name for record in found if record.quality is None]
    if quality and ungraded:
        # A column is there for all or for none.
        logger.warning("%s does not grade all images, and is ignored: %s", QUALITY_FILE, ", ".join(ungraded[:10]))
        found = [record._replace(quality=None) for record in found]
    return Listing(tuple(found), tuple(found), list(CONDITIONS))


def _list_pngs(root: Path, folder: str, problems: list[str]) -> dict[str, Path]:
    """Files by stem, "12_A"; PNG files of other names are problems, anything else is ignored."""
    found: dict[str, Path] = {}
    for path in sorted((root / folder).iterdir()) if (root / folder).is_dir() else ():
        if path.suffix.lower() != ".png" or path.name.startswith("."):
            continue
        match = FILE_NAME.fullmatch(path.name)
        if match:
            found[f"{match[1]}_{match[2].upper()}"] = path
        else:
            problems.append(f"{folder}/{path.name}: the name is not <number>_<A|D|G|N>.png")
    return found


def _header_problem(image: Path, mask: Path) -> str | None:
    """What the header and the last bytes of the two files tell, without decoding pixels."""
    sizes = []
    for kind, path in (("image", image), ("mask", mask)):
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


def read_quality(path: Path) -> dict[str, tuple[str, ...]]:
    """
    Read how the images of FIVES were graded.

    The workbook has a sheet for train and one for test, and in each the columns Disease (A, D, G, N), Number, IC, Blur
    and LC. The grades are passed on as they stand there (1 for adequate, 0 for not).

    Args:
        path (`Path`): The workbook.

    Returns:
        `dict[str, tuple[str, ...]]`: By name (`"train/1_A"`) the grades of illumination, blur and contrast; empty,
        with a warning, if the workbook cannot be read, or not without the extra `quality` (openpyxl): only the
        results by quality depend on it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MAX_BYTES:
            raise ValueError(f"it unpacks to {size} bytes")
        sheets = pd.read_excel(path, sheet_name=None, header=None, dtype=object, engine="openpyxl")
        return {
            name: grades
            for sheet, table in sheets.items()
            if sheet.strip().lower() in ("train", "test")
            for name, grades in _read_sheet(sheet.strip().lower(), table).items()
        }
    except ImportError:
        logger.warning('%s is ignored, there is no openpyxl to read it: pip install "reg4pru[quality]".', path.name)
    except Exception as error:  # whatever a damaged workbook makes openpyxl stumble over
        logger.warning("%s cannot be read (%s): there will be no results by quality.", path.name, error)
    return {}


def _read_sheet(split: str, table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    needed = ["DISEASE", "NUMBER", *_GRADES.values()]
    headings = table.map(lambda cell: str(cell).strip().upper())
    starts = [line for line, row in enumerate(headings.to_numpy()) if set(needed) <= set(row)]
    if not starts:
        raise ValueError(f"the sheet {split} has no columns Disease, Number, {', '.join(_GRADES.values())}")
    table.columns = headings.iloc[starts[0]]
    lines = table.iloc[starts[0] + 1 :].dropna(subset=["NUMBER"])[needed]
    return {
        f"{split}/{int(number)}_{disease.strip()[0].upper()}": tuple(f"{float(grade):g}" for grade in grades)
        for disease, number, *grades in lines.itertuples(index=False)
    }
