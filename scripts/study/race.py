"""
Quality over the time of an image, for studies whose variants see images at several working sizes but are evaluated at
one.

The time of an image is that of a tile, measured side by side (`cost.json`), times the number of its tiles at the
variant's working size. That of a tile follows from the first variant's and the ratio to it within a round, which a
busy machine changes least.
"""

from pathlib import Path

import numpy as np

from ..common.atomic_files import replace_table
from ..common.keep_rates import rate_name
from ..reporting.direct_labels import label_points
from ..reporting.style import MARKERS, new_figure, tidy
from ..reporting.tables import format_mean, markdown_table
from .cost import tiles_per_image
from .definition import Study
from .figures import load_images
from .metrics import metrics_of
from .tables import collect, summarise
from .unet import VARIANT, with_unet

FIELDS = ("evaluation", "variant", "keep_rate", "seeds", "tiles", "seconds")
_SPREAD = "_sd"  # after the name of a metric
_SHOWN = 0.19  # range of a metric that a figure shows
# Of the shared palette those that are dark enough for words.
_LINES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#882255", "#7F7F7F", "#56B4E9", "#E69F00")
_DPI = 200  # the figure is small, so that its words are large on a page


def race_rows(study: Study, rows: list[dict], cost: dict, tiles: dict[str, dict[str, int]]) -> list[dict]:
    """
    One row with [`FIELDS`] and two metrics per variant and keep rate, for every evaluation with a `working_size`; of
    variants that were not trained to prune only the unpruned one.

    Args:
        study ([`Study`]): The study.
        rows (`list[dict]`): From [`~reg4pru.study.tables.collect`].
        cost (`dict`): From [`~reg4pru.study.cost.measure_study`].
        tiles (`dict[str, dict[str, int]]`): Number of tiles of an image, by evaluation and variant.
    """
    compared, metrics = [], metrics_of(rows)
    first_speed = cost["inference"][next(iter(study.variants))][rate_name(1.0)]["images_per_second"]
    for evaluation in _raced(study):
        for variant in study.variants:
            config = study.run_recipe(variant, study.seeds[0])["config_overrides"]
            prunes = config.get("train_pruning", "soft") != "none"
            for rate in study.keep_rates if prunes else (1.0,):
                speed = first_speed * cost["inference"][variant][rate_name(rate)]["ratio"]
                row = {"evaluation": evaluation, "variant": variant, "keep_rate": rate_name(rate)}
                seeds = {entry["seed"] for entry in rows if row.items() <= entry.items()}
                row |= {"seeds": len(seeds), "tiles": tiles[evaluation][variant]}
                row["seconds"] = row["tiles"] / speed
                names = (metrics.main, metrics.raced)
                cells = {name: summarise(rows, variant, evaluation, rate, name) for name in names}
                row |= {name: mean for name, (mean, _) in cells.items()}
                compared.append(row | {f"{name}{_SPREAD}": spread for name, (_, spread) in cells.items()})
    return compared


def _raced(study: Study) -> dict[str, dict]:
    """The evaluations at one size, whatever the working size of a variant."""
    return {name: settings for name, settings in study.evaluations.items() if "working_size" in settings}


def write_race(study: Study, runs_dir: Path, output_dir: Path, cost: dict) -> None:
    """
    Write `race.csv`, `race.md`, `race.png` and, of the second metric, `race_cldice.png` or the like; with the U-Net
    beside the variants, if it has been measured.
    """
    image, raced = load_images(study, runs_dir)[0]["image"], with_unet(study, runs_dir)
    tiles = {name: tiles_per_image(study, runs_dir, image, settings) for name, settings in _raced(study).items()}
    for count in tiles.values():
        count[VARIANT] = count[next(iter(study.variants))]
    compared, device = race_rows(raced, collect(raced, runs_dir), cost, tiles), cost["provenance"]["device"]
    if cost.get("clock") == "CPU time":  # costs of earlier versions are wall time
        device += ", CPU time"
    replace_table(output_dir / "race.csv", list(compared[0]), compared)
    (output_dir / "race.md").write_text(race_markdown(raced, compared, device), encoding="utf-8")
    metrics = metrics_of(compared)
    draw_race(raced, compared, device, metrics.main, metrics.main_name, output_dir / "race.png")
    draw_race(raced, compared, device, metrics.raced, metrics.raced_name, output_dir / f"race_{metrics.raced}.png")


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
    fewer = {row["variant"]: row["seeds"] for row in rows if row["seeds"] < len(study.seeds)}
    seeds = [
        f" {study.variants[variant]['label']}: {count} of {len(study.seeds)} seeds."
        for variant, count in fewer.items()
    ]
    return (
        f"# {study.name}\n\nQuality is measured {rows[0]['evaluation']} for all variants; time is that of all tiles "
        f"of an image, on {device}. Bold: no other is at least as fast and more accurate ({metrics.main_name})."
        f"{''.join(seeds)}\n\n"
        f"{markdown_table(lines)}\n"
    )


def draw_race(study: Study, compared: list[dict], device: str, metric: str, name: str, path: Path) -> None:
    """
    A metric over the seconds of an image, with bars of one standard deviation: variants that prune are lines, with the
    keep rates beside their points, those that do not are black marks. What is more than [`_SHOWN`] below the best is
    cut off, and named at the lower edge.
    """
    rows = [row for row in compared if row["evaluation"] == compared[0]["evaluation"]]
    best = max(row[metric] for row in rows)
    floor = max(best - _SHOWN, min(row[metric] for row in rows)) - 0.01
    figure = new_figure(5.6, 4.8)
    axis = figure.subplots()
    axis.set(xlabel=f"seconds per image, {device}", ylabel=name, ylim=(floor, best + 0.01))
    axis.set_xlim(0, 1.1 * max(row["seconds"] for row in rows))
    tidy(axis)
    colours, marks, names, rates = iter(_LINES), iter(MARKERS), [], []
    for variant, settings in study.variants.items():
        line = [row for row in rows if row["variant"] == variant]
        points = [(row["seconds"], row[metric]) for row in line]
        prunes = len(line) > 1
        colour, marker = (next(colours), "o") if prunes else ("black", next(marks))
        axis.plot(
            *zip(*points, strict=True), color=colour, marker=marker, markersize=4 if prunes else 6, linewidth=1.6
        )
        spreads = np.nan_to_num([row[f"{metric}{_SPREAD}"] for row in line])
        axis.errorbar(*zip(*points, strict=True), spreads, fmt="none", ecolor=colour, alpha=0.5)
        inside = [row for row in line if row[metric] >= floor]
        names.append((settings["label"], points[: len(inside)][::-1], colour))
        if prunes:
            rates += [(row["keep_rate"], [point], colour) for row, point in zip(inside, points, strict=False)]
        if len(inside) < len(line):
            (right, upper), (left, lower) = points[len(inside) - 1], points[len(inside)]
            crossing = left + (right - left) * (floor - lower) / (upper - lower)
            values = ", ".join(f"{row['keep_rate']}: {row[metric]:.2f}" for row in line[len(inside) :])
            axis.annotate(f" ↓ {values}", (crossing, floor), color=colour, fontsize=7, va="bottom")
    label_points(axis, names, fontsize=8.5)
    label_points(axis, rates, fontsize=7)
    figure.savefig(path, dpi=_DPI)
