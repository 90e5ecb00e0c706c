"""Images in one folder, masks in another: whose names belong together, and which folder holds what."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..features import raise_problems, read_conditions
from ..images import SUFFIXES
from ..splits import SIDES, check_split_request, read_mapping
from ..splits import SUFFIXES as MAPPING_SUFFIXES
from .fives_archive import Image, stamp_files

logger = logging.getLogger(__name__)

# Names of sub-folders, in lower case, with spaces for other separators.
_IMAGES = ("images", "image", "imgs", "img", "photographs", "photos", "original", "originals")
_MASKS = (
    "masks", "manual1", "manual", "1st manual", "labels", "label", "ground truth", "gt", "vessels", "vessel masks",
    "annotations", "segmentation masks",
)  # fmt: skip
_FIELDS = ("fov", "fovs", "field of view", "fields of view", "field of view masks", "fov masks")
# DRIVE and HRF call the field of view so; others the vessels.
_EITHER = "mask"
_SIDE_FOLDERS = {"train": "train", "training": "train", "val": "validation", "validation": "validation",
                 "test": "test", "testing": "test"}  # fmt: skip
_KEYS = ("images", "masks", "fields_of_view", "condition_pattern", "split")
# HRF, whose usual split (Odstrcilik et al. 2013) is a rule: the first five images of each condition train.
_HRF = re.compile(r"(\d\d)_(h|dr|g)")
_HRF_TRAIN = 5
DESCRIPTION = (
    'a folder with "images" and "masks" inside (or "train", "test" with these), a mapping or YAML file of '
    "images, masks, and if wanted fields_of_view, condition_pattern, split"
)


def is_two_folders(source: str | Path | Mapping) -> bool:
    """Whether `source` is a mapping, a file of one, or a folder with sub-folders of images and masks."""
    if isinstance(source, Mapping) or (str(source).endswith(MAPPING_SUFFIXES) and Path(source).is_file()):
        return True
    return Path(source).is_dir() and any(
        _subfolders(folder, _IMAGES) for folder in (Path(source), *_sides(Path(source)).values())
    )


def list_pairs(source: str | Path | Mapping, condition_pattern: str | None = None) -> list[Image]:
    """
    List the images of two folders with their masks.

    Names are paired by the first of these rules that pairs most: they are equal (`01_dr.JPG`, `01_dr.tif`); the name
    of the mask begins with that of the image (`Image_01L.jpg`, `Image_01L_1stHO.png`); they are equal without
    the parts that all names of their folder share (`21_training.tif`, `21_manual1.gif`).

    Args:
        source (`str`, `Path` or `Mapping`):
            A folder, with sub-folders named in one of the usual ways, directly or under `train` and `test`; or a
            mapping, or a YAML or JSON file of one, with `images` and `masks`, folders or patterns such as
            `"chase/*_1stHO.png"`, relative to the file; and if wanted `fields_of_view`, `condition_pattern`, and
            `split`, the names of each side of the official split. A sub-folder `mask` holds fields of view where
            another one holds vessels.
        condition_pattern (`str`, *optional*): See [`~datasets_fives.features.read_conditions`].

    Returns:
        `list[Image]`: Sorted by side and name. Images or masks without counterpart are left out, with a
        warning that lists them.

    Raises:
        ValueError: If it is not clear which folder is what, or which mask belongs to an image, if nothing could
            be paired, or an image lacks the field of view that others have.
    """
    found: list[tuple[str, str, list[Path]]] = []  # name, published side, files
    split: Mapping[str, list[str]] = {}
    if isinstance(source, Mapping) or Path(source).is_file():
        base = Path() if isinstance(source, Mapping) else Path(source).parent
        mapping = _check_mapping(source if isinstance(source, Mapping) else read_mapping(source))
        split = mapping.get("split") or {}
        condition_pattern = condition_pattern or mapping.get("condition_pattern")
        folders = [_files(base, mapping[kind]) for kind in _KEYS[:3] if mapping.get(kind)]
        found = [(name, "", files) for name, files in _pair(*folders, where=str(mapping["images"]))]
    else:
        for side, folder in (_sides(Path(source)) or {"": Path(source)}).items():
            folders = [_files(kind, ".") for kind in _recognise(folder)]
            prefix = f"{side}/" if side else ""
            found += [(prefix + name, side, files) for name, files in _pair(*folders, where=str(folder))]
    names = [name for name, *_ in found]
    published = _published(names, [side for _, side, _ in found], split)
    conditions = read_conditions(names, condition_pattern)
    return [
        Image(name, side, condition, str(files[0]), str(files[1]), stamp_files(*files), *map(str, files[2:]))
        for (name, _, files), side, condition in zip(found, published, conditions, strict=True)
    ]


def _check_mapping(mapping: Mapping) -> Mapping:
    unknown = sorted(map(str, set(mapping) - set(_KEYS)))
    missing = [key for key in _KEYS[:2] if not mapping.get(key)]
    if unknown or missing:
        said = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise ValueError(
            f"A mapping of folders has {', '.join(_KEYS[:2])}, and perhaps {', '.join(_KEYS[2:])}: {said}."
        )
    if mapping.get("split") is not None:
        if not isinstance(mapping["split"], Mapping):
            raise ValueError(f"split must map {', '.join(SIDES)} to names, got {mapping['split']!r}.")
        check_split_request(mapping["split"], 0.0)
    return mapping


def _published(names: list[str], sides: list[str], split: Mapping[str, list[str]]) -> list[str]:
    """The official side of each image: of the mapping, of its folder, or by the rule of HRF."""
    if split:
        of = {name: side for side, members in split.items() for name in members}
        unknown = sorted(set(of) - set(names))
        if unknown:
            raise ValueError(f"The split names images that are not there: {', '.join(unknown[:10])}.")
        return [of.get(name, "") for name in names]
    matches = [_HRF.fullmatch(name) for name in names]
    if not all(matches) or {match[2] for match in matches} != {"h", "dr", "g"}:
        return sides
    logger.info("These are named like HRF: its usual split is the official one (the first five of each train).")
    return ["train" if int(match[1]) <= _HRF_TRAIN else "test" for match in matches]


def _sides(folder: Path) -> dict[str, Path]:
    """Sub-folders that are named after a side of a split."""
    found = {}
    for path in sorted(folder.iterdir()):
        side = _SIDE_FOLDERS.get(path.name.lower())
        if side and path.is_dir():
            found[side] = path
    return {side: found[side] for side in SIDES if side in found}


def _recognise(folder: Path) -> list[Path]:
    """The sub-folders of images, of vessel masks, and of fields of view if there are any."""
    images, masks, fields = (_subfolders(folder, names) for names in (_IMAGES, _MASKS, _FIELDS))
    either = _subfolders(folder, (_EITHER,))
    if masks and not fields:
        fields = either
    elif not masks:
        masks = either
    if len(images) != 1 or len(masks) != 1 or len(fields) > 1:
        inside = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise ValueError(
            f"It is not clear which sub-folders of {folder} hold images and which hold masks (there are "
            f"{inside or 'none'}): name them in a mapping or a YAML file, {{images: ..., masks: ...}}."
        )
    return [*images, *masks, *fields]


def _subfolders(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and re.sub(r"[_\-. ]+", " ", path.name.lower()).strip() in names
    ]


def _files(base: Path, place: str | Path) -> dict[str, Path]:
    """The pictures of a folder, or of a pattern, by their name without ending."""
    path = base / place
    if "*" in path.name:
        folder, pattern = path.parent, path.name
    else:
        folder, pattern = path, "*"
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder.")
    found: dict[str, Path] = {}
    for file in sorted(folder.glob(pattern)):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith(".") or file.is_dir():
            continue
        if not file.is_file():
            raise ValueError(f"{file} is no file (a broken link, or a device).")
        if file.stem in found:
            raise ValueError(f"{folder} holds {found[file.stem].name} and {file.name}: which one is meant?")
        found[file.stem] = file.absolute()
    if not found:
        raise ValueError(f"No images in {path}: there are no pictures ({', '.join(SUFFIXES)}).")
    return found


def _pair(
    images: dict[str, Path], masks: dict[str, Path], fields: dict[str, Path] | None = None, *, where: str
) -> list[tuple[str, list[Path]]]:
    """Name and files of each image that has a mask; a field of view belongs to all or to none."""
    mask_of = _counterparts(images, masks, where)
    if not mask_of:
        raise ValueError(
            f"No image of {where} has a mask: nothing is shared by names such as {next(iter(images))} and "
            f"{next(iter(masks))}."
        )
    lonely = [f"{stem} (image)" for stem in images if stem not in mask_of]
    lonely += [f"{stem} (mask)" for stem in sorted(set(masks) - set(mask_of.values()))]
    if lonely:
        more = f" and {len(lonely) - 10} more" if len(lonely) > 10 else ""
        logger.warning("Left out, for they have no counterpart in %s: %s%s.", where, ", ".join(lonely[:10]), more)
    pairs = [(stem, [images[stem], masks[mask_of[stem]]]) for stem in images if stem in mask_of]
    if fields is None:
        return pairs
    field_of = _counterparts(images, fields, where)
    raise_problems(where, [f"{stem}: no field of view" for stem, _ in pairs if stem not in field_of])
    return [(stem, [*files, fields[field_of[stem]]]) for stem, files in pairs]


def _counterparts(images: dict[str, Path], others: dict[str, Path], where: str) -> dict[str, str]:
    """Name of the mask by name of the image, by the rule that pairs most."""
    best: dict[str, list[str]] = {}
    for rule in (_equal, _begins, _without_common):
        found = rule(list(images), list(others))
        if len(found) > len(best):
            best = found
    raise_problems(
        where,
        [f"{stem}: {len(stems)} masks ({', '.join(stems)})" for stem, stems in best.items() if len(stems) > 1],
    )
    owners = Counter(stems[0] for stems in best.values())
    raise_problems(where, [f"{stem}: mask of {count} images" for stem, count in owners.items() if count > 1])
    return {stem: stems[0] for stem, stems in best.items()}


def _parts(stem: str) -> list[str]:
    return [part for part in re.split(r"[_\-. ]+", stem.lower()) if part]


def _equal(stems: list[str], others: list[str]) -> dict[str, list[str]]:
    by_key: dict[str, list[str]] = {}
    for other in others:
        by_key.setdefault(other.lower(), []).append(other)
    return {stem: by_key[stem.lower()] for stem in stems if stem.lower() in by_key}


def _begins(stems: list[str], others: list[str]) -> dict[str, list[str]]:
    by_start: dict[tuple[str, ...], list[str]] = {}
    for other in others:
        parts = _parts(other)
        for length in range(1, len(parts) + 1):
            by_start.setdefault(tuple(parts[:length]), []).append(other)
    return {stem: by_start[tuple(_parts(stem))] for stem in stems if tuple(_parts(stem)) in by_start}


def _without_common(stems: list[str], others: list[str]) -> dict[str, list[str]]:
    by_key: dict[tuple[str, ...], list[str]] = {}
    for other, key in _distinct(others).items():
        by_key.setdefault(key, []).append(other)
    return {stem: by_key[key] for stem, key in _distinct(stems).items() if key and key in by_key}


def _distinct(stems: list[str]) -> dict[str, tuple[str, ...]]:
    """The parts of each name that not all names have."""
    parts = {stem: _parts(stem) for stem in stems}
    common = set.intersection(*(set(these) for these in parts.values()))
    return {stem: tuple(part for part in these if part not in common) for stem, these in parts.items()}
