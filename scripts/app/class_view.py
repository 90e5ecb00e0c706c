"""What the app shows of a model of more than two classes, and how it compares predictions."""

from pathlib import Path

import numpy as np
from PIL import Image

from datasets_fives.metrics import ClassMetrics
from modeling_reg4pru import Reg4PruConfig
from modeling_reg4pru.tiled_inference import ImagePrediction

from ..inference.model_classes import model_classes
from ..reporting.class_colours import class_colours, label_image
from ..reporting.class_panels import class_overlay, class_panel, wrong_panel
from ..reporting.panels import GROUND, MISSED
from .legends import legend
from .prediction import Prediction
from .uploads import open_label_map


class ClassView:
    """
    Of more classes: label maps, compared by mean IoU and pixel accuracy; whole images.

    Args:
        config ([`Reg4PruConfig`]): Of the model.
    """

    scores = {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}  # noqa: RUF012 (not changed)
    truth_label = "True label map, if there is one"
    files_label = "Label map and table"
    unpruned = "the unpruned label map"
    note = "**Research software.** It must not be used where errors can do harm. "
    found, third = "Classes found", "Classes"

    def __init__(self, config: Reg4PruConfig):
        self.names = model_classes(config)
        self.task = f"assigns every pixel of an image to one of {len(self.names)} classes"
        colours = class_colours(len(self.names)).tolist()
        self.difference_legend = legend([(GROUND, "the same class"), (MISSED, "another class with pruning")])
        self.third_legend = legend(zip(colours, self.names, strict=True))

    def area(self, pixels: np.ndarray) -> np.ndarray:
        """All of an image, `(height, width)` `bool`."""
        return np.ones(pixels.shape[:2], dtype=bool)

    def read(self, predicted: ImagePrediction) -> tuple[np.ndarray, None]:
        """The label map; there is no single probability."""
        return predicted.segmentation.numpy(), None

    def open_truth(self, content: bytes, size: tuple[int, int]) -> np.ndarray:
        """See [`open_label_map`]."""
        return open_label_map(content, size, len(self.names))

    def agreement(self, prediction: Prediction, reference: np.ndarray, inside: np.ndarray) -> dict[str, float]:
        """Mean IoU and pixel accuracy of a prediction against a label map; all of the image is inside."""
        result = ClassMetrics(self.names).update(prediction.labels, reference)
        return {name: result[name] for name in self.scores}

    def overlay(self, pixels: np.ndarray, prediction: Prediction) -> np.ndarray:
        """The colours of the classes over the image, `(height, width, 3)`, `uint8`."""
        return class_overlay(pixels, prediction.labels, len(self.names))

    def differences(self, pruned: Prediction, dense: Prediction) -> np.ndarray:
        """What pruning changed, `(height, width, 3)`, `uint8`."""
        return wrong_panel(pruned.labels, dense.labels, len(self.names))

    def third_panel(self, prediction: Prediction) -> np.ndarray:
        """The label map in colours, `(height, width, 3)`, `uint8`."""
        return class_panel(prediction.labels, len(self.names))

    def label_image(self, prediction: Prediction) -> Image.Image:
        """The label map as it is saved."""
        return label_image(prediction.labels, len(self.names))

    def write(self, folder: Path, name: str, prediction: Prediction) -> list[str]:
        """Write the label map, a palette whose indices are the classes, at the image's own size; its path."""
        path = folder / f"{name}_mask.png"
        self.label_image(prediction).save(path)
        return [str(path)]
