"""Which images train, validate and test, and what names tell: duplicates together, conditions in proportion."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from .features import UNKNOWN, Record, list_some

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
# What others call them, in folders, files and on the Hub.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation",
               "validation": "validation", "test": "test", "testing": "test"}  # fmt: skip

# The 14 images of the small sample (all of the official test split, condition A). The rule was fixed before any
# result was seen: the three highest numbers test. 22_A and 23_A, two exposures of one eye, both train.
SAMPLE_SPLIT: dict[str, list[str]] = {
    "train": [f"test/{n}_A" for n in (2, 3, 4, 17, 18, 22, 23, 27, 28, 29, 30)],
    "test": [f"test/{n}_A" for n in (32, 37, 39)],
}

# Fractions of the re-split used by the study this project compares with (EMA4MICCAI 2026).
RESPLIT_FRACTIONS = {"train": 0.7, "test": 0.2, "validation": 0.1}

MAPPING_SUFFIXES = (".yaml", ".yml", ".json")
# "1_A", "01_dr": a number and a short word, as FIVES and HRF name them.
_NUMBER_WORD = re.compile(r"\d+_([A-Za-z]{1,3})")


class SplitRequest(NamedTuple):
    """
    How to split a data set.

    Args:
        split (`str` or `Mapping[str, list[str]]`): `"official"`, `"resplit"`, `"sample"`, or the names of each split.
        seed (`int`): Seed of the draws.
        validation_fraction (`float`): Fraction of the training images that validate (`"official"` only).
        group_pattern (`str`, *optional*): What finds in a name to which group an image belongs, see [`read_groups`].
    """

    split: str | Mapping[str, list[str]]
    seed: int = 0
    validation_fraction: float = 0.1
    group_pattern: str | None = None


def read_split_request(
    split: str | Path | Mapping[str, list[str]],
    seed: int,
    validation_fraction: float,
    group_pattern: str | None = None,
) -> SplitRequest:
    """
    Check how to split, before anything else is read.

    Args:
        split (`str`, `Path` or `Mapping[str, list[str]]`): See [`SplitRequest`]; or a YAML or JSON file of the names.
        seed (`int`): See [`SplitRequest`].
        validation_fraction (`float`): See [`SplitRequest`]; in [0, 1).
        group_pattern (`str`, *optional*): See [`SplitRequest`].

    Raises:
        ValueError: If the file does not exist or holds something else, or a value is none of these.
    """
    if isinstance(split, (str, Path)) and str(split).endswith(MAPPING_SUFFIXES):
        split = read_mapping(split)
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in [0, 1), got {validation_fraction}.")
    if not isinstance(split, str):
        check_names(split)
    elif split not in ("official", "resplit", "sample"):
        raise ValueError(f'split must be "official", "resplit", "sample" or a mapping of names, got {split!r}.')
    compile_pattern(group_pattern, "group_pattern")
    return SplitRequest(SAMPLE_SPLIT if split == "sample" else split, seed, validation_fraction, group_pattern)


def check_names(split: Mapping[str, list[str]]) -> None:
    """Raise `ValueError` unless `split` maps train, validation and test to lists of names, each name once."""
    if not isinstance(split, Mapping):
        raise ValueError(f"split must be a string or a mapping of names, got {type(split).__name__}.")
    unknown = sorted(set(split) - set(SPLITS))
    if unknown:
        raise ValueError(f"split must map {', '.join(SPLITS)} to names; got {', '.join(map(repr, unknown))}.")
    for key, names in split.items():
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"split must map {key} to a list of names, got {names!r}.")
    if not any(split.values()):
        raise ValueError("split names no image.")
    check_unique([name for names in split.values() for name in names], "Names must be unique in split")


def check_unique(names: Sequence[str], rule: str = "Names must be unique") -> None:
    """Raise `ValueError` if a name repeats; the first ten are listed."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"{rule}, but these are not: {', '.join(repeated[:10])}.")


def read_mapping(path: str | Path) -> dict:
    """
    Read a YAML or JSON file that holds a mapping.

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
        raise ValueError(f"{path} must hold a mapping, but holds {type(content).__name__}.")
    return content


def compile_pattern(pattern: str | None, kind: str = "condition_pattern") -> re.Pattern | None:
    """Compile a pattern of a kind; raises `ValueError` unless it is a regular expression with one group."""
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{kind} is not a regular expression: {pattern!r} ({error}).") from error
    if compiled.groups != 1:
        raise ValueError(
            f"{kind} must have one group in parentheses, the {kind.removesuffix('_pattern')}; {pattern!r} has "
            f"{compiled.groups}."
        )
    return compiled


def read_conditions(names: Sequence[str], pattern: str | None) -> list[str]:
    """
    Read the condition of each image from its name.

    Args:
        names (`Sequence[str]`): Names of the images; what stands before a slash is not looked at.
        pattern (`str`, *optional*):
            Regular expression with one group, searched for in the names. By default names that are all a number and
            a short word, `01_dr`, are understood; otherwise no condition is known.

    Returns:
        `list[str]`: The condition of each, `"unknown"` where there is none.

    Raises:
        ValueError: If the pattern is wrong or does not match a name; the first ten are listed.
    """
    if pattern is None:
        found = [_NUMBER_WORD.fullmatch(name.rpartition("/")[2]) for name in names]
        return [match[1] for match in found] if all(found) else [UNKNOWN] * len(names)
    return _search(names, pattern, "condition_pattern")


def read_groups(names: Sequence[str], pattern: str | None) -> list[str]:
    """
    Read from its name to which group (film, patient, place) each image belongs.

    Args:
        names (`Sequence[str]`): Names of the images; what stands before a slash is not looked at.
        pattern (`str`, *optional*): Regular expression with one group, searched for in the names.

    Returns:
        `list[str]`: The group of each, `""` without a pattern.

    Raises:
        ValueError: If the pattern is wrong or does not match a name; the first ten are listed.
    """
    return [""] * len(names) if pattern is None else _search(names, pattern, "group_pattern")


def _search(names: Sequence[str], pattern: str, kind: str) -> list[str]:
    """What the group of a pattern of a kind finds in each name, without what stands before a slash."""
    compiled = compile_pattern(pattern, kind)
    found = [compiled.search(name.rpartition("/")[2]) for name in names]
    unmatched = [name for name, match in zip(names, found, strict=True) if match is None or match[1] is None]
    if unmatched:
        raise ValueError(
            f"{kind} {pattern!r} does not match {len(unmatched)} of {len(names)} names, "
            f"first {', '.join(unmatched[:10])}."
        )
    return [match[1] for match in found]


def group_duplicates(*fingerprints: Sequence[str]) -> list[int]:
    """
    Group images that share a fingerprint of any kind (the same pixels, or the same mask).

    Args:
        fingerprints (`Sequence[str]`):
            One sequence per kind, each with one fingerprint per image; `""` matches nothing.

    Returns:
        `list[int]`: A group number per image: the index of the first image of its group.
    """
    parents = list(range(len(fingerprints[0])))

    def first_of(index: int) -> int:
        while parents[index] != index:
            index = parents[index]
        return index

    for kind in fingerprints:
        first: dict[str, int] = {}
        for index, value in enumerate(kind):
            if value:
                low, high = sorted((first_of(index), first_of(first.setdefault(value, index))))
                parents[high] = low
    return [first_of(index) for index in range(len(parents))]


def warn_of_left_out(records: Sequence[Record], splits: Mapping[str, list[int]], request: SplitRequest) -> None:
    """Say which images are in no split; the 14-image sample leaves out the rest of FIVES on purpose."""
    used = {i for indices in splits.values() for i in indices}
    left_out = [record.name for i, record in enumerate(records) if i not in used]
    if left_out and request.split is not SAMPLE_SPLIT:
        logger.warning("%d of %d images are in no split: %s", len(left_out), len(records), list_some(left_out))


def split_records(
    records: Sequence[Record], groups: Sequence[int], conditions: Sequence[str], request: SplitRequest
) -> dict[str, list[int]]:
    """
    Assign images to train, validation and test.

    Args:
        records (`Sequence[Record]`): The images.
        groups (`Sequence[int]`): Duplicates share a number, see [`group_duplicates`]; they are never separated.
        conditions (`Sequence[str]`): Class names of the conditions, in the order in which they are drawn.
        request ([`SplitRequest`]): How to split.

    Returns:
        `dict[str, list[int]]`: Indices of the images of each split that is not empty, in the order of `records`.

    Raises:
        ValueError: If the split cannot be made, or names separate duplicates.
    """
    together = groups
    if request.group_pattern is not None:
        found = read_groups([record.name for record in records], request.group_pattern)
        together = group_duplicates([str(group) for group in groups], found)
    draw = _Draw([conditions.index(record.condition) for record in records], together, request)
    if request.split == "official":
        splits = _official(records, groups, request.validation_fraction, draw)
    elif request.split == "resplit":
        splits = _resplit(together, draw)
    else:
        splits = _by_name(records, groups, request.split)
    return {split: sorted(splits[split]) for split in SPLITS if splits.get(split)}


class _Draw:
    """Draws about `total` of the candidates, whole groups only, with the conditions in proportion."""

    def __init__(self, conditions: Sequence[int], groups: Sequence[int], request: SplitRequest):
        self.conditions, self.groups, self.rng = conditions, groups, np.random.default_rng(request.seed)
        self.pattern = request.group_pattern

    def __call__(self, candidates: list[int], total: int) -> list[int]:
        strata = {
            condition: [i for i in candidates if self.conditions[i] == condition]
            for condition in sorted({self.conditions[i] for i in candidates})
        }
        members_of: dict[int, set[int]] = {}
        for i in candidates:
            members_of.setdefault(self.groups[i], set()).add(i)
        drawn: set[int] = set()
        exact = {condition: total * len(members) / len(candidates) for condition, members in strata.items()}
        # Largest remainders, so that the shares of small conditions add up to the total.
        shares = {condition: int(value) for condition, value in exact.items()}
        remainders = sorted(exact, key=lambda condition: exact[condition] - shares[condition], reverse=True)
        for condition in remainders[: total - sum(shares.values())]:
            shares[condition] += 1
        for condition, members in strata.items():
            count = sum(self.conditions[i] == condition for i in drawn)
            for i in self.rng.permutation(members).tolist():
                group = members_of[self.groups[i]] - drawn
                if group and count + len(group) <= shares[condition]:
                    drawn |= group
                    count += len(group)
        if not drawn and total and self.pattern is not None:
            drawn = self._smallest(members_of, total)
        return sorted(drawn)

    def _smallest(self, members_of: dict[int, set[int]], total: int) -> set[int]:
        """The smallest group, where even that is more than what is wanted: groups of films or patients are few."""
        group = min(members_of.values(), key=len)
        if len(members_of) == 1:
            raise ValueError(f"group_pattern {self.pattern!r} puts all {len(group)} images into one group.")
        logger.warning(
            "Every group of %r has more than the %d images wanted; drawn are %d.", self.pattern, total, len(group)
        )
        return group


def _official(records, groups, validation_fraction, draw) -> dict[str, list[int]]:
    splits = {split: [i for i, record in enumerate(records) if record.split == split] for split in SPLITS}
    if not splits["train"]:
        raise ValueError(
            'The source has no "train" images, so there is no official split of it: give --split resplit '
            '(split="resplit" in Python), which draws 70:20:10 at random, or a YAML or JSON file of names, '
            "{train: [a, b], test: [c]}."
        )
    # An image must not be trained on if it is also in a split that measures.
    for split, others in (("test", ("train", "validation")), ("validation", ("train",))):
        taken = {groups[i] for i in splits[split]}
        for earlier in others:
            dropped = [i for i in splits[earlier] if groups[i] in taken]
            if dropped:
                names = ", ".join(records[i].name for i in dropped)
                logger.warning("Left out of %s because a duplicate is in %s: %s", earlier, split, names)
                splits[earlier] = [i for i in splits[earlier] if i not in dropped]
    if not splits["train"]:
        raise ValueError("No training image is left: all have the same pixels or the same mask as one that measures.")
    if not splits["validation"] and validation_fraction > 0:
        splits["validation"] = draw(splits["train"], max(1, round(validation_fraction * len(splits["train"]))))
        splits["train"] = sorted(set(splits["train"]) - set(splits["validation"]))
        if not splits["train"]:
            raise ValueError("Too few training images to take a validation part out; pass validation_fraction=0.")
    return splits


def _resplit(groups, draw) -> dict[str, list[int]]:
    count, different = len(groups), len(set(groups))
    left, splits = list(range(count)), {}
    for split in ("test", "validation"):
        splits[split] = draw(left, round(RESPLIT_FRACTIONS[split] * count))
        left = sorted(set(left) - set(splits[split]))
    splits["train"] = left
    if not splits["train"] or not splits["test"]:
        some = "" if different == count else f", of which {different} differ in their pixels, masks and groups,"
        raise ValueError(f"{count} images{some} are too few to be re-split 70:20:10.")
    return splits


def _by_name(records, groups, split) -> dict[str, list[int]]:
    index = {record.name: i for i, record in enumerate(records)}
    missing = sorted({name for names in split.values() for name in names} - set(index))
    if missing:
        raise ValueError(
            f"{len(missing)} images of the split are not in the source, first {', '.join(missing[:10])}; "
            f"names look like {records[0].name!r}."
        )
    splits = {key: [index[name] for name in names] for key, names in split.items()}
    split_of = {i: key for key, members in splits.items() for i in members}
    members_of: dict[int, list[int]] = {}
    for i in split_of:
        members_of.setdefault(groups[i], []).append(i)
    separated = [
        f"{records[i].name} ({split_of[i]}) and {records[j].name} ({split_of[j]})"
        for i in split_of
        for j in members_of[groups[i]]
        if i < j and split_of[i] != split_of[j]
    ]
    if separated:
        raise ValueError(f"The split separates duplicates (same pixels or same mask): {'; '.join(separated[:10])}.")
    return splits
