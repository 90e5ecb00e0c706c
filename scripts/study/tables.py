"""The tables of a study: every measured number as CSV, and mean and spread over the seeds as Markdown."""

import csv
import math
from pathlib import Path

from datasets_fives.metrics.accumulator import METRICS

from ..common.atomic_files import replace_table
from ..common.keep_rates import rate_name
from ..reporting.tables import format_cell, markdown_table, mean_and_sd
from .definition import Study, is_as_trained
from .run_folder import RunFolder

CHANGE = "average_precision_change"
SHOWN = {"average_precision": "Average precision", CHANGE: "Change of average precision", "dice": "Dice"}


def collect(study: Study, runs_dir: Path) -> list[dict]:
    """A row per variant, seed, evaluation and keep rate that has been measured, in the order of the study."""
    return [
        {
            "variant": variant,
            "seed": seed,
            "evaluation": evaluation,
            "keep_rate": rate_name(rate),
            **results[rate_name(rate)],
        }
        for variant in study.variants
        for seed in study.seeds
        for evaluation, results in RunFolder(runs_dir, variant, seed).results().items()
        if evaluation in study.evaluations
        for rate in study.keep_rates
        if rate_name(rate) in results
    ]


def write_csv(path: Path, rows: list[dict]) -> None:
    replace_table(path, ["variant", "seed", "evaluation", "keep_rate", *METRICS], rows)


def summarise(rows: list[dict], variant: str, evaluation: str, rate: float, metric: str) -> tuple[float, float]:
    """Mean and standard deviation of a metric over the seeds."""
    wanted = (variant, evaluation, rate_name(rate))
    return mean_and_sd(row[metric] for row in rows if (row["variant"], row["evaluation"], row["keep_rate"]) == wanted)


def with_changes(rows: list[dict]) -> list[dict]:
    """The rows with [`CHANGE`]: average precision less that of the same weights unpruned; nan where it is missing."""
    unpruned = {
        (row["variant"], row["seed"], row["evaluation"]): row["average_precision"]
        for row in rows
        if float(row["keep_rate"]) == 1
    }
    return [
        row
        | {CHANGE: row["average_precision"] - unpruned.get((row["variant"], row["seed"], row["evaluation"]), math.nan)}
        for row in rows
    ]


def markdown(study: Study, rows: list[dict]) -> str:
    """
    Average precision, its change by pruning, Dice: a table an evaluation, a row a variant, a column a keep rate, mean
    ± sd over the seeds.
    """
    rows = with_changes(rows)
    seeds = {variant: len({row["seed"] for row in rows if row["variant"] == variant}) for variant in study.variants}
    most = max(seeds.values(), default=0)
    parts = [f"# {study.name}\n"]
    parts.append(
        f"{f'Mean ± standard deviation over {most} seeds' if most > 1 else 'One seed'}, all pixels of the test "
        "images inside the field of view. "
        "A keep rate holds for every stage. Changes are taken within each run, from its own weights unpruned.\n"
    )
    for evaluation in study.evaluations:
        for metric, heading in SHOWN.items():
            # Without pruning there is no change.
            rates = [rate for rate in study.keep_rates if metric != CHANGE or rate != 1]
            lines = [[evaluation, *(rate_name(rate) for rate in rates)]]
            for variant, settings in study.variants.items():
                cells = [summarise(rows, variant, evaluation, rate, metric) for rate in rates]
                if all(math.isnan(mean) for mean, _ in cells):
                    continue
                label = settings["label"] + ("" if seeds[variant] == most else f" ({seeds[variant]} of {most} seeds)")
                sign = "+" if metric == CHANGE else ""
                lines.append([label, *(format_cell(*cell, sign) for cell in cells)])
            if len(lines) > 1:
                parts.append(f"## {heading}, {evaluation}\n\n{markdown_table(lines)}\n")
    return "\n".join(parts)


def write_costs(study: Study, cost: dict, output_dir: Path) -> None:
    """`cost.csv` and `cost.md`: what training and inference of every variant cost, relative to the first variant."""
    rates = [rate_name(rate) for rate in study.keep_rates]
    fields = ["seconds", "time_ratio", "memory_bytes", "memory_ratio"]
    with (output_dir / "cost.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        throughputs = [f"{name} at {rate}" for rate in rates for name in ("images_per_second", "throughput_ratio")]
        writer.writerow(["variant", *(f"training_{field}" for field in fields), *throughputs])
        for variant in study.variants:
            training, inference = cost["training"][variant], cost["inference"][variant]
            speeds = [inference[rate][name] for rate in rates for name in ("images_per_second", "ratio")]
            writer.writerow([variant, *(training[field] for field in fields), *speeds])

    first = next(iter(study.variants.values()))["label"]
    lines = [["variant", "training step", "memory", *(f"throughput at {rate}" for rate in rates)]]
    for variant, settings in study.variants.items():
        training, inference = cost["training"][variant], cost["inference"][variant]
        lines.append(
            [settings["label"], f"{training['time_ratio']:.2f}×", f"{training['memory_ratio']:.2f}×"]
            + [f"{inference[rate]['ratio']:.2f}×" for rate in rates]
        )
    device = cost["provenance"]["device"]
    (output_dir / "cost.md").write_text(
        f"# {study.name}: costs\n\nRelative to {first} (throughput: unpruned), medians over {cost['rounds']} "
        f"interleaved rounds on {device}. A training step is taken with pruning and routing begun, in "
        f"{cost['training_dtype']}; its memory is what it needs beside weights, gradients and optimiser.\n\n"
        f"{markdown_table(lines)}\n"
    )


def recipes_markdown(study: Study, rows: list[dict], times: dict[str, float]) -> str:
    """
    What every training costs and brings: its time relative to the first variant's, and average precision at each keep
    rate less that of the first variant unpruned, mean ± sd over the seeds that both have.

    Args:
        study (`Study`): The study; its first variant is the reference.
        rows (`list[dict]`): From [`collect`].
        times (`dict[str, float]`): Relative time of training by variant.
    """
    reference, settings = next(iter(study.variants.items()))
    parts = [
        f"# {study.name}: recipes\n",
        f"Time of the whole training relative to {settings['label']}, from steps measured side by side, dense steps "
        f"counted as such; average precision over all pixels less that of {settings['label']}, unpruned, under the "
        "same seed.\n",
    ]
    for evaluation in [name for name, changes in study.evaluations.items() if is_as_trained(changes)]:
        cells = {
            (row["variant"], row["seed"], row["keep_rate"]): row["average_precision"]
            for row in rows
            if row["evaluation"] == evaluation
        }
        lines = [["recipe", "training time", *map(rate_name, study.keep_rates)]]
        for variant, variant_settings in study.variants.items():
            changes = [
                mean_and_sd(
                    cells.get((variant, seed, rate_name(rate)), math.nan)
                    - cells.get((reference, seed, rate_name(1.0)), math.nan)
                    for seed in study.seeds
                )
                for rate in study.keep_rates
            ]
            if not all(math.isnan(mean) for mean, _ in changes):
                line = [format_cell(*change, "+") for change in changes]
                lines.append([variant_settings["label"], f"{times[variant]:.2f}×", *line])
        parts.append(f"## Recipes, {evaluation}\n\n{markdown_table(lines)}\n")
    return "\n".join(parts)
