"""Cards and results of a checkpoint of more than two classes."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from modeling_reg4pru.speed_budget import fingerprint_weights
from reg4pru.hub.arguments import PushArguments
from reg4pru.hub.model_card import render_card
from reg4pru.hub.publishing import stage_checkpoint

from .test_model_card import PROVENANCE


def result(iou: float) -> dict:
    names = ("sky", "building", "road", "tree", "car")
    per_class = {name: {"iou": iou, "dice": 0.5, "boundary_iou": 0.25} for name in names}
    per_class["tree"] = dict.fromkeys(per_class["tree"])  # in no label and never predicted
    return {"num_images": 3, "mean_iou": iou, "pixel_accuracy": 0.75, "boundary_iou": 0.25, "per_class": per_class}


@pytest.fixture
def metrics(street_model, save_checkpoint) -> dict:
    """`metrics.json` of a checkpoint in `checkpoint`."""
    settings = {"dataset": "user/streets", "dataset_revision": None, "split": "official", "side": "test"}
    settings |= {"field_of_view": False, "threshold": 0.5}
    results = {"1.0": result(0.5), "0.5": result(0.4375)}
    weights = fingerprint_weights(save_checkpoint(street_model))
    return {"provenance": PROVENANCE, "settings": settings, "weights": weights, "results": results}


def test_the_card_speaks_of_the_classes(metrics, tmp_path):
    measured = tmp_path / "measured"
    measured.mkdir()
    for name in ("figure.png", "classes.png", "per_image.csv"):
        (measured / name).write_text(name)
    (measured / "metrics.json").write_text(json.dumps(metrics))
    trained = {"provenance": PROVENANCE, "arguments": {"dataset": "user/streets"}, "total_steps": 50, "best_step": 40,
               "best_validation_mean_iou": 0.46875}  # fmt: skip
    (tmp_path / "train_results.json").write_text(json.dumps(trained))
    arguments = {"model_name_or_path": str(tmp_path / "checkpoint"), "hub_model_id": "me/streets"}
    stage_checkpoint(PushArguments(**arguments, metrics=str(measured / "metrics.json")), tmp_path / "staged")

    card = (tmp_path / "staged/README.md").read_text(encoding="utf-8")
    assert "Segments images into 5 classes (sky, building, road, tree, car) and lets you choose" in card
    assert (
        "the test set of [`user/streets`](https://huggingface.co/datasets/user/streets), on whole images, on" in card
    )
    assert "| 0.5 | 0.438 | 0.750 | 0.250 |" in card
    assert "| IoU of the class | 1.0 | 0.5 |" in card
    assert "| car | 0.500 | 0.438 |" in card
    assert "| tree | – | – |" in card
    assert "Best validation mean IoU 0.469, at step 40." in card
    assert "](results/figure.png)\n\n![IoU by keep rate, and of every class](results/classes.png)\n\n## Speed" in card
    for of_vessels in ("vessel", "medical", "threshold", "Dice", "AP", "haemorrhages"):
        assert of_vessels not in card.split("```bibtex")[0], of_vessels
    data = ModelCard.load(tmp_path / "staged/README.md").data
    assert data.metrics == ["mean_iou", "pixel_accuracy", "boundary_iou"]
    assert {one.metric_value for one in data.eval_results if one.metric_type == "mean_iou"} == {0.5, 0.4375}
    entries = parse_eval_result_entries(yaml.safe_load((tmp_path / "staged/.eval_results/streets.yaml").read_text()))
    assert [(entry.task_id, entry.value) for entry in entries] == [
        ("semantic_segmentation", 0.5), ("semantic_segmentation", 0.4375),
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "staged/results").iterdir()} == {
        "metrics.json", "per_image.csv", "figure.png", "classes.png",
    }  # fmt: skip


def test_two_classes_with_names_of_their_own(street_model):
    config = json.loads(street_model.config.to_json_string()) | {"id2label": {"0": "background", "1": "polyp"}}
    card = str(render_card(config, 1, "me/polyps"))
    assert "Segments polyps in images" in card
    assert "thin vessels" not in card
    assert "not a medical device" in card
