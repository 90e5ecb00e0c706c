"""What the benchmark writes: summaries of the rounds, tables, and the plot of throughput against keep rate."""

import statistics
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from ..common.keep_rates import rate_name
from .engines import ENGINES

matplotlib.use("Agg")


def summary(seconds: list[float], reference: list[float], batch_size: int = 1) -> dict:
    """
    Median and quartiles over the rounds. A ratio is taken within its round, against what ran beside it, and only then
    the median: a machine that is busy for a while favours nobody.

    Args:
        seconds (`list[float]`): Seconds of every round.
        reference (`list[float]`): Those of the reference in the same rounds.
        batch_size (`int`, *optional*, defaults to 1): Images a call.
    """
    ratios = [other / own for own, other in zip(seconds, reference, strict=False)]
    return {
        "latency": statistics.median(seconds),
        "latency_quartiles": quartiles(seconds),
        "throughput": batch_size / statistics.median(seconds),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": quartiles(ratios),
    }


def quartiles(values: list[float]) -> list[float]:
    """First and third quartile; of a single value, itself."""
    if len(values) == 1:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def inference_table(rows: list[dict]) -> str:
    """Markdown table of the inference part."""
    lines = [
        "| batch | model | keep rate | reactivated after | ms | quartiles | img/s | × dense | FLOPs allow | GFLOPs | "
        "memory (MB) | between layers |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = "–" if row["keep_rate"] is None else f"{row['keep_rate']:g}"
        layer = "–" if row["reactivation_layer"] is None else f"L−{row['num_layers'] - row['reactivation_layer']}"
        low, high = (1000 * value for value in row["latency_quartiles"])
        share = "–" if row["between_layers_share"] is None else f"{100 * row['between_layers_share']:.1f} %"
        lines.append(
            f"| {row['batch_size']} | {row['name']} | {rate} | {layer} | {1000 * row['latency']:.1f} | "
            f"{low:.1f}–{high:.1f} | {row['throughput']:.2f} | {row['ratio']:.2f} | {row['flops_limit']:.2f} | "
            f"{row['gflops']:.1f} | {row['peak_memory'] / 1e6:.0f} | {share} |"
        )
    return "\n".join(lines)


def training_table(rows: list[dict], skipped: dict[str, str]) -> str:
    """Markdown table of the training part."""
    lines = [
        "| training step | s | quartiles | time / dense | memory (MB) | largest | memory / dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["latency_quartiles"]
        lines.append(
            f"| {row['name']} | {row['latency']:.3f} | {low:.3f}–{high:.3f} | {1 / row['ratio']:.2f} | "
            f"{row['peak_memory'] / 1e6:.0f} | {max(row['peak_memories']) / 1e6:.0f} | {row['memory_ratio']:.2f} |"
        )
    lines += [f"| {name} | not measured: {reason} | | | | | |" for name, reason in skipped.items()]
    return "\n".join(lines)


def attention_table(result: dict) -> str:
    """Markdown table of one attention layer under a policy."""
    lines = [
        f"| policy attention, {result['num_tokens']} tokens | ms | memory (MB) |",
        "|---|---|---|",
    ]
    for name in ("extra_channel", "explicit"):
        seconds, memory = statistics.median(result[name]["seconds"]), result[name]["peak_memory"]
        lines.append(f"| {name.replace('_', ' ')} | {1000 * seconds:.1f} | {memory / 1e6:.0f} |")
    return "\n".join(lines)


def plot_throughput(rows: list[dict], title: str, path: Path) -> None:
    """Throughput against keep rate, a panel a batch size, with what the FLOPs would allow."""
    batch_sizes = sorted({row["batch_size"] for row in rows})
    figure, axes = plt.subplots(
        1, len(batch_sizes), figsize=(1 + 5.2 * len(batch_sizes), 4.4), squeeze=False, layout="constrained"
    )
    for axis, batch_size in zip(axes[0], batch_sizes, strict=True):
        panel = [row for row in rows if row["batch_size"] == batch_size]
        dense = next(row for row in panel if row["keep_rate"] is None)
        axis.axhline(dense["throughput"], color="0.45", linewidth=1, label="dense, transformers")
        layers = sorted({row["reactivation_layer"] for row in panel if row["keep_rate"] is not None})
        for colour, layer in zip(plt.rcParams["axes.prop_cycle"].by_key()["color"], layers, strict=False):
            line = sorted(
                (row for row in panel if row["reactivation_layer"] == layer), key=lambda row: row["keep_rate"]
            )
            rates = [row["keep_rate"] for row in line]
            middle = [row["throughput"] for row in line]
            low = [row["throughput"] - batch_size / row["latency_quartiles"][1] for row in line]
            high = [batch_size / row["latency_quartiles"][0] - row["throughput"] for row in line]
            name = f"reactivated after L−{line[0]['num_layers'] - layer}"
            axis.errorbar(rates, middle, yerr=(low, high), color=colour, marker="o", capsize=3, label=name)
            limit = [dense["throughput"] * row["flops_limit"] for row in line]
            axis.plot(rates, limit, color=colour, linestyle="--", linewidth=1)
        axis.plot([], [], color="0.45", linestyle="--", linewidth=1, label="limit that the FLOPs allow")
        axis.set(xlabel="keep rate of each stage", ylabel="images per second", title=f"batch {batch_size}")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


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
