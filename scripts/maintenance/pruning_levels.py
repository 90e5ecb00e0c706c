"""
The levels of `reg4pru prune` in one table and one figure for each data set, from the records under `results/prune`.

    python -m reg4pru.maintenance.pruning_levels results/prune

reads `<data set>/<what>/seed-<number>/` with the `prune_results.json` of `reg4pru prune`, which holds every level up
to its own, or the `metrics.json` of `reg4pru evaluate`, whose level is then called as its folder, with the
`agreement.json` of `reg4pru.pruning.agreement_with` where there is one; and writes `table.md` and `levels.png`
beside the data sets.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..common.atomic_files import replace_text
from ..common.keep_rates import rate_name
from ..reporting.agreement import LABEL_HEADINGS, PRUNE_RESULTS, RATES
from ..reporting.style import COLOURS, DPI, MARKERS, new_figure, tidy
from ..reporting.tables import UNDEFINED, format_mean, markdown_table, mean_and_sd

# Levels of a report in the order of the table; others, of evaluations, come after them.
LEVELS = {
    "untrained": "none (random tokens)",
    "calibrated": "calibrate",
    "distilled": "distill",
    "labelled": "labels",
}


class Measured(NamedTuple):
    """
    One level of one seed.

    Args:
        metric (`str`): Which accuracy by labels.
        accuracy (`dict[float, float]`): By keep rate.
        agreement (`dict[float, float]`): Mean IoU with the dense prediction, by keep rate; empty where not measured.
        minutes (`float`): Of processor time that fitting took, with the levels before it; nan where not measured.
        num_images (`int`): That it was measured on.
    """

    metric: str
    accuracy: dict[float, float]
    agreement: dict[float, float]
    minutes: float
    num_images: int


def read_report(path: Path) -> Iterator[tuple[str, Measured]]:
    """Every level of a `prune_results.json` with accuracy by labels."""
    results = json.loads(path.read_text(encoding="utf-8"))
    passed, seconds = results.get("processor_seconds"), 0.0
    dense, num_images = results["dense"]["labels"], results["num_images"]["reported_on"]
    metric = next(iter(dense))
    for level, by_rate in results["agreement"].items():
        accuracy = {float(rate): row["labels"][metric] for rate, row in by_rate.items()}
        agreement = {float(rate): row["mean_iou"] for rate, row in by_rate.items()}
        seconds = float("nan") if passed is None else seconds + passed.get(level, 0.0)
        found = {1.0: dense[metric], **accuracy}, {1.0: 1.0, **agreement}
        yield LEVELS[level], Measured(metric, *found, seconds / 60, num_images)


def read_metrics(path: Path, name: str) -> tuple[str, Measured]:
    """An evaluation, under this name, and its agreement with a dense model, if that was measured."""
    beside = path.with_name("agreement.json")
    agreement = json.loads(beside.read_text(encoding="utf-8"))["mean_iou"] if beside.is_file() else {}
    metrics = json.loads(path.read_text(encoding="utf-8"))
    results = metrics["results"]
    metric = "mean_iou" if "mean_iou" in next(iter(results.values())) else "average_precision"
    values = {
        float(rate): result[metric] if metric == "mean_iou" else result["pooled"][metric]
        for rate, result in results.items()
    }
    agreement = {float(rate): value for rate, value in agreement.items()}
    return name, Measured(metric, values, agreement, float("nan"), len(metrics["images"]))


def collect(folder: Path) -> dict[str, list[Measured]]:
    """The levels of a data set, each with its seeds; of a level that several reports of a seed have, the first one."""
    found: dict[str, dict[str, Measured]] = {name: {} for name in LEVELS.values()}
    for seed in sorted(folder.glob("*/seed-*")):
        if (seed / PRUNE_RESULTS).is_file():
            levels = list(read_report(seed / PRUNE_RESULTS))
        else:
            levels = [read_metrics(seed / "metrics.json", seed.parent.name.replace("_", " "))]
        for name, measured in levels:
            found.setdefault(name, {}).setdefault(seed.name, measured)
    return {name: list(seeds.values()) for name, seeds in found.items() if seeds}


def levels_table(levels: dict[str, list[Measured]]) -> str:
    """
    One row a level: accuracy by labels, agreement with the dense prediction, minutes, seeds and images; mean ± sd over
    seeds. Columns in which nothing was measured are left out.
    """
    metric = next(iter(levels.values()))[0].metric
    rates = [rate_name(rate) for rate in RATES]
    heading = LABEL_HEADINGS[metric].removesuffix(", labels")
    lines = [["level", *(f"{heading} {rate}" for rate in rates), *(f"agreement {rate}" for rate in rates),
              "minutes", "seeds", "images"]]  # fmt: skip
    for name, seeds in levels.items():
        minutes = mean_and_sd(seed.minutes for seed in seeds)[0]
        cells = [
            format_mean(*mean_and_sd([values[rate] for values in of_seeds if rate in values]))
            for of_seeds in ([seed.accuracy for seed in seeds], [seed.agreement for seed in seeds])
            for rate in RATES
        ]
        taken = UNDEFINED if minutes != minutes else f"{minutes:.0f}"
        lines.append([name, *cells, taken, str(len(seeds)), str(seeds[0].num_images)])
    columns = [column for column in zip(*lines, strict=True) if set(column[1:]) != {UNDEFINED}]
    return markdown_table(list(map(list, zip(*columns, strict=True))))


def draw_levels(data_sets: dict[str, dict[str, list[Measured]]], path: Path) -> None:
    """Accuracy by labels against keep rate, a line a level and a panel a data set."""
    figure = new_figure(4.2 * len(data_sets), 3.6)
    names = list(dict.fromkeys(name for levels in data_sets.values() for name in levels))
    for axis, (title, levels) in zip(
        figure.subplots(1, len(data_sets), squeeze=False)[0], data_sets.items(), strict=True
    ):
        for name, seeds in levels.items():
            place = names.index(name)
            values = [mean_and_sd(seed.accuracy[rate] for seed in seeds)[0] for rate in RATES]
            axis.plot(RATES, values, color=COLOURS[place], marker=MARKERS[place], markersize=4, label=name)
        axis.set(title=title, xlabel="keep rate per stage", xticks=RATES)
        axis.set_ylabel(LABEL_HEADINGS[next(iter(levels.values()))[0].metric].removesuffix(", labels"))
        axis.invert_xaxis()
        tidy(axis)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=DPI)


def main(folder: Path) -> None:
    """Write table and figure of the records in a folder."""
    data_sets = {path.name: collect(path) for path in sorted(folder.iterdir()) if any(path.glob("*/seed-*"))}
    parts = [f"## {name}\n\n{levels_table(levels)}" for name, levels in data_sets.items()]
    replace_text(folder / "table.md", "# Levels of reg4pru prune\n\n" + "\n\n".join(parts) + "\n")
    draw_levels(data_sets, folder / "levels.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
