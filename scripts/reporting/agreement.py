"""The report of `reg4pru prune`: a table, a figure, and everything as JSON."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..common.atomic_files import replace_json, replace_text
from ..common.keep_rates import rate_name
from .class_colours import class_colours
from .style import hide_axes, new_figure
from .tables import UNDEFINED, format_number, markdown_table

PRUNE_RESULTS, TABLE = "prune_results.json", "table.md"
# Keep rates of the tables that compare levels.
RATES = (1.0, 0.7, 0.5, 0.3)
# The metric by labels → its heading.
LABEL_HEADINGS = {"average_precision": "AP, labels", "mean_iou": "mean IoU, labels"}


def agreement_table(results: dict) -> str:
    """
    Agreement with the dense prediction by level and keep rate, and by class where there are more than two; with
    accuracy by labels, and what of it is lost, where there were labels.
    """
    dense = results["dense"]
    classes = list(next(iter(next(iter(results["agreement"].values())).values()))["per_class"])
    shown = classes if len(classes) > 2 else classes[1:]
    metric = next(iter(dense["labels"])) if "labels" in dense else None
    by_labels = [LABEL_HEADINGS[metric], "change"] if metric else []
    lines = [["level", "keep rate", "mean IoU", "boundary IoU", *(f"Dice {name}" for name in shown), *by_labels,
              "tokens", "ms per image", "× dense"]]  # fmt: skip
    own = [format_number(dense["labels"][metric]), UNDEFINED] if metric else []
    measured = [row["per_class"] for rows in results["agreement"].values() for row in rows.values()]
    found = {name for per_class in measured for name in shown if (per_class[name]["dice"] or 0) > 0}
    itself = ["1.000" if name in found else UNDEFINED for name in shown]  # a class that it never predicts has none
    lines.append(["dense", "1.0", "1.000", "1.000", *itself, *own, "100 %", f"{dense['milliseconds']:.0f}", "1.00"])
    for level, by_rate in results["agreement"].items():
        for rate, row in by_rate.items():
            if metric:
                own = [format_number(row["labels"][metric]), _change(row["labels"][metric], dense["labels"][metric])]
            lines.append(
                [
                    level,
                    rate_name(float(rate)),  # JSON has names of strings only
                    format_number(row["mean_iou"]),
                    format_number(row["boundary_iou"]),
                    *(format_number(row["per_class"][name]["dice"]) for name in shown),
                    *own,
                    f"{row['tokens']:.0%}".replace("%", " %"),
                    f"{row['milliseconds']:.0f}",
                    f"{row['times_dense']:.2f}",
                ]
            )
    return markdown_table(lines)


def _change(value: float | None, dense: float | None) -> str:
    return UNDEFINED if value is None or dense is None else format_number(round(value - dense, 3) + 0.0, "+.3f")


def report_text(results: dict) -> str:
    """The report to read: verdict, table, what was measured where."""
    counts, made_by = results["num_images"], results["provenance"]
    busy = results.get("processor_seconds", {})
    levels = ", ".join(
        f"{level} {_duration(seconds)}" + (f" ({_duration(busy[level])} of processor time)" if level in busy else "")
        for level, seconds in results.get("seconds", {}).items()
    )
    fingerprint = f", fingerprint {results['fingerprint']}" if "fingerprint" in results else ""
    accuracy = "" if "labels" in results["dense"] else " Accuracy against labels: reg4pru evaluate."
    return "\n\n".join(
        [
            results["verdict"],
            agreement_table(results),
            f"Agreement of the pruned with the unpruned prediction on {counts['reported_on']} images, which nothing "
            f"was fitted to (of {counts['fitted_on']} others {results['num_tiles']} tiles were{fingerprint}); times "
            f"are medians on {made_by['device']}, in turns with the unpruned model."
            + (f" Fitting took: {levels}." if levels else "")
            + accuracy
            + f" Made by `{made_by['command']}` on {made_by['date'][:10]}, commit {made_by['commit']}.",
        ]
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def write_report(output_dir: Path, results: dict) -> None:
    """Write `table.md` and, last, `prune_results.json`, which says that the folder is complete."""
    replace_text(output_dir / TABLE, report_text(results) + "\n")
    replace_json(output_dir / PRUNE_RESULTS, results)


def draw_differences(
    path: Path, rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], num_classes: int, title: str
) -> None:
    """
    Draw images, their dense predictions, the pruned ones and where these differ.

    Args:
        path (`Path`): The PNG file to write.
        rows (sequence of `tuple`): Of an image `(height, width, 3)`, `uint8`, and of two maps of classes.
        num_classes (`int`): Of the model; two are shown as black and white.
        title (`str`): What is shown.
    """
    columns = ("image", "unpruned", "pruned", "different")
    height, width = rows[0][0].shape[:2]
    figure = new_figure(2.4 * len(columns), 2.4 * len(rows) * height / width + 0.6)
    figure.suptitle(title, fontsize=10)
    binary = num_classes == 2
    colours = np.array([[0] * 3, [255] * 3], dtype=np.uint8) if binary else class_colours(num_classes)
    for axes, (image, dense, pruned) in zip(
        figure.subplots(len(rows), len(columns), squeeze=False), rows, strict=True
    ):
        axes[0].imshow(image)
        for axis, classes in zip(axes[1:3], (dense, pruned), strict=True):
            axis.imshow(colours[classes], interpolation="nearest")
        axes[3].imshow(dense != pruned, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        for axis in axes:
            hide_axes(axis)
    for axis, column in zip(figure.axes[: len(columns)], columns, strict=True):
        axis.set_title(column, fontsize=9)
    figure.savefig(path, dpi=150)
