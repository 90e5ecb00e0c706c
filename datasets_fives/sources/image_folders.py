"""Images in one folder, masks in another: which folder holds what, and which files belong together."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..features import Listing, Record, list_some, problems_error
from ..images import SUFFIXES, image_stem, list_image_files, stamp_files
from ..splits import SPLIT_NAMES, SPLITS, check_names, read_conditions, read_mapping
from . import KNOWN

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
_FOLDERS = ("images", "masks", "fields_of_view")
# What a mapping says of its label maps is handed on to `load_segmentation`.
_STATED = ("classes", "ignore_value", "reduce_labels", "group_pattern")
_KEYS = (*_FOLDERS, "condition_pattern", "split", *_STATED)
_OLD_KEYS = {"photographs": "images", "labels": "masks"}  # as files of before say, and as label maps are called
# HRF, whose usual split (Odstrcilik et al. 2013) is a rule: the first five images of each condition train.
_HRF = re.compile(r"(\d\d)_(h|dr|g)")
_HRF_TRAIN = 5


def list_folders(source: str | Path | Mapping, condition_pattern: str | None = None) -> Listing:
    """
    List the images of a folder with their masks.

    Names are matched by the first of these rules that matches most: they are equal (`01_dr.JPG`, `01_dr.tif`); the
    name of the mask begins with that of the image (`Image_01L.jpg`, `Image_01L_1stHO.png`); they are equal without
    the parts that all names of their folder share (`21_training.tif`, `21_manual1.gif`).

    Args:
        source (`str`, `Path` or `Mapping`):
            A folder, with sub-folders named in one of the usual ways, directly, under `train` and `test`, or with
            these inside; or a
            mapping, or a YAML or JSON file of one, with `images` and `masks` (or `labels`), folders or patterns such
            as `"chase/*_1stHO.png"` or `"patient*/OD.jpg"`, relative to the file, or such by split; and optionally
            `fields_of_view`, `condition_pattern`, `split`, the names of each split of the official one, and
            `classes`, `ignore_value`, `reduce_labels` and `group_pattern`, see
            [`~datasets_fives.load_segmentation`]. A sub-folder `mask` holds fields of view if another one holds
            vessels.
        condition_pattern (`str`, *optional*): See [`~datasets_fives.splits.read_conditions`].

    Returns:
        [`Listing`]: Sorted by split and name. Images or masks without counterpart are left out, with a warning that
        lists them.

    Raises:
        ValueError: If it is not clear which folder holds what, or which mask belongs to an image, if nothing could
            be matched, or an image lacks the field of view that others have.
    """
    mapping, base = {}, Path()
    if isinstance(source, Mapping) or Path(source).is_file():
        base = base if isinstance(source, Mapping) else Path(source).parent
        mapping = _check_mapping(source if isinstance(source, Mapping) else read_mapping(source), base)
        condition_pattern = condition_pattern or mapping.get("condition_pattern")
        places = _places(base, mapping)
    else:
        places = {split: _recognise(folder) for split, folder in _split_folders(Path(source)).items()}
        places = _by_split(places[""]) if list(places) == [""] else places
    found: list[tuple[str, str, list[Path]]] = []  # name, published split, files
    for split, kinds in places.items():
        prefix = f"{split}/" if split else ""
        matched = _match(*map(_list_files, kinds), where=str(kinds[0] if mapping else kinds[0].parent))
        found += [(prefix + name, split, files) for name, files in matched]
    names = [name for name, *_ in found]
    splits = [split for _, split, _ in found]
    if split_of := {name: split for split, names in (mapping.get("split") or {}).items() for name in names}:
        if unknown := sorted(set(split_of) - set(names)):
            raise ValueError(f"split names images that do not exist: {', '.join(unknown[:10])}.")
        splits = [split_of.get(name, "") for name in names]
    else:
        splits = _hrf_split(names) or splits
    records = tuple(
        Record(name, split, condition, *map(str, files), stamp=stamp_files(*files))
        for (name, _, files), split, condition in zip(
            found, splits, read_conditions(names, condition_pattern), strict=True
        )
    )
    stated = {key: mapping[key] for key in _STATED if mapping.get(key) is not None}
    return Listing(records, records, stated=stated)


def _check_mapping(mapping: Mapping, base: Path) -> dict:
    renamed = {old: new for old, new in _OLD_KEYS.items() if new not in mapping}
    mapping = {renamed.get(key, key): value for key, value in mapping.items()}
    unknown = sorted(map(str, set(mapping) - set(_KEYS)))
    missing = [key for key in _KEYS[:2] if not mapping.get(key)]
    if unknown or missing:
        problem = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise ValueError(
            f"A mapping of folders has {', '.join(_KEYS[:2])}, and optionally {', '.join(_KEYS[2:])}: {problem}."
        )
    if mapping.get("split") is not None:
        check_names(mapping["split"])
    if isinstance(mapping.get("classes"), str):
        mapping["classes"] = base / mapping["classes"]
    return mapping


def _places(base: Path, mapping: dict) -> dict[str, list[Path]]:
    """The places of images, masks and fields of view that a mapping names, by split."""
    named = [mapping[kind] for kind in _FOLDERS if mapping.get(kind)]
    if not any(isinstance(place, Mapping) for place in named):
        return _by_split([base / place for place in named])
    if not all(isinstance(place, Mapping) and set(place) == set(named[0]) <= set(SPLIT_NAMES) for place in named):
        raise ValueError(f"Places by split are named for all kinds and for the same of {', '.join(SPLITS)}: {named}.")
    found = {SPLIT_NAMES[split]: [base / place[split] for place in named] for split in named[0]}
    return {split: found[split] for split in SPLITS if split in found}


def _by_split(kinds: list[Path]) -> dict[str, list[Path]]:
    """The sub-folders of some folders that are named after splits, else, under `""`, the folders themselves."""
    inside = [_named_after_splits(kind) for kind in kinds]
    if not all(inside) or any(list_image_files(kind)[0] for kind in kinds):
        return {"": kinds}
    shared = {split: [found[split] for found in inside] for split in SPLITS if all(split in found for found in inside)}
    if left_out := sorted(split for split in inside[0] if split not in shared):
        logger.warning("Left out, without a mask or label map: %s of %s.", ", ".join(left_out), kinds[0])
    return shared or {"": kinds}


def _hrf_split(names: list[str]) -> list[str] | None:
    """The split of HRF by its rule, if these are its names."""
    matches = [_HRF.fullmatch(name) for name in names]
    if not all(matches) or {match[2] for match in matches} != {"h", "dr", "g"}:
        return None
    logger.info("These are named like HRF: its usual split is the official one (the first five of each train).")
    return ["train" if int(match[1]) <= _HRF_TRAIN else "test" for match in matches]


def _split_folders(folder: Path) -> dict[str, Path]:
    """Sub-folders that are named after a split, else the folder itself; `ValueError` if there are no images in any."""
    found = _named_after_splits(folder) or {"": folder}
    if not any(_subfolders(path, _IMAGES) for path in (folder, *found.values())):
        raise ValueError(f"{str(folder)!r} is not a known data set. Known are {KNOWN}.")
    return found


def _named_after_splits(folder: Path) -> dict[str, Path]:
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    found = {SPLIT_NAMES.get(path.name.lower()): path for path in subfolders}
    return {split: found[split] for split in SPLITS if split in found}


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


def _list_files(path: Path) -> dict[str, Path]:
    """
    The image files of a folder, or of a pattern, by stem; where the folders have a pattern (`patient*/OD.jpg`) by
    their path from the first of them.
    """
    folder = path
    while "*" in str(folder) and not folder.is_dir():  # a folder can be called so, too
        folder = folder.parent
    pattern = "*" if folder == path else str(path.relative_to(folder))
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    files, others = list_image_files(folder, pattern)
    if others:
        logger.warning("No images by their names in %s, so left out: %s.", folder, list_some(others))
    found: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is not a file (a broken link, or a device).")
        name = image_stem(file.relative_to(folder).as_posix())
        if name.encode(errors="replace").decode() != name:
            raise ValueError(f"{folder} holds {file.name!r}, a name that is not UTF-8: rename it.")
        if name in found:
            raise ValueError(f"{folder} holds {found[name].name} and {file.name}: which one should be used?")
        found[name] = file.absolute()
    if not found:
        raise ValueError(f"No images in {path}: there are no image files ({', '.join(SUFFIXES)}).")
    return found


def _match(
    images: dict[str, Path], masks: dict[str, Path], fields: dict[str, Path] | None = None, *, where: str
) -> list[tuple[str, list[Path]]]:
    """Name and files of each image that has a mask; a field of view belongs to all or to none."""
    mask_of = _counterparts(images, masks, where)
    if not mask_of:
        shared = "nothing is shared by names such as"
        if len(images) == len(masks) == 1:
            shared = "the name of a single mask must be that of its image, or begin with it; they are"
        raise ValueError(f"No image of {where} has a mask: {shared} {next(iter(images))} and {next(iter(masks))}.")
    unmatched = [f"{stem} (image)" for stem in images if stem not in mask_of]
    unmatched += [f"{stem} (mask)" for stem in sorted(set(masks) - set(mask_of.values()))]
    if unmatched:
        logger.warning("Left out, without a counterpart in %s: %s.", where, list_some(unmatched))
    pairs = [(stem, [images[stem], masks[mask_of[stem]]]) for stem in images if stem in mask_of]
    if fields is None:
        return pairs
    field_of = _counterparts(images, fields, where)
    if problems := [f"{stem}: no field of view" for stem, _ in pairs if stem not in field_of]:
        raise problems_error(where, problems)
    return [(stem, [*files, fields[field_of[stem]]]) for stem, files in pairs]


def _counterparts(images: dict[str, Path], others: dict[str, Path], where: str) -> dict[str, str]:
    """Stem of the mask by stem of the image, by the rule that matches most."""
    best: dict[str, list[str]] = {}
    for rule in (_equal, _begins, _without_common):
        found = rule(list(images), list(others))
        if len(found) > len(best):
            best = found
    problems = [
        f"{stem}: {len(stems)} masks ({', '.join(stems)}), choose one by a pattern in a mapping of images and masks"
        for stem, stems in best.items()
        if len(stems) > 1
    ]
    if not problems:
        owners = Counter(stems[0] for stems in best.values())
        problems = [f"{stem}: mask of {count} images" for stem, count in owners.items() if count > 1]
    if problems:
        raise problems_error(where, problems)
    return {stem: stems[0] for stem, stems in best.items()}


def _parts(stem: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"[_\-. ]+", stem.lower()) if part)


def _equal(stems: list[str], others: list[str]) -> dict[str, list[str]]:
    return _look_up({stem: stem.lower() for stem in stems}, [(other, other.lower()) for other in others])


def _begins(stems: list[str], others: list[str]) -> dict[str, list[str]]:
    """Of `1` and `1_2`, `1_2_mask` belongs to the longer one."""
    keys = {stem: _parts(stem) for stem in stems}
    known, beginnings = set(keys.values()), []
    for other in others:
        parts = _parts(other)
        lengths = (length for length in range(len(parts), 0, -1) if parts[:length] in known)
        beginnings += [(other, parts[:length]) for length in list(lengths)[:1]]
    return _look_up(keys, beginnings)


def _without_common(stems: list[str], others: list[str]) -> dict[str, list[str]]:
    return _look_up(_distinct(stems), list(_distinct(others).items()))


def _distinct(stems: list[str]) -> dict[str, tuple[str, ...]]:
    """The parts of each name that not all names have."""
    parts = {stem: _parts(stem) for stem in stems}
    common = set.intersection(*(set(these) for these in parts.values()))
    return {stem: tuple(part for part in these if part not in common) for stem, these in parts.items()}


def _look_up(keys: dict[str, str | tuple], others: list[tuple[str, str | tuple]]) -> dict[str, list[str]]:
    """For each stem the others with its key, if it has one and there are any."""
    by_key: dict[str | tuple, list[str]] = {}
    for other, key in others:
        by_key.setdefault(key, []).append(other)
    return {stem: by_key[key] for stem, key in keys.items() if key and key in by_key}
