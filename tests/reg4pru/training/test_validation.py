"""Metrics while training: of whole images, blended from tiles as everywhere, and nothing is kept of a batch."""

import math
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from torchmetrics.classification import BinaryAveragePrecision
from transformers import EvalPrediction, TrainingArguments

from datasets_fives import class_names
from datasets_fives.metrics import measure
from datasets_fives.metrics.evaluation import imaged_area
from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.tiled_inference import predict_image
from reg4pru.inference.predictors import predictor
from reg4pru.training.loop import TrainingRun
from reg4pru.training.setup import collate
from reg4pru.training.trainer import Reg4PruTrainer
from reg4pru.training.validation import (
    ImageMetrics,
    ImageTiles,
    PixelMetrics,
    StreamingMetrics,
    tile_predictions,
)


def test_metrics_equal_those_of_all_pixels_and_keep_none():
    """Of images of one tile each; their first rows do not count."""
    generator = torch.Generator().manual_seed(0)
    metrics, batches = StreamingMetrics(), []
    offsets = torch.tensor([[0, 0, 0, 16, 16, 16, 16, 16]] * 2)
    for step in range(3):
        labels = (torch.rand(2, 16, 16, generator=generator) < 0.3).long()
        logits = torch.randn(2, 2, 4, 4, generator=generator)
        labels[:, 0] = 255
        probability = tile_predictions(logits, (labels, offsets))
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


@pytest.mark.parametrize("missing", ["batch_eval_metrics", "label_names", "preprocess_logits_for_metrics"])
def test_what_trainer_has_to_be_given_is_named(missing):
    logits, labels, offsets = torch.zeros(1, 2, 4, 4), torch.zeros(1, 16, 16), torch.zeros(1, 9)
    targets = labels if missing == "label_names" else (labels, offsets)
    predictions = logits if missing == "preprocess_logits_for_metrics" else tile_predictions(logits, targets)
    with pytest.raises(ValueError, match=missing):
        StreamingMetrics()(
            EvalPrediction(predictions, targets), compute_result=None if missing == "batch_eval_metrics" else True
        )


def counted(row: dict) -> torch.Tensor:
    """The mask of an image, 255 outside its field of view."""
    inside = imaged_area(row)
    assert 0.4 < inside.mean() < 1
    return torch.from_numpy(np.where(inside, np.asarray(row["mask"]), np.uint8(255)))


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
            probability = tile_predictions(model(batch["pixel_values"]).logits, batch["labels"])
        metrics.update(probability, batch["labels"], batch["patch_offsets"])
    metrics._end_image()
    assert len(seen) == len(images)
    for (probability, labels), row in zip(seen, images, strict=True):
        predicted = predict_image(model, processor, row["image"]).probabilities[1]
        torch.testing.assert_close(probability, predicted, atol=1e-5, rtol=0)
        assert torch.equal(labels.byte(), counted(row))


def test_vessels_are_measured_where_evaluate_measures_them(tiny_model, images):
    model = tiny_model()
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=128, num_labels=2)
    metrics, tiles = ImageMetrics(), ImageTiles(images, processor)
    for tile in tiles:
        with torch.no_grad():
            probability = tile_predictions(model(tile["pixel_values"][None]).logits, tile["labels"][None])
        metrics.update(probability, tile["labels"][None], tile["patch_offsets"][None])
    results = metrics.compute()
    evaluated = measure({"": predictor(model, processor, "config")}, images)[""].compute()["pooled"]
    assert results["dice"] == pytest.approx(evaluated["dice"], abs=1e-4)
    assert results["ap"] == pytest.approx(evaluated["average_precision"], abs=5e-3)


@pytest.fixture
def images_of_two_sizes(images) -> datasets.Dataset:
    """As [`images`]; the second has the lower half only."""
    columns = {kind: [images[kind][0], images[kind][1].crop((0, 64, 128, 128))] for kind in ("image", "mask")}
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("largest_budget", [64, 3])
def test_a_budget_is_that_of_the_image_in_both_trainers(
    tiny_model, images_of_two_sizes, largest_budget, tmp_path, monkeypatch
):
    """9 and 3 tiles; the smaller image's batch is filled up. Or budgets of 3 tiles, as of images of many."""
    monkeypatch.setattr("modeling_reg4pru.image_budget.BUDGET_TILES", largest_budget)
    monkeypatch.setattr("modeling_reg4pru.tiled_inference.BUDGET_TILES", largest_budget)
    model = tiny_model(allocation="image", blend_share_weight=2.0, keep_rates=0.5, id2label={0: "no", 1: "vessel"})
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=128, num_labels=2)
    tiles = ImageTiles(images_of_two_sizes, processor, "image")
    assert (tiles.batch_size, len(tiles)) == ((9, 2 * 9) if largest_budget == 64 else (3, 4 * 3))
    seen = []
    update = PixelMetrics.update

    def record(self, probability, labels):
        if (labels != 255).any():
            seen.append((probability, labels))
        update(self, probability, labels)

    monkeypatch.setattr(PixelMetrics, "update", record)
    training = TrainingArguments(tmp_path, max_steps=1, per_device_eval_batch_size=2, use_cpu=True, report_to="none")
    trainer = Reg4PruTrainer(model, training, processor, images_of_two_sizes, images_of_two_sizes)
    measured = trainer.evaluate()
    assert training.per_device_eval_batch_size == 2
    run = SimpleNamespace(
        evaluated=model,
        accelerator=trainer.accelerator,
        # Prepared, as `gather_for_metrics` asks the loader that was prepared last, which may be another test's.
        validation_loader=trainer.accelerator.prepare(
            torch.utils.data.DataLoader(tiles, batch_size=tiles.batch_size, collate_fn=collate)
        ),
    )
    assert TrainingRun.validate(run) == {name: measured[f"eval_{name}"] for name in ("ap", "dice", "iou")}
    assert len(seen) == 4
    for (probability, labels), row in zip(seen, [*images_of_two_sizes] * 2, strict=True):
        predicted = predict_image(model, processor, row["image"]).probabilities[1]
        torch.testing.assert_close(probability, predicted, atol=1e-5, rtol=0)
        assert torch.equal(labels.byte(), counted(row))


@pytest.fixture
def streets():
    """Two images of five classes and ignored pixels, twice as high as the tiny model's input and not quite as wide."""
    generator = np.random.default_rng(0)
    rows = {"image": [], "mask": [], "name": ["a", "b"]}
    for _ in range(2):
        labels = np.kron(generator.integers(0, 6, (16, 12)), np.ones((8, 8))).astype(np.uint8)
        rows["image"].append(Image.fromarray(labels * 40).convert("RGB"))
        rows["mask"].append(Image.fromarray(np.where(labels == 5, 255, labels).astype(np.uint8)))
    rows["classes"] = [list(range(5))] * 2
    names = datasets.List(datasets.ClassLabel(names=["sky", "road", "tree", "car", "fence"]))
    features = {
        "image": datasets.Image(),
        "mask": datasets.Image(),
        "name": datasets.Value("string"),
        "classes": names,
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_label_maps_are_measured_as_they_are_predicted(tiny_model, streets, batch_size):
    """Mean IoU of all classes, by transformers' formula, of the blended scores of every class."""
    model = tiny_model(num_labels=5, num_queries=10, masked_attention=False)
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=128, num_labels=5)
    tiles, metrics = ImageTiles(streets, processor), StreamingMetrics(class_names(streets))
    assert len(tiles) == 2 * 6
    for begin in range(0, len(tiles), batch_size):
        batch = torch.utils.data.default_collate([tiles[i] for i in range(begin, min(begin + batch_size, len(tiles)))])
        with torch.no_grad():
            predictions = tile_predictions(model(batch["pixel_values"]).logits, batch["labels"])
        assert predictions.numel() < batch["labels"].numel() * 5, "gathered before they are enlarged"
        last = begin + batch_size >= len(tiles)
        of_batch = EvalPrediction(predictions, (batch["labels"], batch["patch_offsets"]))
        result = metrics(of_batch, compute_result=last)
    assert result.keys() == {"mean_iou", "pixel_accuracy", "boundary_iou"}
    predicted = [predict_image(model, processor, image).probabilities.argmax(0).numpy() for image in streets["image"]]
    labels = [np.asarray(mask) for mask in streets["mask"]]
    predicted, labels = (np.concatenate([one.ravel() for one in maps]) for maps in (predicted, labels))
    counted = labels != 255
    iou = jaccard_score(labels[counted], predicted[counted], average="macro", labels=range(5), zero_division=0)
    assert result["mean_iou"] == pytest.approx(iou, abs=0.01), "scores between two pixels are interpolated otherwise"
    assert result["pixel_accuracy"] == pytest.approx((labels == predicted)[counted].mean(), abs=0.01)


def test_label_maps_keep_their_classes_at_another_scale(streets):
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=64, num_labels=5)
    assert set(ImageTiles(streets, processor)[0]["labels"].unique().tolist()) == {0, 1, 2, 3, 4, 255}
    masks = [np.asarray(mask).copy() for mask in streets["mask"]]
    masks[1][0] = 7
    with pytest.raises(ValueError, match="The label map of validation image 1 has the values 7: the 5 classes are"):
        ImageTiles(with_masks(streets, masks), processor)


def test_what_lies_beyond_a_image_does_not_count(images):
    """An image smaller than a tile goes on as its mirror image, its labels as 255."""
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=40, num_labels=2)
    labels = ImageTiles(images, processor)[0]["labels"]
    assert (labels[:40, :40] == 1).any()
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
