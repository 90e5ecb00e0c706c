"""What the app shows of a model of two classes, vessels or others, and how it compares predictions."""

from pathlib import Path

import numpy as np
from PIL import Image

from datasets_fives.field_of_view import field_of_view
from datasets_fives.metrics.image_counts import count_image, ratios
from modeling_reg4pru import Reg4PruConfig
from modeling_reg4pru.tiled_inference import ImagePrediction

from ..inference.model_classes import is_of_vessels, model_classes
from ..reporting.panels import (
    FALSE,
    FOUND,
    GROUND,
    MISSED,
    VESSEL,
    error_panel,
    mask_image,
    overlay_panel,
    probability_image,
    probability_panel,
)
from .legends import legend
from .prediction import Prediction
from .uploads import open_truth

THRESHOLD = 0.5


class BinaryView:
    """
    Of two classes: masks and probabilities, compared by Dice and clDice.

    Args:
        config ([`Reg4PruConfig`]): Of the model.
    """

    scores = {"dice": "Dice", "cldice": "clDice"}  # noqa: RUF012 (not changed)
    truth_label = "True mask, if there is one"
    files_label = "Mask, probability (16 bits) and table"
    unpruned = "the unpruned mask"
    note = "**Research software, not a medical device.** It must not be used for diagnosis or treatment. "

    def __init__(self, config: Reg4PruConfig):
        self.is_of_vessels, (_, name) = is_of_vessels(config), model_classes(config)
        self.task = (
            "finds the blood vessels in images of the retina" if self.is_of_vessels else f"finds {name} in images"
        )
        self.found, self.third = f"{name.capitalize()}s found", f"Probability of {name}"
        both = [(FOUND, f"{name} in both"), (MISSED, "lost by pruning"), (FALSE, "new with pruning")]
        self.difference_legend, self.third_legend = legend(both), legend([(GROUND, "0"), (VESSEL, "1")])

    def area(self, pixels: np.ndarray) -> np.ndarray:
        """The part of an image that is shown and measured, `(height, width)` `bool`: the field of view of a fundus."""
        return field_of_view(pixels) if self.is_of_vessels else np.ones(pixels.shape[:2], dtype=bool)

    def read(self, predicted: ImagePrediction) -> tuple[np.ndarray, np.ndarray]:
        """Mask and probability."""
        probability = predicted.foreground_probability.numpy()
        return probability > THRESHOLD, probability

    def open_truth(self, content: bytes, size: tuple[int, int]) -> np.ndarray:
        """See [`open_truth`]."""
        return open_truth(content, size)

    def agreement(self, prediction: Prediction, reference: np.ndarray, inside: np.ndarray) -> dict[str, float]:
        """Dice and clDice of a prediction against a mask, inside the area; `nan` where both are empty."""
        scores = ratios(count_image(prediction.labels, reference, inside, boundary_width=1))
        return {name: scores[name] for name in self.scores}

    def overlay(self, pixels: np.ndarray, prediction: Prediction) -> np.ndarray:
        """The mask over the image, `(height, width, 3)`, `uint8`."""
        return overlay_panel(pixels, prediction.labels)

    def differences(self, pruned: Prediction, dense: Prediction) -> np.ndarray:
        """What pruning changed, `(height, width, 3)`, `uint8`."""
        return error_panel(pruned.labels, dense.labels)

    def third_panel(self, prediction: Prediction) -> np.ndarray:
        """The probability, `(height, width, 3)`, `uint8`."""
        return probability_panel(prediction.probability)

    def label_image(self, prediction: Prediction) -> Image.Image:
        """The mask as it is saved."""
        return Image.fromarray(mask_image(prediction.labels))

    def write(self, folder: Path, name: str, prediction: Prediction) -> list[str]:
        """Write the mask (0 and 255) and the probability (65535 is 1) at the image's own size; the paths."""
        mask, probability = folder / f"{name}_mask.png", folder / f"{name}_probability.png"
        self.label_image(prediction).save(mask)
        Image.fromarray(probability_image(prediction.probability)).save(probability, compress_level=1)
        return [str(mask), str(probability)]
