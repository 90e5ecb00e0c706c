"""How far a pruned model agrees with itself unpruned, what that saves, and what labels say."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets_fives.metrics.class_metrics import ClassMetrics
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.tiled_inference import ImagePrediction, predict_image

from ..common.keep_rates import rate_name
from ..inference.model_classes import model_classes
from ..inference.predictors import fixed_draws
from ..reporting.agreement import draw_differences
from .accuracy import Accuracy

# Images of the figure.
SHOWN = 3


class Reported(NamedTuple):
    """
    What the report is on.

    Args:
        images (sequence of `PIL.Image.Image`): Images that nothing was fitted to.
        labels (`datasets.Dataset`, *optional*): Their labels, row by row.
    """

    images: Sequence[Image.Image]
    labels: datasets.Dataset | None = None


@dataclass
class Measurement:
    """
    One model at one keep rate.

    Args:
        agreement ([`~datasets_fives.metrics.class_metrics.ClassMetrics`]): With the dense prediction as labels.
        accuracy ([`Accuracy`], *optional*): With labels.
        seconds (`list[float]`): Per image.
        tokens (`list[float]`): Tokens that the layers ran on, as a share of the dense model's, per image.
    """

    agreement: ClassMetrics
    accuracy: Accuracy | None
    seconds: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)

    def add(self, prediction: ImagePrediction, dense: ImagePrediction, row: dict | None) -> None:
        """One more image."""
        self.tokens.append(prediction.num_tokens / dense.num_tokens)
        self.agreement.update(prediction.segmentation.numpy(), dense.segmentation.numpy())
        if self.accuracy is not None:
            self.accuracy.update(prediction, row)

    def summary(self, dense_seconds: float) -> dict:
        """The numbers of the report; undefined ones are `nan`."""
        seconds = median(self.seconds)
        labels = {} if self.accuracy is None else {"labels": self.accuracy.summary()}
        return {
            **self.agreement.compute(),
            "milliseconds": 1000 * seconds,
            "times_dense": dense_seconds / seconds,
            "tokens": sum(self.tokens) / len(self.tokens),
            **labels,
        }


def measure_agreement(
    dense: Reg4PruForSemanticSegmentation,
    models: dict[str, Reg4PruForSemanticSegmentation],
    processor: Reg4PruImageProcessor,
    reported: Reported,
    keep_rates: dict[str, Sequence[float]],
    seed: int = 0,
    figure: Path | None = None,
) -> tuple[dict, dict[str, dict[float, dict]]]:
    """
    Predict every image densely and, in turns with it, at every keep rate with every model: one run, one machine state.

    Args:
        dense ([`Reg4PruForSemanticSegmentation`]): The model before, never pruned.
        models (`dict`): What became of it, by level.
        processor ([`Reg4PruImageProcessor`]): Of all of them.
        reported ([`Reported`]): What is predicted.
        keep_rates (`dict`): By level one number for all stages each.
        seed (`int`, *optional*, defaults to 0): Of random selection.
        figure (`Path`, *optional*): Where to draw the first images, with the last model at its middle keep rate.

    Returns:
        `tuple`: `milliseconds` of the dense model per image, with its `labels`, and by model and keep rate `mean_iou`,
        `pixel_accuracy`, `boundary_iou`, `per_class`, `milliseconds` (median per image), `times_dense`, `tokens` and
        `labels`; these are the values of [`Accuracy`], and left out where there are no labels.
    """
    images, labels, config = reported.images, reported.labels, dense.config

    def new() -> Measurement:
        return Measurement(ClassMetrics(model_classes(config)), None if labels is None else Accuracy(config))

    def predict(model, image: Image.Image, rate: float | None, number: int, entry: Measurement) -> ImagePrediction:
        start = time.perf_counter()
        with fixed_draws(model, seed + number):
            prediction = predict_image(model, processor, image, rate)
        entry.seconds.append(time.perf_counter() - start)
        return prediction

    unpruned, found = new(), {name: {rate: new() for rate in keep_rates[name]} for name in models}
    last = list(models)[-1]
    shown, rows = (last, sorted(keep_rates[last])[len(keep_rates[last]) // 2]), []
    predict_image(dense, processor, images[0], None)  # the first call of all takes longer
    for number, image in enumerate(tqdm(images, desc="Report", unit="image")):
        row = None if labels is None else {**labels[number], "image": image}
        wanted = predict(dense, image, None, number, unpruned)
        unpruned.add(wanted, wanted, row)
        for name, model in models.items():
            for rate, entry in found[name].items():
                prediction = predict(model, image, rate, number, entry)
                entry.add(prediction, wanted, row)
                if (name, rate) == shown and number < SHOWN:
                    maps = (each.segmentation.numpy() for each in (wanted, prediction))
                    rows.append((np.asarray(image), *maps))
    if figure:
        title = f"{shown[0]}, keep rate {rate_name(shown[1])} per stage"
        draw_differences(figure, rows, config.num_labels, title)
    typical = median(unpruned.seconds)
    of_dense = {key: value for key, value in unpruned.summary(typical).items() if key in ("milliseconds", "labels")}
    return of_dense, {
        name: {rate: entry.summary(typical) for rate, entry in by_rate.items()} for name, by_rate in found.items()
    }


def verdict(of_level: dict[float, dict], untrained: dict[float, dict], dense: dict) -> str:
    """What the report says first: whether anything was gained, where, and what that costs by labels."""
    pruned = {rate: result for rate, result in of_level.items() if rate < 1}
    faster = {rate for rate, result in pruned.items() if result["times_dense"] > 1.05}
    better = {rate for rate in pruned if pruned[rate]["mean_iou"] > untrained[rate]["mean_iou"]}
    if not faster:
        return "Nothing was gained: at no keep rate is the pruned model more than 5 % faster here than the dense one."
    if not better:
        return (
            "Nothing was gained: with what was fitted the model agrees with its dense prediction no better than with "
            "tokens dropped at random."
        )
    if not faster & better:
        return (
            "Nothing was gained: where the pruned model is faster it agrees with its dense prediction no better than "
            "with tokens dropped at random."
        )
    rate = max(faster & better)
    result = pruned[rate]
    text = (
        f"At keep rate {rate:g} the model is {result['times_dense']:.2f} times as fast as unpruned, and agrees with "
        f"its unpruned prediction at a mean IoU of {result['mean_iou']:.3f} (tokens dropped at random, nothing "
        f"fitted: {untrained[rate]['mean_iou']:.3f})."
    )
    if "labels" in dense:
        metric = next(iter(dense["labels"]))
        text += (
            f" By labels, {metric.replace('_', ' ').replace('iou', 'IoU')} goes from {dense['labels'][metric]:.3f} "
            f"unpruned to {result['labels'][metric]:.3f}."
        )
    return text
