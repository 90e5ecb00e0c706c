import math
import statistics
from collections.abc import Iterable


def mean_and_sd(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation of the sample; nan for the latter below two values, for both without any."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def format_cell(mean: float, sd: float, sign: str = "") -> str:
    """`.851 ± .004`, as far as there is something to say; `+` for `sign` shows it of positive means, too."""
    if math.isnan(mean):
        return "–"
    return f"{mean:{sign}.3f}" if math.isnan(sd) else f"{mean:{sign}.3f} ± {sd:.3f}"


def markdown_table(lines: list[list[str]]) -> str:
    """The first line is the heading."""
    rule = ["---"] + ["---:"] * (len(lines[0]) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
