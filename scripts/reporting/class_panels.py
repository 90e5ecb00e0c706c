"""A prediction of several classes as images: label maps and overlays in the colours of the classes, with legends."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .class_colours import class_colours, legend_strip
from .panels import (
    GROUND,
    MISSED,
    WHITE,
    Legend,
    PredictionPanels,
    reduce_panel,
    save_panel_figure,
    stage_legend,
    stage_panel,
)

_OPACITY = 0.55
_MOST_NAMED = 24  # classes in a legend


def class_panel(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """
    Every pixel in the colour of its class, `(height, width, 3)`, `uint8`; white where it has none.

    Args:
        labels (`np.ndarray` of shape `(height, width)`): Classes; any other number is none.
        num_classes (`int`): Of the model.
    """
    panel = class_colours(num_classes)[np.where(labels < num_classes, labels, 0)]
    panel[labels >= num_classes] = WHITE
    return panel


def class_overlay(image: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The colours of the classes, translucent, over the image, `(height, width, 3)`, `uint8`."""
    colours = class_colours(num_classes).astype(np.float32)[labels]
    return np.round((1 - _OPACITY) * image + _OPACITY * colours).astype(np.uint8)


def overlay_with_legend(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """
    [`class_overlay`], and below it a legend of the classes that occur, most frequent first.

    Args:
        image (`np.ndarray` of shape `(height, width, 3)`, `uint8`): The image.
        labels (`np.ndarray` of shape `(height, width)`): The class of every pixel.
        names (`Sequence[str]`): Of all classes.

    Returns:
        `np.ndarray` of shape `(height + legend_height, width, 3)`, `uint8`.
    """
    found = classes_by_frequency([labels], len(names))
    legend = legend_strip([names[index] for index in found], class_colours(len(names))[found], image.shape[1])
    return np.concatenate([class_overlay(image, labels, len(names)), legend])


def classes_by_frequency(label_maps: Sequence[np.ndarray], num_classes: int) -> list[int]:
    """The classes that occur in some label maps, most frequent first; what is no class does not count."""
    counts = sum(np.bincount(labels.ravel(), minlength=256)[:num_classes] for labels in label_maps)
    return [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]


def wrong_panel(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Wrong pixels in vermillion on light ground; white where there is no label."""
    panel = np.where((predicted == labels)[..., None], np.uint8(GROUND), np.uint8(MISSED))
    panel[labels >= num_classes] = WHITE
    return panel


def class_panels(
    name: str, image: np.ndarray, labels: np.ndarray, predicted: np.ndarray, stages: np.ndarray, num_classes: int,
    num_stages: int,
) -> PredictionPanels:  # fmt: skip
    """
    The five panels of an image, in the order of [`~reg4pru.reporting.panels.COLUMNS`].

    Args:
        name (`str`): What to call the image.
        image (`np.ndarray` of shape `(height, width, 3)`, `uint8`): The image.
        labels (`np.ndarray` of shape `(height, width)`): True classes; any other number is none.
        predicted (`np.ndarray` of shape `(height, width)`): Predicted classes.
        stages (`np.ndarray` of shape `(height, width)`): Stage at which the token of each pixel was pruned,
            `num_stages` for never.
        num_classes (`int`): Of the model.
        num_stages (`int`): Number of pruning stages.
    """
    panels = (
        image,
        class_panel(labels, num_classes),
        class_panel(predicted, num_classes),
        wrong_panel(predicted, labels, num_classes),
        stage_panel(image, stages, num_stages),
    )
    return PredictionPanels(name, tuple(map(reduce_panel, panels)))


def save_class_figure(
    path: Path, rows: list[PredictionPanels], shown: Sequence[int], names: Sequence[str], num_stages: int, title: str
) -> None:
    """
    Draw rows of input, ground truth, prediction, errors and stage of pruning, with legends.

    Args:
        path (`Path`): The PNG file to write.
        rows (`list[PredictionPanels]`): From [`class_panels`], at least one.
        shown (`Sequence[int]`): Classes for the legend, most important first.
        names (`Sequence[str]`): Of all classes.
        num_stages (`int`): Number of pruning stages.
        title (`str`): Says what is shown.
    """
    colours = class_colours(len(names))
    entries = [(colours[index], names[index]) for index in shown[:_MOST_NAMED]]
    if len(shown) > _MOST_NAMED:
        entries.append((WHITE, f"and {len(shown) - _MOST_NAMED} more"))
    legends = [
        Legend(1.5, entries, 4),
        Legend(3, [(GROUND, "right"), (MISSED, "wrong"), (WHITE, "no label")], 3),
        Legend(4, stage_legend(num_stages), 2),
    ]
    save_panel_figure(path, rows, legends, title)
