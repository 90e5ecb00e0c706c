"""Measure any predictor of vessel probabilities on images, and write down what came out."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from .features import QUALITY
from .field_of_view import field_of_view
from .masks import counted_pixels
from .metrics.accumulator import METRICS, VesselMetrics

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


def measure(
    predictors: Mapping[str, Callable[[Image.Image, int], np.ndarray]],
    dataset: Dataset,
    *,
    inside_field_of_view: bool = True,
    threshold: float = 0.5,
) -> dict[str, VesselMetrics]:
    """
    Measure predictors side by side, at the resolution of the masks, one image at a time: a test set of any size
    fits in memory.

    Args:
        predictors (`Mapping[str, Callable]`): By name functions of an image and its number in the data set to its
            vessel probability, `(height, width)` in [0, 1].
        dataset (`Dataset`): Rows as [`~datasets_fives.load_fives`] gives them.
        inside_field_of_view (`bool`, *optional*, defaults to `True`): Whether only pixels inside the field of view
            count; otherwise the whole frame does.
        threshold (`float`, *optional*, defaults to 0.5): A pixel is vessel if its probability is above it.

    Returns:
        `dict[str, VesselMetrics]`: by name what was measured: `compute()` for the summary, `rows` for the images.

    Raises:
        `ValueError`: If there are no images; before anything is predicted.
    """
    if not len(dataset):
        raise ValueError("There are no images to measure.")
    measured = {name: VesselMetrics(threshold=threshold) for name in predictors}
    conditions = dataset.features["condition"]
    grades = [grade for grade in QUALITY if grade in dataset.features]
    for index, row in enumerate(tqdm(dataset, desc="Measuring", unit="image", leave=None)):
        vessels, counts = counted_pixels(np.asarray(row["mask"]))
        if inside_field_of_view:
            counts &= imaged_area(row)
        groups = {grade: row[grade] for grade in grades}
        for name, predict in predictors.items():
            probability = predict(row["image"], index)
            measured[name].update(
                row["name"], conditions.int2str(row["condition"]), probability, vessels, counts, groups=groups
            )
    return measured


def imaged_area(row: dict) -> np.ndarray:
    """
    The field of view of an image, `(height, width)` `bool`: the source's own where it has one, else found.

    Args:
        row (`dict`): A row of [`~datasets_fives.load_vessels`].
    """
    if row.get("field_of_view") is not None:
        return np.asarray(row["field_of_view"]) == 1
    return field_of_view(np.asarray(row["image"]))


def results_table(measured: dict[str, VesselMetrics], size: str = "their own size") -> str:
    """
    All metrics by keep rate, pooled, per image and by group, as Markdown that also reads well on a terminal.

    Args:
        measured (`dict[str, VesselMetrics]`): From [`measure`], by keep rate.
        size (`str`, *optional*, defaults to `"their own size"`): The size of images at which it was measured.
    """
    results = {rate: metrics.compute() for rate, metrics in measured.items()}
    num_images = next(iter(results.values()))["num_images"]
    headings = ["keep rate", *HEADINGS.values()]

    def pooled(result: dict) -> list[str]:
        return [f"{result['pooled'][metric]:.3f}" for metric in METRICS]

    def with_best(result: dict) -> list[str]:
        return [*pooled(result), f"{result['best_threshold']:.2f} ({result['best_dice']:.3f})"]

    def per_image(result: dict) -> list[str]:
        values = (result["per_image"][metric] for metric in METRICS)
        return [f"{value['mean']:.3f} ± {value['sd']:.3f}" for value in values]

    parts = [f"Pooled over all pixels (images: {num_images}, at {size}):\n"]
    rows = [[rate, *with_best(result)] for rate, result in results.items()]
    parts.append(_markdown([[*headings, "best threshold (its Dice)"], *rows]))
    if num_images > 1:
        parts.append("\nPer image, mean ± sd:\n")
        parts.append(_markdown([headings, *([rate, *per_image(result)] for rate, result in results.items())]))
    first = next(iter(results.values()))
    for kind in ("condition", *first["per_group"]):
        rows = [
            [value, rate, *pooled(part)]
            for rate, result in results.items()
            for value, part in (result["per_condition"] if kind == "condition" else result["per_group"][kind]).items()
        ]
        if len({row[0] for row in rows}) > 1:
            parts.append(f"\nPooled by {kind}:\n")
            parts.append(_markdown([[kind, *headings], *sorted(rows, key=lambda row: row[0])]))
    return "\n".join(parts) + "\n"


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def write_results(
    output_dir: Path, measured: dict[str, VesselMetrics], size: str = "their own size", **context: dict
) -> None:
    """
    Write `metrics.json` (the context, such as provenance, then `results` by keep rate), `per_image.csv` (a row per
    image and keep rate) and `table.md`.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    content = {**context, "results": {rate: metrics.compute() for rate, metrics in measured.items()}}
    # JSON knows no nan: what is undefined becomes null.
    content = json.loads(json.dumps(content), parse_constant=lambda constant: None)
    (output_dir / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")
    with (output_dir / "per_image.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["keep_rate", "name", "condition", *METRICS])
        writer.writeheader()
        for rate, metrics in measured.items():
            writer.writerows({"keep_rate": rate, **row} for row in metrics.rows)
    (output_dir / "table.md").write_text(results_table(measured, size))
