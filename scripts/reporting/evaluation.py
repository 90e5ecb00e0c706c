"""The results of an evaluation by keep rate: as a table to read, as JSON and CSV to compute with."""

import math
from pathlib import Path

from datasets_fives.metrics import METRICS, MeasuredClasses, VesselMetrics

from ..common.atomic_files import replace_json, replace_table, replace_text
from .tables import UNDEFINED, markdown_table

# What stands beside metrics.json, is of the same weights, and is published with it.
_COMPANIONS = ("per_image.csv", "table.md", "figure.png", "classes.png")
HEADINGS = {
    "average_precision": "AP",
    "auroc": "AUROC",
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "cldice": "clDice",
    "boundary_iou": "boundary IoU",
    "centerline_recall": "centre-line recall",
    "mcc": "MCC",
    "betti0_error": "β0 error",
    "betti1_error": "β1 error",
    "calibration_error": "calibration error",
}


def results_table(measured: dict[str, VesselMetrics], size: str = "their own size") -> str:
    """
    All metrics by keep rate, pooled, per image and by group, as Markdown that also reads well on a terminal.

    Args:
        measured (`dict[str, VesselMetrics]`): From [`~datasets_fives.metrics.measure`], by keep rate.
        size (`str`, *optional*, defaults to `"their own size"`): The size of images at which it was measured.
    """
    results = {rate: metrics.compute() for rate, metrics in measured.items()}
    num_images = next(iter(results.values()))["num_images"]
    headings = ["keep rate", *(HEADINGS[metric] for metric in METRICS)]

    def pooled(result: dict) -> list[str]:
        return [_shown(result["pooled"][metric]) for metric in METRICS]

    def with_best(result: dict) -> list[str]:
        threshold = result["best_threshold"]
        best = UNDEFINED if math.isnan(threshold) else f"{threshold:.2f} ({result['best_dice']:.3f})"
        return [*pooled(result), best]

    def per_image(result: dict) -> list[str]:
        values = (result["per_image"][metric] for metric in METRICS)
        return [f"{_shown(value['mean'])} ± {_shown(value['sd'])}" for value in values]

    parts = [f"Pooled over all pixels (images: {num_images}, at {size}):\n"]
    rows = [[rate, *with_best(result)] for rate, result in results.items()]
    parts.append(aligned_table([[*headings, "best threshold (its Dice)"], *rows]))
    if num_images > 1:
        parts.append("\nPer image, mean ± sd:\n")
        parts.append(aligned_table([headings, *([rate, *per_image(result)] for rate, result in results.items())]))
        parts.extend(_left_out(rate, result) for rate, result in results.items())
    first = next(iter(results.values()))
    for kind in ("condition", *first["per_group"]):
        rows = [
            [value, rate, *pooled(part)]
            for rate, result in results.items()
            for value, part in (result["per_condition"] if kind == "condition" else result["per_group"][kind]).items()
        ]
        if len({row[0] for row in rows}) > 1:
            parts.append(f"\nPooled by {kind}:\n")
            parts.append(aligned_table([[kind, *headings], *sorted(rows, key=lambda row: row[0])]))
    return "\n".join(filter(None, parts)) + "\n"


def _shown(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.3f}"


def _left_out(rate: str, result: dict) -> str:
    """Of how many images a metric is undefined, such as Dice where neither mask nor prediction has a vessel."""
    counts = {metric: result["num_images"] - result["per_image"][metric]["num_images"] for metric in METRICS}
    listed = ", ".join(f"{HEADINGS[metric]} {count}" for metric, count in counts.items() if count)
    return f"\nAt {rate} undefined in some images, which are left out of the mean: {listed}." if listed else ""


def aligned_table(rows: list[list[str]]) -> str:
    """A table that also reads well on a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return markdown_table([[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows])


def write_results(
    output_dir: Path, measured: dict[str, VesselMetrics] | dict[str, MeasuredClasses], table: str, **context: dict
) -> None:
    """
    Write `metrics.json` (the context, such as provenance, then `results` by keep rate), `per_image.csv` (a row per
    image and keep rate) and `table.md`.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    content = {**context, "results": {rate: metrics.compute() for rate, metrics in measured.items()}}
    replace_json(output_dir / "metrics.json", content)
    for name in _COMPANIONS:  # what an earlier evaluation left is not of these weights
        (output_dir / name).unlink(missing_ok=True)
    images = [{"keep_rate": rate, **row} for rate, metrics in measured.items() for row in metrics.rows]
    replace_table(output_dir / "per_image.csv", list(images[0]), images)
    replace_text(output_dir / "table.md", table)
