"""The numbers of a comparison as HTML, and in rows for the table that can be downloaded."""

import math
from html import escape

from ..reporting.panels import FALSE, FOUND, GROUND, MISSED, VESSEL, stage_colours
from ..reporting.speed import front_rows, measured_sentence, rates_name
from .comparison import OpenImage, Prediction, agreement

COLUMNS = ("keep_rate", "milliseconds", "speed_up", "tokens", "dice", "cldice", "true_dice", "true_cldice")


def measured_row(image: OpenImage, prediction: Prediction, keep_rates: list[float]) -> dict:
    """
    One row of the table.

    Args:
        image ([`OpenImage`]): The image.
        prediction ([`Prediction`]): Its prediction.
        keep_rates (`list[float]`): The rate of every stage.

    Returns:
        `dict`: by [`COLUMNS`]; `tokens` is the share of the unpruned model's in percent, Dice and clDice are those
        against the unpruned prediction and against the truth (`nan` where there is none).
    """
    dense = image.dense
    dice, cldice = agreement(prediction, dense.vessels, image.inside)
    truth = (math.nan, math.nan)
    if image.truth is not None:
        truth = agreement(prediction, image.truth, image.inside)
    return {
        "keep_rate": rates_name(keep_rates),
        "milliseconds": round(1000 * prediction.seconds, 1),
        "speed_up": round(dense.seconds / prediction.seconds, 3),
        "tokens": round(100 * sum(prediction.token_counts) / sum(dense.token_counts), 1),
        "dice": dice,
        "cldice": cldice,
        "true_dice": truth[0],
        "true_cldice": truth[1],
    }


def headline(row: dict) -> str:
    """Three figures and what they mean."""
    tiles = [
        (f"{row['speed_up']:.2f}×", "as fast as without pruning, on this machine"),
        (f"{row['tokens']:.0f} %", "of the tokens are computed"),
        (_score(row["dice"]), "agreement with the unpruned mask (Dice)"),
    ]
    cells = "".join(f"<div><strong>{value}</strong><span>{what}</span></div>" for value, what in tiles)
    return f'<div class="r4p-figures">{cells}</div>'


def comparison_table(rows: dict[str, dict]) -> str:
    """Rows by name as a table."""
    heads = ["", "time", "Dice with unpruned", "clDice with unpruned"]
    has_truth = any(not math.isnan(row["true_dice"]) for row in rows.values())
    heads += ["Dice with truth", "clDice with truth"] if has_truth else []
    lines = []
    for name, row in rows.items():
        cells = [f"{row['milliseconds']:.0f} ms", _score(row["dice"]), _score(row["cldice"])]
        cells += [_score(row["true_dice"]), _score(row["true_cldice"])] if has_truth else []
        lines.append(f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="r4p-scroll"><table class="r4p-table"><tr>{head}</tr>{"".join(lines)}</table></div>'


def speed_table(speed: dict) -> str:
    """What `reg4pru tune` found for this checkpoint: the settings that nothing beats in time and accuracy."""
    heads = ("ms an image", "× unpruned", "keep rates", "reactivated after", "pool", "AP", "Dice", "clDice")
    lines = [
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row.values()) + "</tr>" for row in front_rows(speed)
    ]
    head = "".join(f"<th>{name}</th>" for name in heads)
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


def stage_legend(num_stages: int) -> str:
    """The colours of the map of stages."""
    names = [f"pruned at stage {stage + 1}" for stage in range(num_stages)] + ["never pruned"]
    return _legend(zip(stage_colours(num_stages).tolist(), names, strict=True))


def difference_legend() -> str:
    """The colours of the map of differences."""
    return _legend([(FOUND, "vessel in both"), (MISSED, "lost by pruning"), (FALSE, "new with pruning")])


def probability_legend() -> str:
    """The ends of the map of probabilities."""
    return _legend([(GROUND, "0"), (VESSEL, "1")])


def heading(text: str) -> str:
    """Title of an image."""
    return f'<div class="r4p-heading">{text}</div>'


def _legend(entries) -> str:
    spans = (f"<span><i style='background:rgb{tuple(colour)}'></i>{name}</span>" for colour, name in entries)
    return f'<div class="r4p-legend">{"".join(spans)}</div>'


def _score(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
