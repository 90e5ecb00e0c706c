"""The evaluation of a model of two classes: its metrics, and the figure with some of its images."""

from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import BaseImageProcessor

from datasets_fives.field_of_view import field_of_view
from datasets_fives.metrics import VesselMetrics, measure
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import predict_image

from ..common.spread import spread
from ..reporting.evaluation import results_table
from ..reporting.panels import FIGURE_ROWS, figure_title, prediction_panels, save_prediction_figure
from .model_classes import is_of_vessels, model_classes
from .predictors import fixed_draws, predictors

FIGURES = ("figure.png",)


def measure_model(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    images: Dataset,
    keep_rates: list[float],
    *,
    inside_field_of_view: bool,
    threshold: float,
    batch_size: int,
    seed: int,
    skip_outside: bool,
) -> dict[str, VesselMetrics]:
    """
    The metrics of a model by keep rate, see [`~datasets_fives.metrics.measure`].

    Args:
        model, processor, keep_rates, batch_size, seed, skip_outside: See [`predictors`].
        images (`Dataset`): Rows of images and masks.
        inside_field_of_view (`bool`), threshold (`float`): See [`~datasets_fives.metrics.measure`].
    """
    settings = {"batch_size": batch_size, "seed": seed, "skip_outside": skip_outside}
    measured = predictors(model, processor, keep_rates, **settings)
    return measure(measured, images, inside_field_of_view=inside_field_of_view, threshold=threshold)


def draw_figures(
    output_dir: Path,
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    dataset: Dataset,
    keep_rate: float,
    measured: dict[str, VesselMetrics],
    *,
    threshold: float,
    batch_size: int,
    seed: int,
    skip_outside: bool,
) -> None:
    """Draw up to four images, evenly spaced over the data set; the columns are those of `reporting.panels.COLUMNS`."""
    num_stages, rows = model.config.num_stages, []
    for index in spread(len(dataset), FIGURE_ROWS):
        row = dataset[index]
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"]) == 1
        inside = field_of_view(image) if is_of_vessels(model.config) else np.ones_like(mask)
        settings = {"batch_size": batch_size, "pixel_mask": inside if skip_outside else None}
        with fixed_draws(model, seed + index):  # as it was measured
            prediction = predict_image(model, processor, row["image"], keep_rate, output_stages=True, **settings)
        probability = prediction.foreground_probability.numpy()
        stages = np.zeros_like(probability, dtype=np.uint8) if prediction.stages is None else prediction.stages.numpy()
        rows.append(prediction_panels(row["name"], image, mask, probability, stages, num_stages, inside, threshold))
    title, names = figure_title(keep_rate, num_stages), model_classes(model.config)
    save_prediction_figure(output_dir / FIGURES[0], rows, num_stages, title, names)


__all__ = ["FIGURES", "draw_figures", "measure_model", "results_table"]
