"""An image predicted with and without pruning: what is shown, and what is measured."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from transformers import BaseImageProcessor

from datasets_fives.field_of_view import field_of_view
from datasets_fives.metrics.image_counts import count_image, ratios
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import ImagePrediction, predict_image

from ..inference.predictors import fixed_draws
from ..reporting.panels import blank_outside, error_panel, overlay_panel, probability_panel, reduce_panel, stage_panel

THRESHOLD = 0.5
SHOWN_SIDE = 1024  # pixels of the longer side of what is shown; downloads have the image's own size
_BATCH_SIZE = 8


@dataclass
class Prediction:
    """
    What the model made of an image, and at what cost.

    Args:
        probability (`np.ndarray` of shape `(height, width)`, `float32`): Probability of vessel.
        stages (`np.ndarray` of shape `(height, width)`, *optional*): Stage at which the token of a pixel was pruned.
        token_counts (`list[int]`): Tokens that each layer ran on, of one tile; their mean where tiles differ.
        num_tiles (`int`): Tiles of the image.
        seconds (`float`): Wall clock time from the image to the probability.
    """

    probability: np.ndarray
    stages: np.ndarray | None
    token_counts: list[int]
    num_tiles: int
    seconds: float

    @property
    def vessels(self) -> np.ndarray:
        """The mask, `(height, width)` `bool`."""
        return self.probability > THRESHOLD


@dataclass
class OpenImage:
    """
    An image that somebody looks at.

    Args:
        name (`str`): What to call it.
        pixels (`np.ndarray` of shape `(height, width, 3)`, `uint8`): The image.
        inside (`np.ndarray` of shape `(height, width)`, `bool`): Its field of view.
        dense (`Prediction`): The unpruned prediction, made once.
        truth (`np.ndarray` of shape `(height, width)`, `bool`, *optional*): The true vessels.
        dense_row (`dict`, *optional*): What was measured of the unpruned prediction, against this truth.
    """

    name: str
    pixels: np.ndarray
    inside: np.ndarray
    dense: Prediction
    truth: np.ndarray | None = None
    dense_row: dict | None = None


class Comparer:
    """
    A model for many visitors: one prediction at a time, so that nobody sees another's settings, and times are true.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): The model, in evaluation mode.
        processor ([`Reg4PruImageProcessor`]): Its image processor.
    """

    def __init__(self, model: Reg4PruForSemanticSegmentation, processor: BaseImageProcessor):
        self.model, self.processor = model, processor
        self._turn = threading.Lock()

    def open(self, name: str, image: Image.Image, truth: np.ndarray | None = None) -> OpenImage:
        """An image with its field of view and its unpruned prediction."""
        pixels = np.asarray(image)
        return OpenImage(name, pixels, field_of_view(pixels), self.predict(pixels, 1.0), truth)

    def predict(
        self,
        pixels: np.ndarray,
        keep_rates: float | Sequence[float],
        reactivation_layer: int | None = None,
        selection_pool: str | None = None,
    ) -> Prediction:
        """
        Predict an image.

        Args:
            pixels (`np.ndarray` of shape `(height, width, 3)`, `uint8`): The image.
            keep_rates (`float` or sequence of `float`): One rate for all stages or one per stage.
            reactivation_layer (`int`, *optional*): After which layer tokens are put back; default: the checkpoint's.
            selection_pool (`str`, *optional*): `"active"` or `"all"`; default: the checkpoint's.

        Raises:
            `ValueError`: For settings that the model does not take.
        """
        token_counts: list[torch.Tensor] = []
        image = Image.fromarray(pixels)
        with self._turn, self._settings(reactivation_layer, selection_pool), fixed_draws(self.model, 0):
            hook = self.model.register_forward_hook(lambda *call: token_counts.append(call[-1].token_counts))
            start = time.perf_counter()
            try:
                predicted: ImagePrediction = predict_image(
                    self.model, self.processor, image, keep_rates, batch_size=_BATCH_SIZE, output_stages=True
                )
            finally:
                hook.remove()
            seconds = time.perf_counter() - start
        return Prediction(
            probability=predicted.probabilities[1].numpy(),
            stages=None if predicted.stages is None else predicted.stages.numpy(),
            token_counts=token_counts[0].view(len(self.model.layers), -1).float().mean(dim=1).round().int().tolist(),
            num_tiles=predicted.num_tiles,
            seconds=seconds,
        )

    @contextmanager
    def _settings(self, reactivation_layer: int | None, selection_pool: str | None) -> Iterator[None]:
        config = self.model.config
        before = config.reactivation_layer, config.selection_pool
        try:
            config.reactivation_layer = before[0] if reactivation_layer is None else reactivation_layer
            config.selection_pool = before[1] if selection_pool is None else selection_pool
            try:
                config.validate()
            except StrictDataclassClassValidationError as error:
                raise ValueError(str(error.__cause__)) from None
            yield
        finally:
            config.reactivation_layer, config.selection_pool = before


def agreement(prediction: Prediction, reference: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Dice and clDice of a prediction against a mask, inside the field of view; `nan` where both are empty."""
    scores = ratios(count_image(prediction.vessels, reference, inside, boundary_width=1))
    return scores["dice"], scores["cldice"]


def shown_overlays(image: OpenImage, pruned: Prediction) -> dict[str, np.ndarray]:
    """The vessels `unpruned` and `pruned` on the image, as [`shown_panels`] are."""
    found = {"unpruned": image.dense.vessels, "pruned": pruned.vessels}
    return _shown(image, {name: overlay_panel(image.pixels, vessels) for name, vessels in found.items()})


def shown_panels(image: OpenImage, pruned: Prediction, num_stages: int) -> dict[str, np.ndarray]:
    """
    What else is shown of an image, `(height, width, 3)` `uint8` each, inside the field of view only.

    Returns:
        `dict`: `stages`, `probability`, and `differences` from the unpruned mask.
    """
    pixels = image.pixels
    stages = np.full(pixels.shape[:2], num_stages) if pruned.stages is None else pruned.stages
    panels = {
        "stages": stage_panel(pixels, stages, num_stages),
        "probability": probability_panel(pruned.probability),
        "differences": error_panel(pruned.vessels, image.dense.vessels),
    }
    return _shown(image, panels)


def _shown(image: OpenImage, panels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: reduce_panel(blank_outside(panel, image.inside), SHOWN_SIDE) for name, panel in panels.items()}
