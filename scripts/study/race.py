"""
The race of a study whose variants see images at several sizes: quality at one size over the time of an image.

Time is that of a tile, measured side by side (`cost.json`), times the tiles that an image takes at the variant's size.
"""

from pathlib import Path

import numpy as np

from ..common.atomic_files import replace_table
from ..common.keep_rates import rate_name
from ..reporting.style import DPI, card, legend_below, tidy
from ..reporting.tables import format_cell, markdown_table
from .cost import tiles_per_image
from .definition import Study
from .figures import load_images, variant_style
from .tables import summarise

RACED = {"average_precision": "average precision", "cldice": "clDice"}
SPREADS = {name: f"{name}_sd" for name in RACED}
FIELDS = ("evaluation", "variant", "keep_rate", "tiles", "seconds", *RACED, *SPREADS.values())


def race_rows(study: Study, rows: list[dict], cost: dict, tiles: dict[str, int]) -> list[dict]:
    """
    A row a variant and keep rate, for every evaluation at a size of its own; variants that never learned to prune
    stand unpruned only.

    Args:
        study (`Study`): The study.
        rows (`list[dict]`): From [`~reg4pru.study.tables.collect`].
        cost (`dict`): From [`~reg4pru.study.cost.measure_study`].
        tiles (`dict[str, int]`): Tiles of an image, by variant.
    """
    raced = []
    for evaluation, settings in study.evaluations.items():
        if "working_size" not in settings:
            continue
        for variant in study.variants:
            config = study.run_recipe(variant, study.seeds[0])["config_overrides"]
            prunes = config.get("train_pruning", "soft") != "none"
            for rate in study.keep_rates if prunes else (1.0,):
                row = {
                    "evaluation": evaluation,
                    "variant": variant,
                    "keep_rate": rate_name(rate),
                    "tiles": tiles[variant],
                }
                row["seconds"] = tiles[variant] / cost["inference"][variant][rate_name(rate)]["images_per_second"]
                for metric in RACED:
                    row[metric], row[SPREADS[metric]] = summarise(rows, variant, evaluation, rate, metric)
                raced.append(row)
    return raced


def write_race(study: Study, runs_dir: Path, output_dir: Path, rows: list[dict], cost: dict) -> None:
    """Write `race.csv`, `race.md` and `race.png`."""
    image = load_images(study, runs_dir)[0]["image"]
    raced = race_rows(study, rows, cost, tiles_per_image(study, runs_dir, image))
    replace_table(output_dir / "race.csv", FIELDS, raced)
    (output_dir / "race.md").write_text(race_markdown(study, raced, cost["provenance"]["device"]))
    draw_race(study, raced, cost["provenance"]["device"], output_dir / "race.png")


def race_markdown(study: Study, raced: list[dict], device: str) -> str:
    """The rows of the first evaluation, the slowest first; in bold what no other is as fast as and more accurate."""
    rows = [row for row in raced if row["evaluation"] == raced[0]["evaluation"]]
    lines = [["variant", "keep rate", "tiles", "seconds an image", "× first", *RACED.values()]]
    for row in sorted(rows, key=lambda row: -row["seconds"]):
        label, precision = study.variants[row["variant"]]["label"], row["average_precision"]
        beaten = any(other["seconds"] <= row["seconds"] and other["average_precision"] > precision for other in rows)
        qualities = [format_cell(row[name], row[spread]) for name, spread in SPREADS.items()]
        times = [f"{row['seconds']:.2f}", f"{rows[0]['seconds'] / row['seconds']:.2f}"]
        lines.append([label if beaten else f"**{label}**", row["keep_rate"], str(row["tiles"]), *times, *qualities])
    return (
        f"# {study.name}\n\nQuality {rows[0]['evaluation']}, whatever size a variant sees; time of all tiles of a "
        f"image, on {device}. In bold: nothing else here is as fast and more accurate (average precision).\n\n"
        f"{markdown_table(lines)}\n"
    )


def draw_race(study: Study, raced: list[dict], device: str, path: Path) -> None:
    """Average precision and clDice over the seconds of an image: a line a variant, bars of one standard deviation."""
    figure = card(9.5, 4.8)
    first = raced[0]["evaluation"]
    for axis, (metric, name) in zip(figure.subplots(1, 2), RACED.items(), strict=True):
        for variant, settings in study.variants.items():
            line = [row for row in raced if row["variant"] == variant and row["evaluation"] == first]
            seconds = [row["seconds"] for row in line]
            means = [row[metric] for row in line]
            style = variant_style(study, variant)
            axis.plot(seconds, means, label=settings["label"], **style)
            spreads = np.nan_to_num([row[SPREADS[metric]] for row in line])
            axis.errorbar(seconds, means, spreads, fmt="none", ecolor=style["color"], alpha=0.6)
        axis.set(xlabel=f"seconds an image\n{device}", ylabel=name)
        axis.set_xlim(left=0)
        tidy(axis)
    handles, _ = figure.axes[0].get_legend_handles_labels()
    legend_below(figure, handles, ncols=3)
    figure.savefig(path, dpi=DPI)
