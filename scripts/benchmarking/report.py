"""Results of the benchmark for readers: tables, and the plot of throughput against keep rate."""

import statistics
from pathlib import Path

from ..common.keep_rates import rate_name
from ..reporting.style import COLOURS, DPI, new_figure, tidy
from ..reporting.tables import UNDEFINED, format_number, markdown_table
from .arguments import ENGINES
from .quality_names import qualities_of
from .timing import PARTS

# Of average precision or mean IoU: what an engine may lose and still be recommended.
TOLERANCE = 0.005


def inference_table(rows: list[dict]) -> str:
    """The inference part as a Markdown table."""
    lines = [
        ["model", "batch size", "keep rate", "reactivation after layer", "ms", "quartiles", "images/s", "× dense",
         "FLOPs allow", "GFLOPs", "memory (MB)", "between layers"]
    ]  # fmt: skip
    for row in rows:
        share = row["between_layers_share"]
        lines.append(
            [
                row["name"],
                str(row["batch_size"]),
                _rate(row["keep_rate"]),
                _layer(row),
                f"{1000 * row['latency']:.1f}",
                _quartiles([1000 * value for value in row["latency_quartiles"]], 1),
                f"{row['throughput']:.2f}",
                f"{row['ratio']:.2f}",
                f"{row['flops_limit']:.2f}",
                f"{row['gflops']:.1f}",
                f"{row['peak_memory'] / 1e6:.0f}",
                UNDEFINED if share is None else f"{100 * share:.1f} %",
            ]
        )
    return markdown_table(lines)


def parts_table(rows: list[dict]) -> str:
    """Milliseconds of a forward pass by part, as a Markdown table; the dense model of transformers has other parts."""
    lines = [["batch size", "keep rate", "reactivation after layer", *(f"{name}, ms" for name in PARTS.values())]]
    for row in rows:
        if row["time_shares"]:
            parts = [f"{1000 * row['latency'] * row['time_shares'][name]:.1f}" for name in PARTS]
            lines.append([str(row["batch_size"]), _rate(row["keep_rate"]), _layer(row), *parts])
    return markdown_table(lines)


def training_table(rows: list[dict], skipped: dict[str, str]) -> str:
    """The training part as a Markdown table; `skipped` holds the reason for each variant without a measurement."""
    lines = [["training step", "s", "quartiles", "time / dense", "memory (MB)", "largest", "memory / dense"]]
    for row in rows:
        lines.append(
            [
                row["name"],
                f"{row['latency']:.3f}",
                _quartiles(row["latency_quartiles"], 3),
                f"{1 / row['ratio']:.2f}",
                f"{row['peak_memory'] / 1e6:.0f}",
                f"{max(row['peak_memories']) / 1e6:.0f}",
                f"{row['memory_ratio']:.2f}",
            ]
        )
    lines += [[name, f"not measured: {reason}", *[""] * 5] for name, reason in skipped.items()]
    return markdown_table(lines)


def attention_table(result: dict) -> str:
    """One attention layer under a policy as a Markdown table."""
    lines = [[f"policy attention, {result['num_tokens']} tokens", "ms", "memory (MB)"]]
    for name in ("extra_channel", "explicit"):
        seconds, memory = statistics.median(result[name]["seconds"]), result[name]["peak_memory"]
        lines.append([name.replace("_", " "), f"{1000 * seconds:.1f}", f"{memory / 1e6:.0f}"])
    return markdown_table(lines)


def engine_table(results: dict) -> str:
    """`engines.json` as Markdown: a row per model and engine, what was left out, and the engine to use."""
    rows, made, size = results["rows"], results["provenance"], results["image_size"]
    (main, heading), *others = qualities_of(rows[0]).items()
    name = {"AP": "average precision"}.get(heading, heading)
    columns = [heading, "change by engine", *(heading for _, heading in others)]
    lines = [["model", "keep rate", "engine", "ms", "quartiles", "× first", *columns]]
    for row in rows:
        lines.append(
            [
                row["model"],
                _rate(row["keep_rate"]),
                row["engine"],
                f"{1000 * row['latency']:.1f}",
                _quartiles([1000 * value for value in row["latency_quartiles"]], 1),
                f"{row['ratio']:.2f}",
                format_number(row[main]),
                format_number(row["change"], "+.3f"),
                *(format_number(row[other]) for other, _ in others),
            ]
        )
    engines = "; ".join(f"{name}: {ENGINES[name]}" for name in dict.fromkeys(row["engine"] for row in rows))
    parts = [
        f"Measured on {made['date'][:10]} on {made['device']}, images of {size} × {size} pixels, batch size "
        f"{results['settings']['batch_size']}. {engines}. Models without {name} have random weights.",
        markdown_table(lines),
        *(f"Not measured: {name}, {reason}." for name, reason in results["skipped"].items()),
        *_recommendation(rows, main, heading, name),
    ]
    return "\n\n".join(parts)


def _recommendation(rows: list[dict], main: str, heading: str, name: str) -> list[str]:
    """The fastest engine at every keep rate that loses no more than [`TOLERANCE`]; nothing without quality."""
    lines = []
    for rate in dict.fromkeys(row["keep_rate"] for row in rows if row["keep_rate"] is not None):
        of_rate = [row for row in rows if row["keep_rate"] == rate and row["change"] is not None]
        accurate = [row for row in of_rate if row["change"] >= -TOLERANCE]
        if accurate:
            best = min(accurate, key=lambda row: row["latency"])
            quality = format_number(best[main])
            lines.append(
                f"- keep rate {rate_name(rate)}: {best['engine']}, {best['ratio']:.2f} × ({heading} {quality})"
            )
    if not lines:
        return []
    return ["\n".join([f"Fastest engine that loses no more than {TOLERANCE} of {name}:", "", *lines])]


def plot_throughput(rows: list[dict], title: str, path: Path) -> None:
    """Throughput against keep rate, a panel per batch size; dashed the limit that the FLOPs set."""
    batch_sizes = sorted({row["batch_size"] for row in rows})
    figure = new_figure(1 + 5.2 * len(batch_sizes), 4.4)
    axes = figure.subplots(1, len(batch_sizes), squeeze=False)[0]
    for axis, batch_size in zip(axes, batch_sizes, strict=True):
        panel = [row for row in rows if row["batch_size"] == batch_size]
        dense = next(row for row in panel if row["keep_rate"] is None)
        axis.axhline(dense["throughput"], color="0.45", linewidth=1, label="dense, transformers")
        layers = sorted({row["reactivation_layer"] for row in panel if row["keep_rate"] is not None})
        for colour, layer in zip(COLOURS[1:], layers, strict=False):
            line = sorted(
                (row for row in panel if row["reactivation_layer"] == layer), key=lambda row: row["keep_rate"]
            )
            rates = [row["keep_rate"] for row in line]
            middle = [row["throughput"] for row in line]
            low = [row["throughput"] - batch_size / row["latency_quartiles"][1] for row in line]
            high = [batch_size / row["latency_quartiles"][0] - row["throughput"] for row in line]
            name = f"reactivation after {_layer(line[0])}"
            axis.errorbar(rates, middle, yerr=(low, high), color=colour, marker="o", capsize=3, label=name)
            limit = [dense["throughput"] * row["flops_limit"] for row in line]
            axis.plot(rates, limit, color=colour, linestyle="--", linewidth=1)
        axis.plot([], [], color="0.45", linestyle="--", linewidth=1, label="limit set by the FLOPs")
        axis.set(xlabel="keep rate of each stage", ylabel="images per second", title=f"batch size {batch_size}")
        axis.set_ylim(bottom=0)
        tidy(axis)
    axes[0].legend(frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=DPI)


def _rate(rate: float | None) -> str:
    return UNDEFINED if rate is None else rate_name(rate)


def _layer(row: dict) -> str:
    layer = row["reactivation_layer"]
    return UNDEFINED if layer is None else f"L−{row['num_layers'] - layer}"


def _quartiles(values: list[float], digits: int) -> str:
    return "–".join(f"{value:.{digits}f}" for value in values)
