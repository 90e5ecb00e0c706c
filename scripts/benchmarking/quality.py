"""Quality of a model, pooled over images, as `reg4pru evaluate` measures it."""

from collections.abc import Sequence

from datasets import Dataset
from torch import nn
from transformers import BaseImageProcessor

from datasets_fives.metrics import measure, measure_classes

from ..inference.model_classes import is_of_vessels, model_classes
from ..inference.predictors import predictor
from .quality_names import CLASS_QUALITIES, QUALITIES


def measure_quality(
    model: nn.Module,
    processor: BaseImageProcessor,
    images: Dataset,
    keep_rates: float | Sequence[float] | str | None,
    *,
    batch_size: int,
    seed: int,
) -> dict[str, float]:
    """
    [`QUALITIES`] of a model over all pixels of the images, or [`CLASS_QUALITIES`]; `nan` if these contain no vessel,
    or no label.

    Args:
        model (`nn.Module`): A model, or an engine in its place ([`~reg4pru.benchmarking.engines.EngineModel`]).
        processor ([`Reg4PruImageProcessor`]): Its image processor.
        images (`Dataset`): Rows of images and masks.
        keep_rates (`float`, sequence of `float`, `None` or `"config"`): As in the model's forward.
        batch_size (`int`): Tiles a forward pass.
        seed (`int`): Of random selection.
    """
    predict = predictor(model, processor, keep_rates, batch_size=batch_size, seed=seed)
    if model.config.num_labels > 2:
        result = measure_classes({"": predict}, images, model_classes(model.config))[""].compute()
        return {name: result[name] for name in CLASS_QUALITIES}
    inside = is_of_vessels(model.config)
    pooled = measure({"": predict}, images, inside_field_of_view=inside)[""].compute()["pooled"]
    return {name: float(pooled[name]) for name in QUALITIES}
