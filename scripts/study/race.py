"""
Quality over the time of an image, for studies whose variants see images at several working sizes but are evaluated at
one.

The time of an image is that of a tile, measured side by side (`cost.json`), times the number of its tiles at the
variant's working size.
"""

from pathlib import Path

import numpy as np

from ..common.atomic_files import replace_table
from ..common.keep_rates import rate_name
from ..reporting.style import DPI, legend_below, new_figure, tidy
from ..reporting.tables import format_mean, markdown_table
from .cost import tiles_per_image
from .definition import Study
from .figures import load_images, variant_style
from .metrics import metrics_of
from .tables import summarise

FIELDS = ("evaluation", "variant", "keep_rate", "tiles", "seconds")
_SPREAD = "_sd"  # after the name of a metric


def race_rows(study: Study, rows: list[dict], cost: dict, tiles: dict[str, int]) -> list[dict]:
    """
    One row with [`FIELDS`] and two metrics per variant and keep rate, for every evaluation with a `working_size`; of
    variants that were not trained to prune only the unpruned one.

    Args:
        study ([`Study`]): The study.
        rows (`list[dict]`): From [`~reg4pru.study.tables.collect`].
        cost (`dict`): From [`~reg4pru.study.cost.measure_study`].
        tiles (`dict[str, int]`): Number of tiles of an image, by variant.
    """
    compared, metrics = [], metrics_of(rows)
    for evaluation in [name for name, settings in study.evaluations.items() if "working_size" in settings]:
        for variant in study.variants:
            config = study.run_recipe(variant, study.seeds[0])["config_overrides"]
            prunes = config.get("train_pruning", "soft") != "none"
            for rate in study.keep_rates if prunes else (1.0,):
                speed = cost["inference"][variant][rate_name(rate)]["images_per_second"]
                row = {"evaluation": evaluation, "variant": variant, "keep_rate": rate_name(rate)}
                row |= {"tiles": tiles[variant], "seconds": tiles[variant] / speed}
                names = (metrics.main, metrics.raced)
                cells = {name: summarise(rows, variant, evaluation, rate, name) for name in names}
                row |= {name: mean for name, (mean, _) in cells.items()}
                compared.append(row | {f"{name}{_SPREAD}": spread for name, (_, spread) in cells.items()})
    return compared


def write_race(study: Study, runs_dir: Path, output_dir: Path, rows: list[dict], cost: dict) -> None:
    """Write `race.csv`, `race.md` and `race.png`."""
    image = load_images(study, runs_dir)[0]["image"]
    compared = race_rows(study, rows, cost, tiles_per_image(study, runs_dir, image))
    replace_table(output_dir / "race.csv", list(compared[0]), compared)
    (output_dir / "race.md").write_text(race_markdown(study, compared, cost["provenance"]["device"]), encoding="utf-8")
    draw_race(study, compared, cost["provenance"]["device"], output_dir / "race.png")


def race_markdown(study: Study, compared: list[dict], device: str) -> str:
    """The rows of the first evaluation, the slowest first; those on the Pareto front are bold."""
    rows, metrics = [row for row in compared if row["evaluation"] == compared[0]["evaluation"]], metrics_of(compared)
    heads = [metrics.main_name, metrics.raced_name]
    lines = [["variant", "keep rate", "tiles", "seconds per image", "× first", *heads]]
    for row in sorted(rows, key=lambda row: -row["seconds"]):
        label, precision = study.variants[row["variant"]]["label"], row[metrics.main]
        beaten = any(other["seconds"] <= row["seconds"] and other[metrics.main] > precision for other in rows)
        qualities = [format_mean(row[name], row[f"{name}{_SPREAD}"]) for name in (metrics.main, metrics.raced)]
        times = [f"{row['seconds']:.2f}", f"{rows[0]['seconds'] / row['seconds']:.2f}"]
        lines.append([label if beaten else f"**{label}**", row["keep_rate"], str(row["tiles"]), *times, *qualities])
    return (
        f"# {study.name}\n\nQuality is measured {rows[0]['evaluation']} for all variants; time is that of all tiles "
        f"of an image, on {device}. Bold: no other is at least as fast and more accurate ({metrics.main_name}).\n\n"
        f"{markdown_table(lines)}\n"
    )


def draw_race(study: Study, compared: list[dict], device: str, path: Path) -> None:
    """
    Average precision and clDice, or mean and boundary IoU, over seconds per image: a line per variant, bars of one
    standard deviation.
    """
    metrics = metrics_of(compared)
    names = {metrics.main: metrics.main_name, metrics.raced: metrics.raced_name}
    figure = new_figure(9.5, 4.8)
    first = compared[0]["evaluation"]
    for axis, (metric, name) in zip(figure.subplots(1, 2), names.items(), strict=True):
        for variant, settings in study.variants.items():
            line = [row for row in compared if row["variant"] == variant and row["evaluation"] == first]
            seconds = [row["seconds"] for row in line]
            means = [row[metric] for row in line]
            style = variant_style(study, variant)
            axis.plot(seconds, means, label=settings["label"], **style)
            spreads = np.nan_to_num([row[f"{metric}{_SPREAD}"] for row in line])
            axis.errorbar(seconds, means, spreads, fmt="none", ecolor=style["color"], alpha=0.6)
        axis.set(xlabel=f"seconds per image\n{device}", ylabel=name)
        axis.set_xlim(left=0)
        tidy(axis)
    handles, _ = figure.axes[0].get_legend_handles_labels()
    legend_below(figure, handles, ncols=3)
    figure.savefig(path, dpi=DPI)
