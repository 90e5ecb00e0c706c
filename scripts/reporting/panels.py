"""
A prediction as images: functions that turn arrays into panels, and the figure with one row of five panels per image.

All panels show the field of view only, on white: what lies outside it may hold burned-in characters. Figures are
opaque, so that they read the same in print and on a dark page. The colours of Okabe and Ito (errors) and a part of
viridis (stages) can be told apart by colour-blind readers, and in grey by their lightness.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Patch
from PIL import Image

from ..common.keep_rates import rate_name
from .style import hide_axes, new_figure

WHITE = (255, 255, 255)
GROUND = (236, 236, 236)  # background inside the field of view
VESSEL = (30, 30, 30)
FOUND = (125, 125, 125)  # lighter than VESSEL, so that thin fringes of the next two stand out
MISSED = (213, 94, 0)  # vermillion
FALSE = (0, 114, 178)  # blue
OVERLAY = (86, 220, 255)
PANEL_SIDE = 512
FIGURE_ROWS = 4
COLUMNS = ("input", "ground truth", "prediction", "errors", "stage of pruning")


class PredictionPanels(NamedTuple):
    """One row of the figure: RGB panels (height, width, 3), `uint8`, reduced to [`PANEL_SIDE`]."""

    name: str
    panels: tuple[np.ndarray, ...]


def mask_image(vessels: np.ndarray) -> np.ndarray:
    """A mask as it is saved: `(height, width)` `bool` to `uint8`, 255 is vessel."""
    return vessels.astype(np.uint8) * np.uint8(255)


def probability_image(probability: np.ndarray) -> np.ndarray:
    """A probability map as it is saved: `(height, width)` in [0, 1] to `uint16`, 65535 is probability 1."""
    return np.round(probability * 65535).astype(np.uint16)


def prediction_panels(
    name: str,
    image: np.ndarray,
    mask: np.ndarray,
    probability: np.ndarray,
    stages: np.ndarray,
    num_stages: int,
    inside: np.ndarray,
    threshold: float = 0.5,
) -> PredictionPanels:
    """
    The five panels of an image, in the order of [`COLUMNS`].

    Args:
        name (`str`): What to call the image.
        image (`np.ndarray` of shape `(height, width, 3)`, `uint8`): The image.
        mask (`np.ndarray` of shape `(height, width)`, `bool`): The true vessels.
        probability (`np.ndarray` of shape `(height, width)`): Predicted probability of vessel.
        stages (`np.ndarray` of shape `(height, width)`): Stage at which the token of each pixel was pruned,
            `num_stages` for never.
        num_stages (`int`): Number of pruning stages.
        inside (`np.ndarray` of shape `(height, width)`, `bool`): The field of view.
        threshold (`float`, *optional*, defaults to 0.5): A pixel is predicted to be vessel above it.
    """
    panels = (
        image,
        mask_panel(mask),
        probability_panel(probability),
        error_panel(probability > threshold, mask),
        stage_panel(image, stages, num_stages),
    )
    return PredictionPanels(name, tuple(reduce_panel(blank_outside(panel, inside)) for panel in panels))


def blank_outside(panel: np.ndarray, inside: np.ndarray, colour: tuple[int, int, int] = WHITE) -> np.ndarray:
    """The panel with one colour outside the field of view."""
    return np.where(inside[..., None], panel, np.uint8(colour))


def mask_panel(mask: np.ndarray) -> np.ndarray:
    """Vessels dark on light ground."""
    return np.where(mask[..., None].astype(bool), np.uint8(VESSEL), np.uint8(GROUND))


def probability_panel(probability: np.ndarray) -> np.ndarray:
    """Probability 0 to 1 as a blend from the ground to the vessels of [`mask_panel`]."""
    share = np.asarray(probability, dtype=np.float32)[..., None]
    return np.round(np.float32(GROUND) * (1 - share) + np.float32(VESSEL) * share).astype(np.uint8)


def error_panel(prediction: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """True positives (grey), missed vessels (vermillion) and false positives (blue)."""
    prediction, mask = prediction.astype(bool), mask.astype(bool)
    panel = mask_panel(np.zeros_like(mask))
    panel[prediction & mask] = FOUND
    panel[mask & ~prediction] = MISSED
    panel[prediction & ~mask] = FALSE
    return panel


def overlay_panel(image: np.ndarray, vessels: np.ndarray) -> np.ndarray:
    """The predicted vessels in translucent light blue, which no fundus has, over the image."""
    blend = np.round(0.35 * image + 0.65 * np.float32(OVERLAY)).astype(np.uint8)
    return np.where(vessels[..., None], blend, image)


def stage_colours(num_stages: int) -> np.ndarray:
    """Colours of the stages and, last, of the tokens that stay: light to dark, `(num_stages + 1, 3)`, `uint8`."""
    places = np.linspace(0.98, 0.12, num_stages + 1) if num_stages else [0.12]
    return np.round(255 * colormaps["viridis"](places)[:, :3]).astype(np.uint8)


def stage_panel(image: np.ndarray, stages: np.ndarray, num_stages: int) -> np.ndarray:
    """The colour of each token's stage; a faint shading of the image is left for orientation."""
    colours = stage_colours(num_stages)[stages]
    green = image[..., 1:2].astype(np.float32)  # the channel in which vessels stand out
    shade = 0.7 + 0.3 * np.clip(green / max(float(np.percentile(green, 98)), 1.0), 0, 1)
    return np.round(colours * shade).astype(np.uint8)


def reduce_panel(panel: np.ndarray, side: int = PANEL_SIDE) -> np.ndarray:
    """The panel with its longer side no longer than `side`, by area average, so that thin vessels stay visible."""
    image = Image.fromarray(panel)
    image.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    return np.asarray(image)


def figure_title(keep_rate: float, num_stages: int) -> str:
    """What a figure of predictions says of their keep rate."""
    return f"keep rate {rate_name(keep_rate)} at each of {num_stages} stages" if num_stages else "no pruning stages"


def save_prediction_figure(
    path: Path,
    rows: list[PredictionPanels],
    num_stages: int,
    title: str,
    classes: Sequence[str] = ("background", "vessel"),
) -> None:
    """
    Draw rows of input, ground truth, prediction, errors and stage of pruning, with legends.

    Args:
        path (`Path`): The PNG file to write.
        rows (`list[PredictionPanels]`): From [`prediction_panels`], at least one.
        num_stages (`int`): Number of pruning stages.
        title (`str`): Says what is shown, for instance the keep rate.
        classes (`Sequence[str]`, *optional*, defaults to `("background", "vessel")`): Names of the two classes.
    """
    middle = probability_panel(np.array([[0.5]]))[0, 0]
    legends = [
        Legend(1, [(VESSEL, classes[1]), (GROUND, classes[0])], 2),
        Legend(2, [(GROUND, "0"), (middle, "0.5"), (VESSEL, "1 (probability)")], 3),
        Legend(3, [(FOUND, "found"), (MISSED, "missed"), (FALSE, "false")], 3),
        Legend(4, stage_legend(num_stages), 2),
    ]
    save_panel_figure(path, rows, legends, title)


class Legend(NamedTuple):
    """What colours mean, below one column of a figure: the column, colours with their names, and entries in a line."""

    column: float
    entries: list[tuple[tuple[int, int, int], str]]
    ncols: int


def stage_legend(num_stages: int) -> list[tuple[tuple[int, int, int], str]]:
    """The colours of [`stage_panel`] and their names."""
    names = [f"stage {stage + 1}" for stage in range(num_stages)] + ["never"]
    return list(zip(stage_colours(num_stages), names, strict=True))


def save_panel_figure(path: Path, rows: list[PredictionPanels], legends: list[Legend], title: str) -> None:
    """
    Draw rows of panels under the names of [`COLUMNS`], with legends below them.

    Args:
        path (`Path`): The PNG file to write.
        rows (`list[PredictionPanels]`): At least one.
        legends (`list[Legend]`): Of a column, or of two for a number between theirs.
        title (`str`): Says what is shown.
    """
    lines = max(-(-len(legend.entries) // legend.ncols) for legend in legends)
    side, margin, foot = 2.3, 0.25, max(0.75, 0.2 + 0.17 * lines)  # inches
    tallest = max(row.panels[0].shape[0] / row.panels[0].shape[1] for row in rows)
    width, height = len(COLUMNS) * side + margin, len(rows) * side * tallest + 2 * margin + foot
    figure = new_figure(width, height)
    figure.set_layout_engine(None)
    axes = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
    figure.subplots_adjust(
        left=margin / width,
        right=1 - 0.02 / width,
        bottom=foot / height,
        top=1 - 2 * margin / height,
        wspace=0.03,
        hspace=0.03,
    )
    figure.suptitle(title, fontsize=11, y=1 - 0.1 / height, va="top")
    for axis, column in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(column, fontsize=10, pad=3)
    for row, line in zip(rows, axes, strict=True):
        for panel, axis in zip(row.panels, line, strict=True):
            axis.imshow(panel, interpolation="nearest" if panel.shape[0] < PANEL_SIDE else None)
            hide_axes(axis)
        line[0].set_ylabel(row.name, fontsize=8, labelpad=2)
    for legend in legends:
        handles = [
            Patch(facecolor=np.divide(colour, 255), edgecolor="0.5", label=label) for colour, label in legend.entries
        ]
        axes[-1][int(legend.column)].legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5 + legend.column % 1, 0), ncols=legend.ncols,
            fontsize=8, frameon=False, handlelength=1, handleheight=1, columnspacing=1, handletextpad=0.5,
        )  # fmt: skip
    figure.savefig(path, dpi=160)
