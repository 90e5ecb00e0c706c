"""The tables of a study: every measured number as CSV, mean and standard deviation over the seeds as Markdown."""

import math
from pathlib import Path

from datasets_fives.metrics.accumulator import METRICS

from ..common.atomic_files import replace_table
from ..common.keep_rates import rate_name
from ..reporting.tables import format_mean, markdown_table, mean_and_sd
from .definition import Study, is_as_trained
from .metrics import VESSELS, metrics_of
from .run_folder import RunFolder

FIELDS = ("variant", "seed", "evaluation", "keep_rate", *METRICS)
TRAINING_COSTS = ("seconds", "time_ratio", "memory_bytes", "memory_ratio")


def collect(study: Study, runs_dir: Path) -> list[dict]:
    """
    One row with [`FIELDS`] per variant, seed, evaluation and keep rate that has been measured, in the order of the
    study; nan for a metric that a record does not have. Of more than two classes it has the metrics of the record.
    """
    rows = []
    for variant in study.variants:
        for seed in study.seeds:
            results = RunFolder(runs_dir, variant, seed).results()
            for evaluation in [name for name in results if name in study.evaluations]:
                for rate in map(rate_name, study.keep_rates):
                    if rate in results[evaluation]:
                        place = {"variant": variant, "seed": seed, "evaluation": evaluation, "keep_rate": rate}
                        measured = results[evaluation][rate]
                        if metrics_of([measured]) is VESSELS:
                            measured = {metric: measured.get(metric, math.nan) for metric in METRICS}
                        rows.append(place | measured)
    return rows


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write the rows of [`collect`] as CSV."""
    replace_table(path, FIELDS if metrics_of(rows) is VESSELS else list(rows[0]), rows)


def summarise(rows: list[dict], variant: str, evaluation: str, rate: float, metric: str) -> tuple[float, float]:
    """Mean and standard deviation of a metric over the seeds."""
    wanted = (variant, evaluation, rate_name(rate))
    return mean_and_sd(row[metric] for row in rows if (row["variant"], row["evaluation"], row["keep_rate"]) == wanted)


def with_changes(rows: list[dict]) -> list[dict]:
    """The rows with the change of the main metric from that of the same weights unpruned; nan where it is missing."""
    main, change = metrics_of(rows).main, metrics_of(rows).change

    def run(row: dict) -> tuple:
        return row["variant"], row["seed"], row["evaluation"]

    unpruned = {run(row): row[main] for row in rows if float(row["keep_rate"]) == 1}
    return [row | {change: row[main] - unpruned.get(run(row), math.nan)} for row in rows]


def markdown(study: Study, rows: list[dict]) -> str:
    """
    For each evaluation the tables of [`StudyMetrics.shown`]: a row per variant, a column per keep rate, mean ±
    standard deviation over the seeds.
    """
    metrics, rows = metrics_of(rows), with_changes(rows)
    seeds = {variant: len({row["seed"] for row in rows if row["variant"] == variant}) for variant in study.variants}
    most = max(seeds.values(), default=0)
    images = "the test images" if study.limit is None else f"{study.limit} test images, spread evenly,"
    parts = [f"# {study.name}\n"]
    parts.append(
        f"{f'Mean ± standard deviation over {most} seeds' if most > 1 else 'One seed'}, all pixels of {images} "
        f"{metrics.pixels}. "
        "A keep rate holds for every stage. Changes are taken within each run, from its own weights unpruned.\n"
    )
    for evaluation in study.evaluations:
        for metric, heading in metrics.shown.items():
            # Without pruning there is no change.
            rates = [rate for rate in study.keep_rates if metric != metrics.change or rate != 1]
            lines = [[evaluation, *(rate_name(rate) for rate in rates)]]
            for variant, settings in study.variants.items():
                cells = [summarise(rows, variant, evaluation, rate, metric) for rate in rates]
                if all(math.isnan(mean) for mean, _ in cells):
                    continue
                label = settings["label"] + ("" if seeds[variant] == most else f" ({seeds[variant]} of {most} seeds)")
                sign = "+" if metric == metrics.change else ""
                lines.append([label, *(format_mean(*cell, sign) for cell in cells)])
            if len(lines) > 1:
                parts.append(f"## {heading}, {evaluation}\n\n{markdown_table(lines)}\n")
    return "\n".join(parts)


def write_costs(study: Study, cost: dict, output_dir: Path) -> None:
    """`cost.csv` and `cost.md`: what training and inference of every variant cost, relative to the first variant."""
    rates = [rate_name(rate) for rate in study.keep_rates]
    rows, lines = [], [["variant", "training step", "memory", *(f"throughput at {rate}" for rate in rates)]]
    for variant, settings in study.variants.items():
        training, inference = cost["training"][variant], cost["inference"][variant]
        row = {"variant": variant, **{f"training_{field}": training[field] for field in TRAINING_COSTS}}
        for rate in rates:
            row[f"images_per_second at {rate}"] = inference[rate]["images_per_second"]
            row[f"throughput_ratio at {rate}"] = inference[rate]["ratio"]
        rows.append(row)
        ratios = [training["time_ratio"], training["memory_ratio"], *(inference[rate]["ratio"] for rate in rates)]
        lines.append([settings["label"], *(f"{ratio:.2f}×" for ratio in ratios)])
    replace_table(output_dir / "cost.csv", list(rows[0]), rows)

    first = next(iter(study.variants.values()))["label"]
    device = cost["provenance"]["device"]
    (output_dir / "cost.md").write_text(
        f"# {study.name}: costs\n\nRelative to {first} (throughput: unpruned), medians over {cost['rounds']} "
        f"interleaved rounds on {device}. A training step is taken with pruning and routing in effect, in "
        f"{cost['training_dtype']}; its memory is what it needs beside weights, gradients and optimiser.\n\n"
        f"{markdown_table(lines)}\n",
        encoding="utf-8",
    )


def recipes_markdown(study: Study, rows: list[dict], times: dict[str, float]) -> str:
    """
    Cost and gain of every training: its time relative to that of the first variant, and the main metric at each keep
    rate less that of the first variant unpruned, mean ± standard deviation over the seeds that both have.

    Args:
        study ([`Study`]): The study; its first variant is the reference.
        rows (`list[dict]`): From [`collect`].
        times (`dict[str, float]`): Relative time of training by variant.
    """
    reference, settings = next(iter(study.variants.items()))
    parts = [
        f"# {study.name}: recipes\n",
        f"Time of the whole training relative to {settings['label']}, from steps measured side by side, dense steps "
        f"counted as such; {metrics_of(rows).main_name} over all pixels less that of {settings['label']}, "
        "unpruned, with the same seed.\n",
    ]
    for evaluation in [name for name, changes in study.evaluations.items() if is_as_trained(changes)]:
        precisions = {
            (row["variant"], row["seed"], row["keep_rate"]): row[metrics_of(rows).main]
            for row in rows
            if row["evaluation"] == evaluation
        }
        lines = [["recipe", "training time", *map(rate_name, study.keep_rates)]]
        for variant, variant_settings in study.variants.items():
            changes = [
                mean_and_sd(
                    precisions.get((variant, seed, rate_name(rate)), math.nan)
                    - precisions.get((reference, seed, rate_name(1.0)), math.nan)
                    for seed in study.seeds
                )
                for rate in study.keep_rates
            ]
            if not all(math.isnan(mean) for mean, _ in changes):
                line = [format_mean(*change, "+") for change in changes]
                lines.append([variant_settings["label"], f"{times[variant]:.2f}×", *line])
        parts.append(f"## Recipes, {evaluation}\n\n{markdown_table(lines)}\n")
    return "\n".join(parts)
