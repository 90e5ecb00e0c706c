"""The report of `reg4pru prune`: a table, a figure, and everything as JSON."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..common.atomic_files import replace_json, replace_text
from ..common.keep_rates import rate_name
from .style import hide_axes, new_figure
from .tables import UNDEFINED, format_number, markdown_table

PRUNE_RESULTS, TABLE = "prune_results.json", "table.md"


def agreement_table(results: dict) -> str:
    """Agreement with the dense prediction by level and keep rate, and by class where there are more than two."""
    classes = list(next(iter(next(iter(results["agreement"].values())).values()))["per_class"])
    shown = classes if len(classes) > 2 else classes[1:]
    lines = [["level", "keep rate", "mean IoU", "boundary IoU", *(f"Dice {name}" for name in shown), "tokens",
              "ms per image", "× dense"]]  # fmt: skip
    lines.append(
        ["dense", UNDEFINED, *["1.000"] * (2 + len(shown)), "100 %", f"{results['dense']['milliseconds']:.0f}", "1.00"]
    )
    for level, by_rate in results["agreement"].items():
        for rate, row in by_rate.items():
            lines.append(
                [
                    level,
                    rate_name(float(rate)),  # JSON has names of strings only
                    format_number(row["mean_iou"]),
                    format_number(row["boundary_iou"]),
                    *(format_number(row["per_class"][name]["dice"]) for name in shown),
                    f"{row['tokens']:.0%}".replace("%", " %"),
                    f"{row['milliseconds']:.0f}",
                    f"{row['times_dense']:.2f}",
                ]
            )
    return markdown_table(lines)


def report_text(results: dict) -> str:
    """The report to read: verdict, table, what was measured where."""
    counts, made_by = results["num_images"], results["provenance"]
    return "\n\n".join(
        [
            results["verdict"],
            agreement_table(results),
            f"Agreement of the pruned with the unpruned prediction on {counts['reported_on']} images, which nothing "
            f"was fitted to (of {counts['fitted_on']} others {results['num_tiles']} tiles were); times are medians on "
            f"{made_by['device']}, in turns with the unpruned model. Accuracy against labels: reg4pru evaluate. "
            f"Made by `{made_by['command']}` on {made_by['date'][:10]}, commit {made_by['commit']}.",
        ]
    )


def write_report(output_dir: Path, results: dict) -> None:
    """Write `table.md` and, last, `prune_results.json`, which says that the folder is complete."""
    replace_text(output_dir / TABLE, report_text(results) + "\n")
    replace_json(output_dir / PRUNE_RESULTS, results)


def draw_differences(path: Path, rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], title: str) -> None:
    """
    Draw images, their dense predictions, the pruned ones and where these differ.

    Args:
        path (`Path`): The PNG file to write.
        rows (sequence of `tuple`): Of an image `(height, width, 3)`, `uint8`, and of two maps of classes.
        title (`str`): What is shown.
    """
    columns = ("image", "unpruned", "pruned", "different")
    figure = new_figure(2.4 * len(columns), 2.4 * len(rows) + 0.4)
    figure.suptitle(title, fontsize=10)
    num_classes = 1 + max(int(np.max(maps)) for _, *both in rows for maps in both)
    for axes, (image, dense, pruned) in zip(
        figure.subplots(len(rows), len(columns), squeeze=False), rows, strict=True
    ):
        axes[0].imshow(image)
        for axis, classes in zip(axes[1:3], (dense, pruned), strict=True):
            axis.imshow(classes, cmap="gray" if num_classes == 2 else "tab20", vmin=0, vmax=max(1, num_classes - 1),
                        interpolation="nearest")  # fmt: skip
        axes[3].imshow(dense != pruned, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        for axis in axes:
            hide_axes(axis)
    for axis, column in zip(figure.axes[: len(columns)], columns, strict=True):
        axis.set_title(column, fontsize=9)
    figure.savefig(path, dpi=150)
