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

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import ImagePrediction, predict_image

from ..inference.predictors import fixed_draws
from ..reporting.panels import blank_outside, reduce_panel, stage_panel
from .binary_view import BinaryView
from .class_view import ClassView
from .prediction import Prediction

SHOWN_SIDE = 1024  # pixels of the longer side of what is shown; downloads have the image's own size
_BATCH_SIZE = 8


@dataclass
class OpenImage:
    """
    An image that somebody looks at.

    Args:
        name (`str`): What to call it.
        pixels (`np.ndarray` of shape `(height, width, 3)`, `uint8`): The image.
        inside (`np.ndarray` of shape `(height, width)`, `bool`): Its field of view, or all of it.
        dense (`Prediction`): The unpruned prediction, made once.
        view ([`BinaryView`] or [`ClassView`]): How it is shown and compared.
        truth (`np.ndarray` of shape `(height, width)`, *optional*): The true mask or label map.
        dense_row (`dict`, *optional*): What was measured of the unpruned prediction, against this truth.
    """

    name: str
    pixels: np.ndarray
    inside: np.ndarray
    dense: Prediction
    view: BinaryView | ClassView
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
        self.view = BinaryView(model.config) if model.config.num_labels == 2 else ClassView(model.config)
        self._turn = threading.Lock()

    def open(self, name: str, image: Image.Image, truth: np.ndarray | None = None) -> OpenImage:
        """An image with its field of view and its unpruned prediction."""
        pixels = np.asarray(image)
        return OpenImage(name, pixels, self.view.area(pixels), self.predict(pixels, 1.0), self.view, truth)

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
        labels, probability = self.view.read(predicted)
        return Prediction(
            labels=labels,
            probability=probability,
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


def shown_overlays(image: OpenImage, pruned: Prediction) -> dict[str, np.ndarray]:
    """What was found, `unpruned` and `pruned`, on the image, as [`shown_panels`] are."""
    found = {"unpruned": image.dense, "pruned": pruned}
    return _shown(image, {name: image.view.overlay(image.pixels, each) for name, each in found.items()})


def shown_panels(image: OpenImage, pruned: Prediction, num_stages: int) -> dict[str, np.ndarray]:
    """
    What else is shown of an image, `(height, width, 3)` `uint8` each, inside the field of view only.

    Returns:
        `dict`: `stages`, `differences` from the unpruned prediction, and `third`: the probability or the label map.
    """
    pixels = image.pixels
    stages = np.full(pixels.shape[:2], num_stages) if pruned.stages is None else pruned.stages
    panels = {
        "stages": stage_panel(pixels, stages, num_stages),
        "differences": image.view.differences(pruned, image.dense),
        "third": image.view.third_panel(pruned),
    }
    return _shown(image, panels)


def _shown(image: OpenImage, panels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: reduce_panel(blank_outside(panel, image.inside), SHOWN_SIDE) for name, panel in panels.items()}
