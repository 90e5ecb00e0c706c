"""What `reg4pru engines` makes of its measurements: ratios within the rounds, a table, and what to use."""

from ..inference.keep_rates import rate_name
from .engines import ENGINES
from .report import summary

# Of average precision: what an engine may cost before it is no longer called equal.
TOLERANCE = 0.005


def with_ratios(rows: list[dict], seconds: list[list[float]], batch_size: int) -> list[dict]:
    """
    The rows with their times, and the ratio to the first one, EoMT of transformers in the first engine, within rounds;
    and how far their average precision is from that of the same model in the first engine.

    Args:
        rows (`list[dict]`): What was measured, all engines of a model together.
        seconds (`list[list[float]]`): Of every row, by round.
        batch_size (`int`): Images a call.
    """
    first: dict[tuple, float | None] = {}
    timed = []
    for row, own in zip(rows, seconds, strict=True):
        reference = first.setdefault((row["model"], row["keep_rate"]), row["average_precision"])
        known = row["average_precision"] is not None
        change = row["average_precision"] - reference if known else None
        timed.append({**row, "change": change, "seconds": own, **summary(own, seconds[0], batch_size)})
    return timed


def engine_table(results: dict) -> str:
    """Markdown: a row a model and engine, what was left out, and the fastest that is as accurate."""
    rows, made = results["rows"], results["provenance"]
    lines = [
        "| model | keep rate | engine | ms | quartiles | × first | AP | change by engine | Dice | clDice |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = (1000 * value for value in row["latency_quartiles"])
        scores = [_score(row[name]) for name in ("average_precision", "dice", "cldice")]
        cells = [
            row["model"],
            "–" if row["keep_rate"] is None else rate_name(row["keep_rate"]),
            row["engine"],
            f"{1000 * row['latency']:.1f}",
            f"{low:.1f}–{high:.1f}",
            f"{row['ratio']:.2f}",
            scores[0],
            "–" if row["change"] is None else f"{row['change']:+.3f}",
            *scores[1:],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    engines = "; ".join(f"{name}: {ENGINES[name]}" for name in dict.fromkeys(row["engine"] for row in rows))
    size = results["image_size"]
    parts = [
        f"Measured on {made['date'][:10]} on {made['device']}, images of {size} × {size} pixels, batch "
        f"{results['settings']['batch_size']}. {engines}. Models without average precision have random weights.",
        "\n".join(lines),
        *(f"Not measured: {name}, {reason}." for name, reason in results["skipped"].items()),
        *_advice(rows),
    ]
    return "\n\n".join(parts)


def _advice(rows: list[dict]) -> list[str]:
    """The fastest engine of every keep rate that costs no more than [`TOLERANCE`]; nothing without quality."""
    lines = []
    for rate in dict.fromkeys(row["keep_rate"] for row in rows if row["keep_rate"] is not None):
        equal = [
            row
            for row in rows
            if row["keep_rate"] == rate and row["change"] is not None and row["change"] >= -TOLERANCE
        ]
        if equal:
            best = min(equal, key=lambda row: row["latency"])
            lines.append(
                f"- keep rate {rate_name(rate)}: {best['engine']}, {best['ratio']:.2f} × (AP "
                f"{best['average_precision']:.3f})"
            )
    if not lines:
        return []
    heading = f"Fastest engine that costs no more than {TOLERANCE} of average precision:"
    return ["\n".join([heading, "", *lines])]


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
