"""The figure of an evaluation: some of its images, with mask, prediction, errors and pruning stages."""

from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import BaseImageProcessor

from datasets_fives.field_of_view import field_of_view
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import predict_image

from ..common.keep_rates import rate_name
from ..reporting.panels import prediction_panels, save_prediction_figure
from .predictors import fixed_draws

FIGURE_ROWS = 4


def draw_figure(
    path: Path,
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    dataset: Dataset,
    keep_rate: float,
    *,
    threshold: float = 0.5,
    batch_size: int = 4,
    seed: int = 0,
) -> None:
    """Draw up to four images, evenly spaced over the data set; the columns are those of `reporting.panels.COLUMNS`."""
    num_stages, rows = model.config.num_stages, []
    for index in np.linspace(0, len(dataset) - 1, min(len(dataset), FIGURE_ROWS)).round().astype(int).tolist():
        row = dataset[index]
        with fixed_draws(model, seed + index):  # as it was measured
            prediction = predict_image(
                model, processor, row["image"], keep_rate, batch_size=batch_size, output_stages=True
            )
        probability = prediction.probabilities[1].numpy()
        stages = np.zeros_like(probability, dtype=np.uint8) if prediction.stages is None else prediction.stages.numpy()
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"]).astype(bool)
        inside = field_of_view(image)
        rows.append(prediction_panels(row["name"], image, mask, probability, stages, num_stages, inside, threshold))
    title = f"keep rate {rate_name(keep_rate)} at each of {num_stages} stages" if num_stages else "no pruning stages"
    save_prediction_figure(path, rows, num_stages, title)
