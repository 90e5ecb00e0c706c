"""The numbers of a comparison as HTML, and in rows for the table that can be downloaded."""

import math
from html import escape

from ..reporting.speed import front_headings, front_rows, measured_sentence, rates_name
from .binary_view import BinaryView
from .class_view import ClassView
from .comparison import OpenImage
from .prediction import Prediction

_TRUE = "true_"  # before the name of a score against the truth


def measured_row(image: OpenImage, prediction: Prediction, keep_rates: list[float]) -> dict:
    """
    One row of the table.

    Args:
        image ([`OpenImage`]): The image.
        prediction ([`Prediction`]): Its prediction.
        keep_rates (`list[float]`): The rate of every stage.

    Returns:
        `dict`: `keep_rate`, `milliseconds`, `speed_up`, `tokens`, the share of the unpruned model's in percent, then
        the scores of the view against the unpruned prediction, and, as `true_...`, against the truth (`nan` where
        there is none).
    """
    dense, view = image.dense, image.view
    scores, truth = view.agreement(prediction, dense.labels, image.inside), dict.fromkeys(view.scores, math.nan)
    if image.truth is not None:
        truth = view.agreement(prediction, image.truth, image.inside)
    return {
        "keep_rate": rates_name(keep_rates),
        "milliseconds": round(1000 * prediction.seconds, 1),
        "speed_up": round(dense.seconds / prediction.seconds, 3),
        "tokens": round(100 * sum(prediction.token_counts) / sum(dense.token_counts), 1),
        **scores,
        **{f"{_TRUE}{name}": value for name, value in truth.items()},
    }


def headline(row: dict, view: BinaryView | ClassView) -> str:
    """Three figures and what they mean."""
    name, title = next(iter(view.scores.items()))
    tiles = [
        (f"{row['speed_up']:.2f}×", "as fast as without pruning, on this machine"),
        (f"{row['tokens']:.0f} %", "of the tokens are computed"),
        (_score(row[name]), f"agreement with {view.unpruned} ({title})"),
    ]
    cells = "".join(f"<div><strong>{value}</strong><span>{what}</span></div>" for value, what in tiles)
    return f'<div class="r4p-figures">{cells}</div>'


def comparison_table(rows: dict[str, dict], view: BinaryView | ClassView) -> str:
    """Rows by name as a table."""
    columns = {name: f"{title} with unpruned" for name, title in view.scores.items()}
    of_truth = {f"{_TRUE}{name}": f"{title} with truth" for name, title in view.scores.items()}
    if any(not math.isnan(row[next(iter(of_truth))]) for row in rows.values()):
        columns |= of_truth
    heads = ["", "time", *columns.values()]
    lines = []
    for name, row in rows.items():
        cells = [f"{row['milliseconds']:.0f} ms", *(_score(row[name]) for name in columns)]
        lines.append(f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="r4p-scroll"><table class="r4p-table"><tr>{head}</tr>{"".join(lines)}</table></div>'


def speed_table(speed: dict) -> str:
    """What `reg4pru tune` found for this checkpoint: the settings that nothing beats in time and accuracy."""
    lines = [
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row.values()) + "</tr>" for row in front_rows(speed)
    ]
    head = "".join(f"<th>{heading}</th>" for heading in front_headings(speed).values())
    caption = f"<caption>{escape(measured_sentence(speed))}</caption>"
    return f'<div class="r4p-scroll"><table class="r4p-table">{caption}<tr>{head}</tr>{"".join(lines)}</table></div>'


def token_bars(dense: Prediction, pruned: Prediction, pruning_layers: list[int], reactivation_layer: int) -> str:
    """Tokens by layer: bars of the pruned model on those of the unpruned one."""
    rows = []
    for layer, (count, full) in enumerate(zip(pruned.token_counts, dense.token_counts, strict=True)):
        note = "prunes" if layer in pruning_layers else "reactivates" if layer == reactivation_layer else ""
        width = 100 * count / max(dense.token_counts)
        rows.append(
            f"<tr><th>{layer}</th><td class='r4p-bar'><i style='width:{width:.1f}%'></i></td>"
            f"<td>{count} <small>of {full}</small></td><td><small>{note}</small></td></tr>"
        )
    tiles = f"{pruned.num_tiles} tiles" if pruned.num_tiles > 1 else "one tile"
    caption = f"<caption>Tokens by layer, of each tile ({tiles})</caption>"
    return f'<div class="r4p-scroll"><table class="r4p-table r4p-tokens">{caption}{"".join(rows)}</table></div>'


def heading(text: str) -> str:
    """Title of an image."""
    return f'<div class="r4p-heading">{text}</div>'


def _score(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
