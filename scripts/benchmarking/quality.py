"""Quality of a model, pooled over images, as `reg4pru evaluate` measures it."""

from collections.abc import Sequence

from datasets import Dataset
from torch import nn
from transformers import BaseImageProcessor

from datasets_fives.metrics import measure

from ..inference.predictors import predictor

QUALITIES = ("average_precision", "dice", "cldice")


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
    [`QUALITIES`] of a model over all pixels of the images; `nan` if these contain no vessel.

    Args:
        model (`nn.Module`): A model, or an engine in its place ([`~reg4pru.benchmarking.engines.EngineModel`]).
        processor ([`Reg4PruImageProcessor`]): Its image processor.
        images (`Dataset`): Rows of images and masks.
        keep_rates (`float`, sequence of `float`, `None` or `"config"`): As in the model's forward.
        batch_size (`int`): Tiles a forward pass.
        seed (`int`): Of random selection.
    """
    predict = predictor(model, processor, keep_rates, batch_size=batch_size, seed=seed)
    pooled = measure({"": predict}, images)[""].compute()["pooled"]
    return {name: float(pooled[name]) for name in QUALITIES}
