"""Markdown tables, and the numbers in their cells."""

import math
import statistics
from collections.abc import Iterable, Sequence

UNDEFINED = "–"


def mean_and_sd(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample without its nan; of fewer than two values the latter is nan."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def format_number(value: float | None, spec: str = ".3f") -> str:
    """The value in a format, or a dash for `None` (which JSON has for nan) and nan."""
    return UNDEFINED if value is None or math.isnan(value) else format(value, spec)


def format_mean(mean: float, sd: float, sign: str = "") -> str:
    """`"0.851 ± 0.004"`, without the part that is undefined; with `sign="+"` positive means have a sign, too."""
    spread = "" if math.isnan(sd) or math.isnan(mean) else f" ± {sd:.3f}"
    return format_number(mean, f"{sign}.3f") + spread


def markdown_table(lines: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """
    A Markdown table.

    Args:
        lines (`Sequence[Sequence[str]]`): The heading and the rows.
        numbers (`bool`, *optional*, defaults to `True`): Whether all columns but the first are aligned to the right.
    """
    rule = ["---"] + ["---:" if numbers else "---"] * (len(lines[0]) - 1)
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (lines[0], rule, *lines[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
