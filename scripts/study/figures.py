"""
The figures of a study, on white, so that they read the same in print and on a dark page.

`keep_rates.png`; `data_sets.png` (average precision of every seed on every data set); `throughput.png`; `figure1.png`
(predictions, and average precision against throughput: Figure 1 of arXiv 2602.02163); `stages.png`; `drift.png`, with
its numbers in `drift.csv`. Images are shown inside their field of view only.
"""

import logging
import textwrap
from pathlib import Path

import numpy as np
from datasets import Dataset
from matplotlib.cm import ScalarMappable
from matplotlib.patches import Patch

from datasets_fives import class_names
from datasets_fives.field_of_view import field_of_view
from modeling_reg4pru.tiled_inference import predict_image
from modeling_reg4pru.token_selectors import SELECTOR_CLASSES

from ..common.keep_rates import rate_name
from ..common.spread import spread
from ..inference.loading import load_checkpoint
from ..inference.model_classes import VESSEL_CLASSES
from ..reporting.class_colours import class_colours
from ..reporting.class_panels import class_panel
from ..reporting.panels import WHITE, mask_panel, stage_colours, stage_panel
from ..reporting.style import COLOURS, DASHES, DPI, MARKERS, hide_axes, legend_below, new_figure, tidy
from ..reporting.tables import mean_and_sd
from ..training.setup import load_data
from .definition import AS_TRAINED, Study, is_as_trained
from .drift import collect_drift, write_drift
from .metrics import metrics_of
from .run_folder import RunFolder
from .tables import summarise

logger = logging.getLogger(__name__)
HEAT = "magma_r"  # dark vessels on light ground, like the ground truth beside it
NUM_IMAGES = 3


def draw_figures(study: Study, runs_dir: Path, output_dir: Path, rows: list[dict], cost: dict) -> None:
    """
    Draw all figures of a finished study; those of two variants side by side only if it compares two, and those with
    images only if the weights of all variants are present for one seed.

    Args:
        study ([`Study`]): The study.
        runs_dir (`Path`): Folder of its runs.
        output_dir (`Path`): Folder for the figures.
        rows (`list[dict]`): From [`~reg4pru.study.tables.collect`].
        cost (`dict`): From [`~reg4pru.study.cost.measure_study`].
    """
    draw = draw_keep_rates if len(study.variants) <= len(COLOURS) else draw_many_variants
    draw(study, rows, output_dir / "keep_rates.png")
    if any("dataset" in settings for settings in study.evaluations.values()):
        draw_data_sets(study, rows, output_dir / "data_sets.png")
    if not study.compare:
        return
    draw_throughput(study, rows, cost, output_dir / "throughput.png")
    drift = collect_drift(study, runs_dir)
    write_drift(output_dir / "drift.csv", drift)
    draw_drift(study, drift, study.shown_rate, output_dir / "drift.png")
    seed = seed_with_weights(study, runs_dir)
    if seed is None:
        logger.warning("figure1.png and stages.png are not drawn: no seed has the weights of all variants.")
        return
    images = load_images(study, runs_dir)
    draw_figure1(study, runs_dir, seed, images, rows, cost, output_dir / "figure1.png")
    draw_stages(study, runs_dir, seed, images, output_dir / "stages.png")


def seed_with_weights(study: Study, runs_dir: Path) -> int | None:
    """The first seed for which the weights of every variant are present."""
    for seed in study.seeds:
        if all(RunFolder(runs_dir, variant, seed).has_weights for variant in study.variants):
            return seed
    return None


def load_images(study: Study, runs_dir: Path) -> Dataset:
    """The test images of the first seed."""
    folder = RunFolder(runs_dir, next(iter(study.variants)), study.seeds[0])
    _, data_arguments, arguments = folder.arguments()
    return load_data(data_arguments, arguments.seed)["test"]


def variant_style(study: Study, variant: str) -> dict:
    """Colour, marker and line style of a variant, the same in every figure."""
    place = list(study.variants).index(variant)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[place % len(DASHES)],
        "markersize": 5,
        "linewidth": 1.6,
    }


def draw_keep_rates(study: Study, rows: list[dict], path: Path) -> None:
    """
    Average precision and Dice, or mean and boundary IoU, against the keep rate: a line per variant, bars of one
    standard deviation.
    """
    figure = new_figure(9.5, 4.4)
    for axis, (metric, name) in zip(figure.subplots(1, 2), _measured(rows).items(), strict=True):
        for variant, settings in study.variants.items():
            cells = np.array([summarise(rows, variant, AS_TRAINED, rate, metric) for rate in study.keep_rates])
            style = variant_style(study, variant)
            # Bars on the same spot cannot be told apart: shift each variant a little.
            beside = np.array(study.keep_rates) + 0.004 * (
                list(study.variants).index(variant) - (len(study.variants) - 1) / 2
            )
            axis.plot(beside, cells[:, 0], label=settings["label"], **style)
            spreads = np.nan_to_num(cells[:, 1])
            axis.errorbar(beside, cells[:, 0], spreads, fmt="none", ecolor=style["color"], alpha=0.6)
        axis.invert_xaxis()
        axis.set(xlabel="keep rate at every stage", ylabel=name, xticks=study.keep_rates)
        tidy(axis)
    handles, _ = figure.axes[0].get_legend_handles_labels()
    legend_below(figure, handles, ncols=3)
    figure.savefig(path, dpi=DPI)


def draw_data_sets(study: Study, rows: list[dict], path: Path) -> None:
    """
    Average precision against the keep rate, a panel per data set: a line per variant through the means, a faint one
    per seed.
    """
    evaluations = [name for name, settings in study.evaluations.items() if is_as_trained(settings)]
    figure = new_figure(4.75 * len(evaluations), 5.0)
    axes = figure.subplots(1, len(evaluations), sharey=True, squeeze=False)[0]
    for axis, evaluation in zip(axes, evaluations, strict=True):
        for variant, settings in study.variants.items():
            style = variant_style(study, variant)
            for seed in study.seeds:
                of_seed = [row for row in rows if row["seed"] == seed]
                cells = [_mean_of_main(of_seed, variant, evaluation, rate) for rate in study.keep_rates]
                axis.plot(study.keep_rates, cells, color=style["color"], linewidth=0.8, alpha=0.4)
            cells = [_mean_of_main(rows, variant, evaluation, rate) for rate in study.keep_rates]
            axis.plot(study.keep_rates, cells, label=settings["label"], **style)
        axis.invert_xaxis()
        title = "test images" if evaluation == AS_TRAINED else evaluation
        axis.set(xlabel="keep rate at every stage", xticks=study.keep_rates, title=title)
        tidy(axis)
    figure.axes[0].set_ylabel(metrics_of(rows).main_name)
    handles, _ = figure.axes[0].get_legend_handles_labels()
    legend_below(figure, handles, ncols=3)
    figure.savefig(path, dpi=DPI)


def _mean_of_main(rows: list[dict], variant: str, evaluation: str, rate: float) -> float:
    return summarise(rows, variant, evaluation, rate, metrics_of(rows).main)[0]


def _measured(rows: list[dict]) -> dict[str, str]:
    metrics = metrics_of(rows)
    return {metrics.main: metrics.main_name, metrics.second: metrics.second_name}


def draw_many_variants(study: Study, rows: list[dict], path: Path) -> None:
    """Average precision and Dice of more variants than there are colours: a row per variant, a point per keep rate."""
    figure = new_figure(9.5, 1.5 + 0.3 * len(study.variants))
    places = range(len(study.variants))
    for axis, (metric, name) in zip(figure.subplots(1, 2, sharey=True), _measured(rows).items(), strict=True):
        for rate, colour, marker in zip(study.keep_rates, COLOURS, MARKERS, strict=False):
            cells = np.array([summarise(rows, variant, AS_TRAINED, rate, metric) for variant in study.variants])
            label, style = f"keep rate {rate_name(rate)}", {"color": colour, "marker": marker, "linestyle": "none"}
            axis.errorbar(cells[:, 0], places, xerr=np.nan_to_num(cells[:, 1]), label=label, **style)
        axis.set_xlabel(name)
        tidy(axis)
    axis.set_yticks(places, [settings["label"] for settings in study.variants.values()])
    axis.invert_yaxis()
    handles, _ = axis.get_legend_handles_labels()
    legend_below(figure, handles, ncols=len(handles))
    figure.savefig(path, dpi=DPI)


def draw_figure1(
    study: Study, runs_dir: Path, seed: int, images: Dataset, rows: list[dict], cost: dict, path: Path
) -> None:
    """Images, ground truth and pruned predictions of two variants; average precision against throughput of all."""
    rate = study.shown_rate
    chosen = [images[index] for index in spread(len(images), NUM_IMAGES)]
    labels = [f"{study.variants[variant]['label']}\npruned to {rate_name(rate)}" for variant in study.compare]
    figure = new_figure(2.1 * len(chosen) + 5.6, 9.0)
    left, right = figure.subfigures(1, 2, width_ratios=(2.1 * len(chosen) + 0.6, 5))
    axes = left.subplots(4, len(chosen), squeeze=False)
    models = [load_checkpoint(str(RunFolder(runs_dir, variant, seed).weights())) for variant in study.compare]
    names = class_names(images)
    for column, row in zip(axes.T, chosen, strict=True):
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"])
        inside = _area(image, names)
        panels = [image, mask_panel(mask) if len(names) == 2 else class_panel(mask, len(names))]
        for model, processor in models:
            predicted = predict_image(model, processor, row["image"], rate)
            if len(names) == 2:
                panels.append(_heat_map(predicted.foreground_probability.numpy()))
            else:
                panels.append(class_panel(predicted.segmentation.numpy(), len(names)))
        for axis, panel in zip(column, panels, strict=True):
            axis.imshow(_crop(panel, inside))
            hide_axes(axis)
        column[0].set_title(row["name"], fontsize=9)
    for line, name in zip(axes, ("input", "ground truth", *labels), strict=True):
        line[0].set_ylabel(name, fontsize=9)
    if len(names) == 2:
        bar = left.colorbar(ScalarMappable(cmap=HEAT), ax=axes[2:], location="bottom", aspect=40, pad=0.02)
        bar.set_label(f"probability of {names[1]}", fontsize=9)
    else:
        colours = class_colours(len(names)) / 255
        handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
        left.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)

    axis, below = right.subplots(2, 1, height_ratios=(3, 2))
    below.axis("off")
    _plot_throughput(axis, study, rows, cost)
    below.legend(*axis.get_legend_handles_labels(), loc="upper center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)


def draw_throughput(study: Study, rows: list[dict], cost: dict, path: Path) -> None:
    """Average precision against throughput: the right half of figure 1, which needs no weights."""
    figure = new_figure(7, 5.4)
    axis = figure.subplots()
    _plot_throughput(axis, study, rows, cost)
    legend_below(figure, axis.get_legend_handles_labels()[0], ncols=2)
    figure.savefig(path, dpi=DPI)


def _plot_throughput(axis, study: Study, rows: list[dict], cost: dict) -> None:
    for variant, settings in study.variants.items():
        ratios = [cost["inference"][variant][rate_name(keep)]["ratio"] for keep in study.keep_rates]
        means = [_mean_of_main(rows, variant, AS_TRAINED, keep) for keep in study.keep_rates]
        axis.plot(ratios, means, label=settings["label"], **variant_style(study, variant))
        if variant in study.compare:
            for keep, ratio, mean in zip(study.keep_rates, ratios, means, strict=True):
                axis.annotate(rate_name(keep), (ratio, mean), (0, 6), textcoords="offset points", fontsize=8)
    axis.axvline(1, color="0.6", linewidth=0.8)
    first = next(iter(study.variants.values()))["label"]
    axis.set(xlabel=f"throughput relative to {first}, unpruned", ylabel=metrics_of(rows).main_name)
    axis.set_title("labels: keep rate at every stage", fontsize=9)
    tidy(axis)


def draw_stages(study: Study, runs_dir: Path, seed: int, images: Dataset, path: Path) -> None:
    """Where tokens are pruned, by stage, in two images: a column per variant with trained selectors."""
    rate = study.shown_rate
    configs = {variant: study.run_recipe(variant, study.seeds[0])["config_overrides"] for variant in study.variants}
    variants = {
        variant: settings
        for variant, settings in study.variants.items()
        if configs[variant].get("train_pruning") != "none"
        or SELECTOR_CLASSES[configs[variant].get("selector", "mlp")].learns_from == "foreground"
    }
    if not variants:
        return
    chosen = [images[index] for index in spread(len(images), 2)]
    figure = new_figure(1.9 * (len(variants) + 1), 2.1 * len(chosen) + 0.8)
    axes = figure.subplots(len(chosen), len(variants) + 1, squeeze=False)
    axes[0, 0].set_title("input", fontsize=9)
    pixels = [np.asarray(row["image"]) for row in chosen]
    insides = [_area(image, class_names(images)) for image in pixels]
    for line, image, inside, row in zip(axes, pixels, insides, chosen, strict=True):
        line[0].imshow(_crop(image, inside))
        line[0].set_ylabel(row["name"], fontsize=9)
    for column, (variant, settings) in zip(axes.T[1:], variants.items(), strict=True):
        model, processor = load_checkpoint(str(RunFolder(runs_dir, variant, seed).weights()))
        column[0].set_title(textwrap.fill(settings["label"], 20), fontsize=9)
        for axis, row, image, inside in zip(column, chosen, pixels, insides, strict=True):
            stages = predict_image(model, processor, row["image"], rate, output_stages=True).stages.numpy()
            panel = stage_panel(image, stages, model.config.num_stages)
            axis.imshow(_crop(panel, inside))
    for axis in axes.flat:
        hide_axes(axis)
    names = [*(f"pruned at stage {stage + 1}" for stage in range(model.config.num_stages)), "never pruned"]
    colours = stage_colours(model.config.num_stages) / 255
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    legend_below(figure, handles, ncols=len(variants) + 1)
    figure.suptitle(f"keep rate {rate_name(rate)} at every stage", fontsize=10)
    figure.savefig(path, dpi=DPI)


def draw_drift(study: Study, drift: list[dict], rate: float, path: Path) -> None:
    """Cosine similarity of preserved and unpruned states by layer; the main metric decoded after the last layers."""
    metrics, num_layers = metrics_of(drift), max(row["layer"] for row in drift) + 1
    figure = new_figure(9.5, 5.2)
    similarity, decoded = figure.subplots(1, 2)
    for variant in study.compare:
        label, style = study.variants[variant]["label"], variant_style(study, variant)
        thin = {**style, "linestyle": ":", "marker": None, "linewidth": 1.4}
        _mean_line(similarity, drift, variant, "cosine_pruned", range(num_layers), label, style)
        _mean_line(similarity, drift, variant, "cosine_kept", range(num_layers), f"{label}: kept tokens", thin)
        last = range(max(num_layers - 4, 0), num_layers)
        _mean_line(decoded, drift, variant, metrics.main, last, label, style)
        _mean_line(decoded, drift, variant, f"{metrics.main}_unpruned", last, f"{label}: unpruned", thin)
        decoded.set_xticks(list(last))
    similarity.set(xlabel="after layer", ylabel="cosine similarity to the unpruned state")
    similarity.set_title(f"pruned tokens, keep rate {rate_name(rate)} at every stage", fontsize=10)
    decoded.set(xlabel="decoded after layer", ylabel=metrics.main_name)
    decoded.set_title("decoded by the model's own heads", fontsize=10)
    for axis in (similarity, decoded):
        tidy(axis)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False, fontsize=8)
    figure.savefig(path, dpi=DPI)


def _mean_line(axis, drift: list[dict], variant: str, field: str, layers: range, label: str, style: dict) -> None:
    cells = [
        mean_and_sd(row[field] for row in drift if row["variant"] == variant and row["layer"] == layer)
        for layer in layers
    ]
    means, spreads = np.array(cells).T
    axis.plot(list(layers), means, label=label, **style)
    axis.fill_between(list(layers), means - spreads, means + spreads, color=style["color"], alpha=0.15, linewidth=0)


def _area(image: np.ndarray, names: list[str]) -> np.ndarray:
    """The part of an image that is shown: of a fundus the field of view."""
    return field_of_view(image) if names == VESSEL_CLASSES else np.ones(image.shape[:2], dtype=bool)


def _heat_map(probability: np.ndarray) -> np.ndarray:
    return np.round(255 * ScalarMappable(cmap=HEAT).cmap(probability)[..., :3]).astype(np.uint8)


def _crop(panel: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The panel cropped to the field of view, white outside it."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    panel = np.where(inside[..., None], panel, np.uint8(WHITE))
    return panel[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
