"""What predictions get right by labels, where there are some."""

import numpy as np

from datasets_fives.masks import counted_pixels
from datasets_fives.metrics import VesselMetrics
from datasets_fives.metrics.class_metrics import ClassMetrics
from datasets_fives.metrics.evaluation import imaged_area
from modeling_reg4pru import Reg4PruConfig
from modeling_reg4pru.tiled_inference import ImagePrediction

from ..inference.model_classes import is_of_vessels, model_classes

# Of two classes and of more; the first is what the verdict names.
BINARY, CLASSES = ("average_precision", "dice"), ("mean_iou", "pixel_accuracy")


class Accuracy:
    """
    One model at one keep rate against labels, with the metrics of `reg4pru evaluate`.

    Args:
        config ([`Reg4PruConfig`]): Of the model, for its classes.
    """

    def __init__(self, config: Reg4PruConfig):
        self.is_binary, self.is_of_vessels = config.num_labels == 2, is_of_vessels(config)
        self.metrics = VesselMetrics() if self.is_binary else ClassMetrics(model_classes(config))

    def update(self, prediction: ImagePrediction, row: dict) -> None:
        """Add an image, a row of [`~datasets_fives.load_segmentation`]."""
        mask = np.asarray(row["mask"])
        if not self.is_binary:
            self.metrics.update(prediction.segmentation.numpy(), mask)
            return
        foreground, counts = counted_pixels(mask)
        if self.is_of_vessels:
            counts &= imaged_area(row)
        self.metrics.update(row["name"], None, prediction.foreground_probability.numpy(), foreground, counts)

    def summary(self) -> dict[str, float]:
        """The values of [`BINARY`] or [`CLASSES`]."""
        values = self.metrics.compute()
        if self.is_binary:
            return {name: values["pooled"][name] for name in BINARY}
        return {name: values[name] for name in CLASSES}
