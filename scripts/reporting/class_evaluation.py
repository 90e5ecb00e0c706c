"""The results of an evaluation of several classes by keep rate: to read, to compute with, and as a figure."""

import math
from collections.abc import Mapping
from pathlib import Path

from datasets_fives.metrics import MeasuredClasses

from .evaluation import aligned_table
from .style import COLOURS, DPI, MARKERS, new_figure, tidy
from .tables import format_number

HEADINGS = {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy", "boundary_iou": "boundary IoU"}
_MOST_SHOWN = 30  # classes in a figure


def results_table(measured: Mapping[str, MeasuredClasses], size: str = "their own size") -> str:
    """
    The metrics over all classes, and the IoU of each class, by keep rate, and what pruning costs every class, as
    Markdown that also reads well on a terminal.

    Args:
        measured (`Mapping[str, MeasuredClasses]`): From [`~datasets_fives.metrics.measure_classes`], by keep rate.
        size (`str`, *optional*, defaults to `"their own size"`): The size of images at which it was measured.
    """
    results = {rate: metrics.compute() for rate, metrics in measured.items()}
    rates, num_images = list(results), next(iter(results.values()))["num_images"]
    lines = [["keep rate", *HEADINGS.values()]]
    lines += [[rate, *(format_number(result[name]) for name in HEADINGS)] for rate, result in results.items()]
    parts = [f"Over all pixels (images: {num_images}, at {size}):\n", aligned_table(lines)]

    iou = iou_by_class(results)
    lines = [[name, *(format_number(values[rate]) for rate in rates)] for name, values in iou.items()]
    parts += ["\nIoU by class and keep rate:\n", aligned_table([["class", *rates], *lines])]

    reference, pruned = max(rates, key=float), sorted(set(rates) - {max(rates, key=float)}, key=float, reverse=True)
    if pruned:
        losses = lost_by_pruning(iou, reference)
        lines = [[name, *(format_number(values[rate], "+.3f") for rate in pruned)] for name, values in losses.items()]
        parts.append(f"\nChange of IoU from keep rate {reference}, the class that loses most first:\n")
        parts.append(aligned_table([["class", *pruned], *lines]))
    return "\n".join(parts) + "\n"


def iou_by_class(results: Mapping[str, dict]) -> dict[str, dict[str, float]]:
    """IoU by class and keep rate, from results by keep rate; `nan` where undefined (`None`, as JSON has it)."""
    names = next(iter(results.values()))["per_class"]
    return {
        name: {rate: math.nan if (iou := result["per_class"][name]["iou"]) is None else iou
               for rate, result in results.items()}
        for name in names
    }  # fmt: skip


def lost_by_pruning(iou: Mapping[str, Mapping[str, float]], reference: str) -> dict[str, dict[str, float]]:
    """
    How far the IoU of each class at lower keep rates is from that at the reference; the class that loses most at the
    lowest rate comes first, those of which that is undefined last.

    Args:
        iou (`Mapping`): From [`iou_by_class`].
        reference (`str`): The highest keep rate.
    """
    changes = {
        name: {rate: value - values[reference] for rate, value in values.items() if rate != reference}
        for name, values in iou.items()
    }

    def at_lowest_rate(name: str) -> float:
        change = changes[name][min(changes[name], key=float)]
        return math.inf if math.isnan(change) else change

    return {name: changes[name] for name in sorted(changes, key=at_lowest_rate)}


def draw_classes(path: Path, measured: Mapping[str, MeasuredClasses]) -> None:
    """Draw mean and boundary IoU over the keep rate, and the IoU of every class at each rate (of thirty at most)."""
    results = {rate: metrics.compute() for rate, metrics in measured.items()}
    rates = sorted(results, key=float, reverse=True)
    iou = iou_by_class(results)
    # Those that pruning hurts most are shown where there are too many.
    names = list(lost_by_pruning(iou, rates[0]) if len(rates) > 1 else iou)[:_MOST_SHOWN]
    names.sort(key=lambda name: math.inf if math.isnan(iou[name][rates[0]]) else iou[name][rates[0]])

    figure = new_figure(9, max(3.2, 1.2 + 0.24 * len(names)))
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    for metric, colour, marker in zip(("mean_iou", "boundary_iou"), COLOURS[1:], MARKERS, strict=False):
        left.plot(
            list(map(float, rates)), [results[rate][metric] for rate in rates], marker=marker, color=colour,
            label=HEADINGS[metric],
        )  # fmt: skip
    left.set(xlabel="keep rate of each stage", ylabel="IoU", ylim=(0, None))
    left.legend(frameon=False, fontsize=9)
    for rate, marker, colour in zip(rates, MARKERS * len(rates), COLOURS * len(rates), strict=False):
        values = [iou[name][rate] for name in names]
        right.plot(values, range(len(names)), linestyle="", marker=marker, color=colour, markersize=5, label=rate)
    for place, name in enumerate(names):
        known = [value for value in iou[name].values() if not math.isnan(value)]
        if known:
            right.plot([min(known), max(known)], [place, place], color="0.8", linewidth=1, zorder=0)
    right.set(xlabel="IoU", xlim=(0, 1), yticks=range(len(names)), yticklabels=names)
    right.legend(title="keep rate", frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    for axis in (left, right):
        tidy(axis)
    figure.savefig(path, dpi=DPI)
