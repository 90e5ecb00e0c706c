"""How far a pruned model agrees with itself unpruned, and what that saves, on images that nothing was fitted to."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets_fives.metrics.class_metrics import ClassMetrics
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.tiled_inference import predict_image

from ..common.keep_rates import rate_name
from ..inference.predictors import fixed_draws
from ..reporting.agreement import draw_differences

# Images of the figure.
SHOWN = 3


@dataclass
class Agreement:
    """
    One model at one keep rate, against the dense prediction.

    Args:
        metrics ([`~datasets_fives.metrics.class_metrics.ClassMetrics`]): With the dense prediction as labels.
        seconds (`list[float]`): Per image.
        tokens (`list[float]`): Tokens that the layers ran on, as a share of the dense model's, per image.
    """

    metrics: ClassMetrics
    seconds: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)

    def summary(self, dense_seconds: float) -> dict:
        """The numbers of the report; undefined ones are `nan`."""
        seconds = median(self.seconds)
        return {
            **self.metrics.compute(),
            "milliseconds": 1000 * seconds,
            "times_dense": dense_seconds / seconds,
            "tokens": sum(self.tokens) / len(self.tokens),
        }


def measure_agreement(
    dense: Reg4PruForSemanticSegmentation,
    models: dict[str, Reg4PruForSemanticSegmentation],
    processor: Reg4PruImageProcessor,
    images: Sequence[Image.Image],
    keep_rates: Sequence[float],
    seed: int = 0,
    figure: Path | None = None,
) -> tuple[dict, dict[str, dict[float, dict]]]:
    """
    Predict every image densely and, in turns with it, at every keep rate with every model: one run, one machine state.

    Args:
        dense ([`Reg4PruForSemanticSegmentation`]): The model before, never pruned.
        models (`dict`): What became of it, by level.
        processor ([`Reg4PruImageProcessor`]): Of all of them.
        images (sequence of `PIL.Image.Image`): What is predicted.
        keep_rates (sequence of `float`): One number for all stages each.
        seed (`int`, *optional*, defaults to 0): Of random selection.
        figure (`Path`, *optional*): Where to draw the first images, with the last model at the middle keep rate.

    Returns:
        `tuple`: `{"milliseconds": ...}` of the dense model per image, and by model and keep rate `mean_iou`,
        `pixel_accuracy`, `boundary_iou`, `per_class`, `milliseconds` (median per image), `times_dense` and `tokens`.
    """
    names = [dense.config.id2label[label] for label in range(dense.config.num_labels)]
    found = {name: {rate: Agreement(ClassMetrics(names)) for rate in keep_rates} for name in models}
    dense_seconds: list[float] = []
    shown = (list(models)[-1], sorted(keep_rates)[len(keep_rates) // 2])
    rows = []
    predict_image(dense, processor, images[0], None)  # the first call of all takes longer
    for number, image in enumerate(tqdm(images, desc="Agreement", unit="image")):
        start = time.perf_counter()
        wanted = predict_image(dense, processor, image, None)
        dense_seconds.append(time.perf_counter() - start)
        labels = wanted.segmentation.numpy()
        for name, model in models.items():
            for rate in keep_rates:
                start = time.perf_counter()
                with fixed_draws(model, seed + number):
                    prediction = predict_image(model, processor, image, rate)
                entry = found[name][rate]
                entry.seconds.append(time.perf_counter() - start)
                entry.tokens.append(prediction.num_tokens / wanted.num_tokens)
                predicted = prediction.segmentation.numpy()
                entry.metrics.update(predicted, labels)
                if (name, rate) == shown and number < SHOWN:
                    rows.append((np.asarray(image), labels, predicted))
    if figure:
        draw_differences(figure, rows, f"{shown[0]}, keep rate {rate_name(shown[1])} per stage")
    typical = median(dense_seconds)
    summaries = {
        name: {rate: entry.summary(typical) for rate, entry in by_rate.items()} for name, by_rate in found.items()
    }
    return {"milliseconds": 1000 * typical}, summaries


def verdict(of_level: dict[float, dict], untrained: dict[float, dict]) -> str:
    """What the report says first: whether anything was gained, and where."""
    faster = [rate for rate, result in of_level.items() if result["times_dense"] > 1.05]
    better = [rate for rate in of_level if of_level[rate]["mean_iou"] > untrained[rate]["mean_iou"]]
    if not faster:
        return "Nothing was gained: at no keep rate is the pruned model more than 5 % faster here than the dense one."
    if not better:
        return (
            "Nothing was gained: with what was fitted the model agrees with its dense prediction no better than with "
            "tokens dropped at random."
        )
    rate = max(set(faster) & set(better) or faster)
    result = of_level[rate]
    return (
        f"At keep rate {rate:g} the model is {result['times_dense']:.2f} times as fast as unpruned, and agrees with "
        f"its unpruned prediction at a mean IoU of {result['mean_iou']:.3f} (tokens dropped at random, nothing "
        f"fitted: {untrained[rate]['mean_iou']:.3f})."
    )
