"""The evaluation of a model of more than two classes: its metrics, and the figure with some of its images."""

from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import BaseImageProcessor

from datasets_fives.metrics import MeasuredClasses, measure_classes
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import predict_image

from ..common.spread import spread
from ..reporting.class_evaluation import draw_classes, results_table
from ..reporting.class_panels import class_panels, classes_by_frequency, save_class_figure
from ..reporting.panels import FIGURE_ROWS, figure_title
from .model_classes import model_classes
from .predictors import fixed_draws, predictors

FIGURES = ("figure.png", "classes.png")


def measure_model(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    images: Dataset,
    keep_rates: list[float],
    *,
    batch_size: int,
    seed: int,
) -> dict[str, MeasuredClasses]:
    """
    The metrics of a model by keep rate, see [`~datasets_fives.metrics.measure_classes`].

    Args:
        model, processor, keep_rates, batch_size, seed: See [`predictors`].
        images (`Dataset`): Rows of images and label maps of the classes of the model.
    """
    measured = predictors(model, processor, keep_rates, batch_size=batch_size, seed=seed)
    return measure_classes(measured, images, model_classes(model.config))


def draw_figures(
    output_dir: Path,
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    dataset: Dataset,
    keep_rate: float,
    measured: dict[str, MeasuredClasses],
    *,
    batch_size: int,
    seed: int,
) -> None:
    """
    Draw up to four images, evenly spaced over the data set, in the columns of `reporting.panels.COLUMNS`, and IoU by
    class and keep rate.
    """
    draw_classes(output_dir / FIGURES[1], measured)
    names, num_stages = model_classes(model.config), model.config.num_stages
    rows, label_maps = [], []
    for index in spread(len(dataset), FIGURE_ROWS):
        row = dataset[index]
        with fixed_draws(model, seed + index):  # as it was measured
            prediction = predict_image(
                model, processor, row["image"], keep_rate, batch_size=batch_size, output_stages=True
            )
        predicted, labels = prediction.segmentation.numpy(), np.asarray(row["mask"])
        stages = np.zeros_like(labels) if prediction.stages is None else prediction.stages.numpy()
        image = np.asarray(row["image"])
        rows.append(class_panels(row["name"], image, labels, predicted, stages, len(names), num_stages))
        label_maps += [labels, predicted]
    shown = classes_by_frequency(label_maps, len(names))
    title = figure_title(keep_rate, num_stages)
    save_class_figure(output_dir / FIGURES[0], rows, shown, names, num_stages, title)


__all__ = ["FIGURES", "draw_figures", "measure_model", "results_table"]
