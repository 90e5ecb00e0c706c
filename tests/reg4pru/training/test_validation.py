"""Metrics while training: of whole images, blended from tiles as everywhere, and nothing is kept of a batch."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from torchmetrics.classification import BinaryAveragePrecision
from transformers import EvalPrediction

from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.tiled_inference import predict_image
from reg4pru.training.validation import ImageMetrics, ImageTiles, StreamingMetrics, vessel_probability


def test_metrics_equal_those_of_all_pixels_and_keep_none():
    """Of images of one tile each; their first rows do not count."""
    generator = torch.Generator().manual_seed(0)
    metrics, batches = StreamingMetrics(), []
    offsets = torch.tensor([[0, 0, 0, 16, 16, 16, 16, 16]] * 2)
    for step in range(3):
        labels = (torch.rand(2, 16, 16, generator=generator) < 0.3).long()
        logits = torch.randn(2, 2, 4, 4, generator=generator)
        labels[:, 0] = 255
        probability = vessel_probability(logits, (labels, offsets))
        assert probability.shape == labels.shape
        result = metrics(EvalPrediction(probability, (labels, offsets)), compute_result=step == 2)
        batches.append((probability[labels != 255], labels[labels != 255]))
    scores, truth = (torch.cat(part) for part in zip(*batches, strict=True))
    assert result["ap"] == pytest.approx(average_precision_score(truth, scores), abs=2e-3)
    assert result["dice"] == pytest.approx(f1_score(truth, scores > 0.5))
    assert result["iou"] == pytest.approx(jaccard_score(truth, scores > 0.5))
    ap: BinaryAveragePrecision = metrics.metrics.metrics["ap"]
    assert ap.confmat.sum() == 0, "begun anew"
    assert sum(value.numel() for value in ap.metric_state.values()) == 1000 * 4, "counts, not pixels"


@pytest.mark.parametrize("batch_size", [1, 5, 18])
def test_tiles_of_any_batches_become_the_prediction_of_the_image(tiny_model, images, batch_size):
    model = tiny_model()
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=128, num_labels=2)
    tiles, metrics = ImageTiles(images, processor), ImageMetrics()
    assert len(tiles) == 2 * 9
    seen = []
    metrics.metrics.update = lambda probability, labels: seen.append((probability, labels))
    for begin in range(0, len(tiles), batch_size):
        batch = torch.utils.data.default_collate([tiles[i] for i in range(begin, min(begin + batch_size, len(tiles)))])
        with torch.no_grad():
            probability = vessel_probability(model(batch["pixel_values"]).logits, batch["labels"])
        metrics.update(probability, batch["labels"], batch["patch_offsets"])
    metrics._end_image()
    assert len(seen) == len(images)
    for (probability, labels), row in zip(seen, images, strict=True):
        predicted = predict_image(model, processor, row["image"]).probabilities[1]
        torch.testing.assert_close(probability, predicted, atol=1e-5, rtol=0)
        assert torch.equal(labels.byte(), torch.from_numpy(np.array(row["mask"])))


def test_what_lies_beyond_a_image_does_not_count(images):
    """An image smaller than a tile goes on as its mirror image, its labels as 255."""
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=40, num_labels=2)
    labels = ImageTiles(images, processor)[0]["labels"]
    assert labels[:40, :40].max() == 1
    assert (labels[40:] == 255).all()
    assert (labels[:, 40:] == 255).all()
