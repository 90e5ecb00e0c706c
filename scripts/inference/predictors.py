"""A model at a keep rate as a function of images, as evaluations take it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from datasets_fives.field_of_view import field_of_view
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import predict_image

from ..common.keep_rates import check_keep_rates, rate_name


def predictors(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    keep_rates: list[float],
    *,
    batch_size: int = 4,
    seed: int = 0,
    skip_outside: bool = False,
) -> dict[str, Callable[[Image.Image, int], np.ndarray]]:
    """
    The model at several keep rates, for [`~datasets_fives.metrics.measure`] or, with more than two classes,
    [`~datasets_fives.metrics.measure_classes`].

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): The model.
        processor (`BaseImageProcessor`): Its image processor.
        keep_rates (`list[float]`): Keep rates in (0, 1], each for all stages.
        batch_size (`int`, *optional*, defaults to 4): Tiles per forward pass.
        seed (`int`, *optional*, defaults to 0): Of random selection; each image and rate has draws of its own.
        skip_outside (`bool`, *optional*, defaults to `False`): Whether what is outside the field of view, as
            [`~datasets_fives.field_of_view.field_of_view`] finds it, is left out.

    Returns:
        `dict`: by [`rate_name`] a function, see [`predictor`].

    Raises:
        `ValueError`: If the keep rates are wrong.
    """
    check_keep_rates(keep_rates)
    common = {"batch_size": batch_size, "seed": seed, "skip_outside": skip_outside}
    return {rate_name(rate): predictor(model, processor, rate, **common) for rate in keep_rates}


def predictor(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    keep_rates: float | Sequence[float] | str | None,
    *,
    batch_size: int = 4,
    seed: int = 0,
    skip_outside: bool = False,
) -> Callable[[Image.Image, int], np.ndarray]:
    """
    The model as a function of an image and its number: to the probability of the foreground for two classes, to the
    class of every pixel for more; arguments as for [`predictors`].

    Args:
        keep_rates (`float`, sequence of `float`, `None` or `"config"`): As in the model's forward.
    """

    def predict(image: Image.Image, index: int) -> np.ndarray:
        inside = field_of_view(np.asarray(image)) if skip_outside else None
        with fixed_draws(model, seed + index):  # independent of other rates and images
            prediction = predict_image(model, processor, image, keep_rates, pixel_mask=inside, batch_size=batch_size)
        is_binary = model.config.num_labels == 2
        return (prediction.foreground_probability if is_binary else prediction.segmentation).numpy()

    return predict


@contextmanager
def fixed_draws(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Draws inside follow from the seed alone, and those outside do not notice."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
