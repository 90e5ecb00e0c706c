"""Who trains, who validates and who tests: splits by image, with twins kept on one side."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

logger = logging.getLogger(__name__)

SIDES = ("train", "validation", "test")

# The 14 images of the small sample (all of the official test split, condition A). The rule was fixed before any
# result was seen: the three highest numbers test. 22_A and 23_A, two exposures of one eye, both train.
SAMPLE_SPLIT: dict[str, list[str]] = {
    "train": [f"test/{n}_A" for n in (2, 3, 4, 17, 18, 22, 23, 27, 28, 29, 30)],
    "test": [f"test/{n}_A" for n in (32, 37, 39)],
}

# Fractions of the re-split used by the study this project compares with (EMA4MICCAI 2026).
RESPLIT_FRACTIONS = {"train": 0.7, "test": 0.2, "validation": 0.1}


def read_split(split: str | Path | Mapping[str, list[str]]) -> str | Mapping[str, list[str]]:
    """
    Read the names of each side from a file, if `split` is one.

    Args:
        split (`str`, `Path` or `Mapping[str, list[str]]`):
            A YAML or JSON file that maps `train`, `validation` and `test` to names, as its ending tells; anything else
            is returned as it is.

    Returns:
        `str` or `Mapping[str, list[str]]`

    Raises:
        ValueError: If the file does not exist or holds something else.
    """
    if isinstance(split, (str, Path)) and str(split).endswith(SUFFIXES):
        return read_mapping(split)
    return split


def check_split_request(split: str | Mapping[str, list[str]], validation_fraction: float) -> None:
    """
    Refuse a wrong `split` or `validation_fraction` before anything is read.

    Args:
        split (`str` or `Mapping[str, list[str]]`):
            `"official"`, `"resplit"`, `"sample"`, or the names of each side.
        validation_fraction (`float`):
            Fraction of the training images that validate, in [0, 1).

    Raises:
        ValueError: If either is not one of the above.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), got {validation_fraction}.")
    if isinstance(split, str):
        if split not in ("official", "resplit", "sample"):
            raise ValueError(f'split must be "official", "resplit", "sample" or a mapping of names, got {split!r}.')
        return
    if not isinstance(split, Mapping):
        raise ValueError(f"split must be a string or a mapping of names, got {type(split).__name__}.")
    unknown = sorted(set(split) - set(SIDES))
    if unknown:
        raise ValueError(f"The sides of a split are {', '.join(SIDES)}; got {', '.join(map(repr, unknown))}.")
    wrong = {side: names for side, names in split.items() if not _is_names(names)}
    if wrong:
        raise ValueError(f"The sides of a split are lists of names; got {wrong}.")
    if not any(split.values()):
        raise ValueError("The split mapping names no image.")
    used = [name for names in split.values() for name in names]
    twice = sorted({name for name in used if used.count(name) > 1})
    if twice:
        raise ValueError(f"Images named more than once in the split: {', '.join(twice[:10])}.")


def _is_names(names: object) -> bool:
    return isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)


def check_names_exist(split: Mapping[str, list[str]], names: Sequence[str]) -> None:
    """
    Refuse a mapping which names images that the source does not hold.

    Args:
        split (`Mapping[str, list[str]]`): The names of each side.
        names (`Sequence[str]`): The names that the source holds.

    Raises:
        ValueError: If a name is unknown; the first ten are listed.
    """
    missing = sorted({name for side in split.values() for name in side} - set(names))
    if missing:
        raise ValueError(
            f"{len(missing)} images of the split are not in the source, first {', '.join(missing[:10])}; "
            f"names look like {names[0]!r}."
        )


def twin_groups(*fingerprints: Sequence[str]) -> list[int]:
    """
    Group images which share a fingerprint of any kind (the same pixels, or the same mask).

    Args:
        fingerprints (`Sequence[str]`):
            One sequence per kind, each with one fingerprint per image; `""` says nothing and matches nothing.

    Returns:
        `list[int]`: A group number per image: the index of the first image of its group.
    """
    groups = list(range(len(fingerprints[0])))
    for kind in fingerprints:
        first: dict[str, int] = {}
        for index, value in enumerate(kind):
            if not value:
                continue
            mine, other = groups[index], groups[first.setdefault(value, index)]
            if mine != other:
                low, high = sorted((mine, other))
                groups = [low if group == high else group for group in groups]
    return groups


def split_images(
    names: Sequence[str],
    conditions: Sequence[int] | Sequence[str],
    published: Sequence[str],
    groups: Sequence[int],
    split: str | Mapping[str, list[str]],
    seed: int,
    validation_fraction: float,
) -> dict[str, list[int]]:
    """
    Assign images to train, validation and test.

    Args:
        names (`Sequence[str]`): `"<published split>/<number>_<condition>"` of each image.
        conditions (`Sequence[int]` or `Sequence[str]`): What the draw is stratified by.
        published (`Sequence[str]`): The published split of each image, `""` if there is none.
        groups (`Sequence[int]`): Twins share a number, see [`twin_groups`]; they never part.
        split (`str` or `Mapping[str, list[str]]`): See [`load_vessels`].
        seed (`int`): Seed of the draw.
        validation_fraction (`float`): Fraction of the training images that validate (`"official"` only).

    Returns:
        `dict[str, list[int]]`: Indices of the images of each side that is not empty, in the order of `names`.

    Raises:
        ValueError: If the split cannot be made, or a mapping parts twins.
    """
    if split == "sample":
        split = SAMPLE_SPLIT
    if split == "official":
        sides = _official(names, conditions, published, groups, seed, validation_fraction)
    elif split == "resplit":
        sides = _resplit(conditions, groups, seed)
    else:
        sides = _by_name(names, groups, split)
    return {side: sorted(sides[side]) for side in SIDES if sides.get(side)}


def _official(names, conditions, published, groups, seed, validation_fraction):
    sides = {side: [i for i, where in enumerate(published) if where == side] for side in SIDES}
    if not sides["train"]:
        raise ValueError(
            'The source has no "train" images, so there is no official split of it: '
            'pass split="resplit" (70:20:10 at random), split="sample" (the 14-image sample) '
            "or a mapping of names."
        )
    # An image that also appears on a side which measures must not be trained on.
    for side in ("validation", "test"):
        taken = {groups[i] for later in SIDES[SIDES.index(side) :] for i in sides[later]}
        for earlier in SIDES[: SIDES.index(side)]:
            dropped = [i for i in sides[earlier] if groups[i] in taken]
            if dropped:
                logger.warning(
                    "Left out of %s because a twin is in %s: %s", earlier, side, ", ".join(names[i] for i in dropped)
                )
                sides[earlier] = [i for i in sides[earlier] if i not in dropped]
    if not sides["validation"] and validation_fraction > 0:
        rng = np.random.default_rng(seed)
        total = max(1, round(validation_fraction * len(sides["train"])))
        sides["validation"] = _draw(sides["train"], total, conditions, groups, rng)
        sides["train"] = sorted(set(sides["train"]) - set(sides["validation"]))
        if not sides["train"]:
            raise ValueError("Too few training images to take a validation part out; pass validation_fraction=0.")
    return sides


def _resplit(conditions, groups, seed):
    rng = np.random.default_rng(seed)
    left = list(range(len(conditions)))
    sides = {}
    for side in ("test", "validation"):
        total = round(RESPLIT_FRACTIONS[side] * len(conditions))
        sides[side] = _draw(left, total, conditions, groups, rng)
        left = sorted(set(left) - set(sides[side]))
    sides["train"] = left
    if not sides["train"] or not sides["test"]:
        raise ValueError(f"{len(conditions)} images are too few to be re-split 70:20:10.")
    return sides


def _by_name(names, groups, split):
    check_names_exist(split, names)
    index = {name: i for i, name in enumerate(names)}
    sides = {side: [index[name] for name in split.get(side, [])] for side in SIDES}
    side_of = {i: side for side, members in sides.items() for i in members}
    parted = [
        f"{names[i]} ({side_of[i]}) and {names[j]} ({side_of[j]})"
        for i in side_of
        for j in side_of
        if i < j and groups[i] == groups[j] and side_of[i] != side_of[j]
    ]
    if parted:
        raise ValueError(f"The split puts twins (same pixels or same mask) on two sides: {'; '.join(parted[:10])}.")
    return sides


def _draw(candidates, total, conditions, groups, rng):
    """Draw about `total` of the candidates, whole groups only, with the conditions in proportion."""
    by_condition = {
        c: [i for i in candidates if conditions[i] == c] for c in sorted({conditions[i] for i in candidates})
    }
    drawn: set[int] = set()
    exact = {c: total * len(members) / len(candidates) for c, members in by_condition.items()}
    # Largest remainders, so that the shares of small conditions add up to the total.
    shares = {c: int(value) for c, value in exact.items()}
    for c in sorted(exact, key=lambda c: exact[c] - int(exact[c]), reverse=True)[: total - sum(shares.values())]:
        shares[c] += 1
    for c, members in by_condition.items():
        count = sum(conditions[i] == c for i in drawn)
        for i in rng.permutation(members).tolist():
            group = {j for j in candidates if groups[j] == groups[i]} - drawn
            if group and count + len(group) <= shares[c]:
                drawn |= group
                count += len(group)
    return sorted(drawn)


SUFFIXES = (".yaml", ".yml", ".json")


def read_mapping(path: str | Path) -> dict:
    """
    Read a YAML or JSON file that holds a mapping.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `dict`

    Raises:
        ValueError: If the file does not exist, is neither, or holds something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist.")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}; needed is a mapping.")
    return content
