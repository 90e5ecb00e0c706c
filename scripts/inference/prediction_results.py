"""What is written of a prediction: result images and measures, of two classes or of more."""

import numpy as np
from PIL import Image
from skimage.morphology import skeletonize

from modeling_reg4pru import Reg4PruConfig
from modeling_reg4pru.tiled_inference import ImagePrediction

from ..reporting.class_colours import class_colours, label_image
from ..reporting.class_panels import overlay_with_legend
from ..reporting.panels import blank_outside, mask_image, overlay_panel, probability_image
from .model_classes import is_of_vessels, model_classes
from .result_table import PIXELS


def results_of(config: Reg4PruConfig, threshold: float) -> "BinaryResults | ClassResults":
    """What is written of the predictions of a model."""
    return BinaryResults(config, threshold) if config.num_labels == 2 else ClassResults(config)


class BinaryResults:
    """
    Of two classes: mask, probability and overlay.

    Args:
        config ([`Reg4PruConfig`]): Of the model.
        threshold (`float`): A pixel is foreground, such as vessel, if its probability is above it.
    """

    kinds = ("mask", "probability", "overlay")

    def __init__(self, config: Reg4PruConfig, threshold: float):
        self.threshold, self.names, self.is_of_vessels = threshold, model_classes(config), is_of_vessels(config)

    def images(
        self, pixels: np.ndarray, inside: np.ndarray, prediction: ImagePrediction
    ) -> dict[str, np.ndarray | Image.Image]:
        """
        The result images of a prediction by kind.

        Args:
            pixels (`np.ndarray` of shape `(height, width, 3)`, `uint8`): The image.
            inside (`np.ndarray` of shape `(height, width)`, `bool`): Its field of view.
            prediction ([`~modeling_reg4pru.tiled_inference.ImagePrediction`]): What the model made of it.
        """
        foreground = self._foreground(prediction)
        return {
            "mask": mask_image(foreground),
            "probability": probability_image(prediction.foreground_probability.numpy()),
            "overlay": blank_outside(overlay_panel(pixels, foreground), inside),
        }

    def measures(self, prediction: ImagePrediction, inside: np.ndarray) -> dict[str, str]:
        """
        What the table tells of a prediction, see [`vessel_measures`] and [`pixels_by_class`]; arguments as for
        [`BinaryResults.images`].
        """
        foreground = self._foreground(prediction)
        return vessel_measures(foreground, inside) if self.is_of_vessels else pixels_by_class(foreground, self.names)

    def _foreground(self, prediction: ImagePrediction) -> np.ndarray:
        return prediction.foreground_probability.numpy() > self.threshold


class ClassResults:
    """
    Of more classes: the label map, under the name of a mask, and an overlay with a legend.

    Args:
        config ([`Reg4PruConfig`]): Of the model.

    Raises:
        `ValueError`: If it has more classes than an image with a palette can tell.
    """

    kinds = ("mask", "overlay")

    def __init__(self, config: Reg4PruConfig):
        self.names = model_classes(config)
        class_colours(len(self.names))

    def images(
        self, pixels: np.ndarray, inside: np.ndarray, prediction: ImagePrediction
    ) -> dict[str, np.ndarray | Image.Image]:
        """See [`BinaryResults.images`]; all of an image is inside."""
        labels = prediction.segmentation.numpy()
        return {
            "mask": label_image(labels, len(self.names)),
            "overlay": overlay_with_legend(pixels, labels, self.names),
        }

    def measures(self, prediction: ImagePrediction, inside: np.ndarray) -> dict[str, str]:
        """See [`pixels_by_class`]."""
        return pixels_by_class(prediction.segmentation.numpy(), self.names)


def pixels_by_class(labels: np.ndarray, names: list[str]) -> dict[str, str]:
    """
    How many pixels each class has, by the name of its column.

    Args:
        labels (`np.ndarray` of shape `(height, width)`): The class of every pixel.
        names (`list[str]`): Of all classes.
    """
    counts = np.bincount(labels.ravel(), minlength=len(names))
    return {f"{PIXELS}{name}": str(count) for name, count in zip(names, counts, strict=True)}


def vessel_measures(vessels: np.ndarray, inside: np.ndarray) -> dict[str, str]:
    """
    Share of the field of view that is vessel, length of the vessel skeleton in pixels, and that length by the area of
    the field of view (1 / pixel).

    Args:
        vessels (`np.ndarray` of shape `(height, width)`, `bool`): The mask.
        inside (`np.ndarray` of shape `(height, width)`, `bool`): The field of view.
    """
    found = vessels & inside
    area, length = np.count_nonzero(inside), np.count_nonzero(skeletonize(found))
    return {
        "vessel_fraction": f"{np.count_nonzero(found) / area:.6f}",
        "skeleton_length": str(length),
        "skeleton_density": f"{length / area:.6f}",
    }
