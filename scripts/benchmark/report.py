"""What the benchmark writes: summaries of the rounds, tables, and the plot of throughput against keep rate."""

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


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
