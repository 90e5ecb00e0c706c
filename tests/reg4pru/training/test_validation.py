"""Metrics while training: of whole images, blended from tiles as everywhere, and nothing is kept of a batch."""

import math

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
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


def with_masks(images, masks):
    """The same images with other masks."""
    column = datasets.Dataset.from_dict({"mask": [Image.fromarray(mask) for mask in masks]}).cast_column(
        "mask", datasets.Image()
    )
    return datasets.concatenate_datasets([images.remove_columns("mask"), column], axis=1)


@pytest.mark.parametrize("values", [(0, 1, 2, 3, 4), (0, 100, 255), (0, 2)])
@pytest.mark.parametrize("working_size", [128, 64])
def test_validation_trusts_no_labels(images, values, working_size):
    """At another scale five classes would become two, and greys nothing."""
    masks = [np.asarray(mask) for mask in images["mask"]]
    masks[1] = np.resize(np.array(values, np.uint8), masks[1].shape)
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=working_size, num_labels=2)
    with pytest.raises(ValueError, match=f"The mask of validation image 1 has values up to {values[-1]}"):
        ImageTiles(with_masks(images, masks), processor)


def test_white_vessels_are_told_from_ignored_pixels(images):
    """{0, 255} holds no vessel; all of its vessels would be ignored."""
    masks = [np.asarray(mask) * 255 for mask in images["mask"]]
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=128, num_labels=2)
    with pytest.warns(UserWarning, match="The mask of validation image 0 has pixels of 255"):
        ImageTiles(with_masks(images, masks), processor)


def test_without_a_vessel_there_is_nothing_to_measure(caplog):
    metrics, offsets = ImageMetrics(), torch.tensor([[0, 0, 0, 16, 16, 16, 16, 16]])
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    metrics.update(torch.rand(1, 16, 16), labels, offsets)
    assert all(map(math.isnan, metrics.compute().values()))
    assert "no vessels: ap, dice and iou are undefined" in caplog.text
    labels[0, 3] = 1
    metrics.update(torch.rand(1, 16, 16), labels, offsets)
    assert all(0 <= value <= 1 for value in metrics.compute().values()), "and begins anew"
