"""Average precision, Dice and IoU while training: one ruler for `reg4pru train` and for `Trainer`."""

import torch
import torch.nn.functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAveragePrecision, BinaryF1Score, BinaryJaccardIndex
from transformers import EvalPrediction


def vessel_probability(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    One probability a pixel, at the size of the labels; `preprocess_logits_for_metrics` of `Trainer`.

    Args:
        logits (`torch.Tensor` of shape `(batch, 2, height / 4, width / 4)`): Of the model.
        labels (`torch.Tensor` of shape `(batch, height, width)`): Label maps.
    """
    logits = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear")
    return logits.softmax(1)[:, 1]


class PixelMetrics(MetricCollection):
    """
    `ap`, `dice` and `iou` over all pixels but those of `ignore_index`. Nothing is kept of a batch: exact average
    precision would need every pixel at once. Its thresholds are even in logits, as those of
    [`~datasets_fives.metrics.VesselMetrics`], and so tell the pixels of a young model apart, too, whose probabilities
    are all small. What is added is gathered from all processes already.
    """

    def __init__(self, ignore_index: int = 255):
        common = {"ignore_index": ignore_index, "sync_on_compute": False}
        thresholds = torch.linspace(-12, 12, 1000).sigmoid()
        super().__init__(
            {
                "ap": BinaryAveragePrecision(thresholds, **common),
                "dice": BinaryF1Score(**common),
                "iou": BinaryJaccardIndex(**common),
            },
            compute_groups=False,
        )


class StreamingMetrics:
    """`compute_metrics` of `Trainer` with `batch_eval_metrics=True`: [`PixelMetrics`]."""

    def __init__(self, ignore_index: int = 255):
        self.metrics = PixelMetrics(ignore_index)

    def __call__(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        probability, labels = prediction
        self.metrics.to(probability.device).update(probability, labels)
        if not compute_result:
            return {}
        results = {name: value.item() for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        return results
