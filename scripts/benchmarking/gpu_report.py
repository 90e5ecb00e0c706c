"""The table of `make gpu`."""

from ..common.keep_rates import rate_name
from ..reporting.tables import markdown_table
from .report import training_table


def gpu_tables(results: dict[str, dict], skipped: dict[str, str]) -> str:
    """
    Inference of all benchmarks as one Markdown table, the training steps below it.

    Args:
        results (`dict[str, dict]`): Of [`~reg4pru.benchmarking.suite.Benchmark`], by name.
        skipped (`dict[str, str]`): Why others were not measured, by name.
    """
    parts = ["# On a GPU\n"]
    if results:
        made = next(iter(results.values()))["provenance"]
        versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "transformers"))
        parts.append(
            f"Measured on {made['date'][:10]} on {made['device']}, {versions}, bfloat16, random weights. ms and "
            "memory: of transformers' dense EoMT with the same weights; the other columns are ours, at a keep rate of "
            "every stage: how many times as fast, and the memory at 0.5. Budget: what a keep rate holds for.\n"
        )
        parts.append(f"{_inference(results)}\n")
        for result in results.values():
            if result["training"]:
                arguments = result["arguments"]
                parts.append(
                    f"## Training step, ViT {arguments['model_size']}, batch {arguments['train_batch_size']}\n"
                )
                parts.append(f"{training_table(result['training'], result['training_skipped'])}\n")
    parts += [f"- Not measured: {name}, {reason}." for name, reason in skipped.items()]
    return "\n".join(parts) + ("\n" if skipped else "")


def _inference(results: dict[str, dict]) -> str:
    """A row per benchmark and batch size."""
    rates = next(iter(results.values()))["arguments"]["keep_rates"]
    lines = [
        ["ViT", "input", "budget", "compiled", "batch", "ms", *map(rate_name, rates), "memory (MB)", "at 0.5 (MB)"]
    ]
    for result in results.values():
        arguments, tiles = result["arguments"], result["tiles_per_image"]
        size = f"{arguments['image_size']} px"
        shown = size if tiles is None else f"{size} in {tiles} tiles"
        for batch_size in arguments["batch_sizes"]:
            rows = {row["keep_rate"]: row for row in result["inference"] if row["batch_size"] == batch_size}
            dense = rows[None]
            lines.append(
                [
                    *(arguments["model_size"], shown, "–" if tiles is None else arguments["allocation"]),
                    *("no" if arguments["compile_mode"] is None else "yes", str(batch_size)),
                    f"{1000 * dense['latency']:.1f}",
                    *(f"{rows[rate]['ratio']:.2f}×" for rate in rates),
                    *(f"{rows[rate]['peak_memory'] / 1e6:.0f}" for rate in (None, 0.5)),
                ]
            )
    return markdown_table(lines)
