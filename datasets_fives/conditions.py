"""The condition of a photograph, read out of its name."""

import re
from collections.abc import Sequence

from .rows import CONDITIONS, UNKNOWN

# "1_A", "01_dr": a number and a short word, as FIVES and HRF name them.
_NUMBER_WORD = re.compile(r"\d+_([A-Za-z]{1,3})")


def compile_pattern(pattern: str | None) -> re.Pattern | None:
    """
    Compile a `condition_pattern`.

    Raises:
        ValueError: If it is no regular expression or has not exactly one group.
    """
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"condition_pattern is no regular expression: {pattern!r} ({error}).") from error
    if compiled.groups != 1:
        raise ValueError(
            f"condition_pattern must have one group in parentheses, the condition; {pattern!r} has {compiled.groups}."
        )
    return compiled


def read_conditions(names: Sequence[str], pattern: str | None) -> list[str]:
    """
    Read the condition of each photograph out of its name.

    Args:
        names (`Sequence[str]`): Names of the photographs; what stands before a slash is not looked at.
        pattern (`str`, *optional*):
            Regular expression with one group, searched for in the names. By default names are understood that are
            all a number and a short word, `01_dr`; otherwise no condition is known.

    Returns:
        `list[str]`: The condition of each, `"unknown"` where there is none.

    Raises:
        ValueError: If the pattern is wrong or does not fit a name; the first ten are listed.
    """
    stems = [name.rpartition("/")[2] for name in names]
    compiled = compile_pattern(pattern)
    if compiled is None:
        found = [_NUMBER_WORD.fullmatch(stem) for stem in stems]
        return [match[1] for match in found] if all(found) else [UNKNOWN] * len(names)
    found = [compiled.search(stem) for stem in stems]
    unfit = [name for name, match in zip(names, found, strict=True) if match is None or match[1] is None]
    if unfit:
        raise ValueError(
            f"condition_pattern {pattern!r} does not fit {len(unfit)} of {len(names)} names, "
            f"first {', '.join(unfit[:10])}."
        )
    return [match[1] for match in found]


def condition_names(conditions: Sequence[str]) -> list[str]:
    """Names of the classes: those of FIVES, or the ones that occur, sorted."""
    found = set(conditions)
    return list(CONDITIONS) if found <= set(CONDITIONS) else sorted(found)
