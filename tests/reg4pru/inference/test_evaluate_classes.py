"""`reg4pru evaluate` of models of more than two classes."""

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from datasets_fives.metrics import ClassMetrics
from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.speed_budget import fingerprint_weights
from modeling_reg4pru.tiled_inference import predict_image
from reg4pru import evaluate
from reg4pru.common.data_overlap import write_training_images
from reg4pru.inference.model_classes import is_of_vessels, model_classes
from reg4pru.reporting.class_evaluation import lost_by_pruning


@pytest.fixture
def run(street_model, street_images, save_checkpoint, monkeypatch, tmp_path):
    """Evaluates the tiny model of the street images on them; the data set comes as it is given."""
    folder = save_checkpoint(street_model)

    def evaluated(*flags: object, images=street_images) -> int:
        monkeypatch.setattr("reg4pru.inference.evaluation_data.load_sides", lambda *_: {"test": images})
        flags = ["--model_name_or_path", folder, "--output_dir", tmp_path / "out", "--dataset", "streets", *flags]
        return evaluate.main([*map(str, flags)])

    return evaluated


def test_end_to_end(run, street_model, street_images, tmp_path, capsys):
    assert run("--keep_rates", 1.0, 0.5) == 0

    content = json.loads((tmp_path / "out/metrics.json").read_text(), parse_constant=pytest.fail)
    assert content["weights"] == fingerprint_weights(tmp_path / "checkpoint")
    assert content["settings"]["field_of_view"] is False
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, working_size=None)
    for rate in (1.0, 0.5):
        expected, of_images = ClassMetrics(model_classes(street_model.config)), []
        for row in street_images:
            predicted = predict_image(street_model, processor, row["image"], rate).segmentation
            of_images.append(expected.update(predicted, np.asarray(row["mask"])))
        result = content["results"][str(rate)]
        assert result == json.loads(json.dumps(expected.compute()), parse_constant=lambda _: None)
        with (tmp_path / "out/per_image.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["keep_rate"] == str(rate)]
        assert [row["name"] for row in rows] == street_images["name"][:]
        assert [float(row["mean_iou"]) for row in rows] == [one["mean_iou"] for one in of_images]
        assert str([float(row["iou_car"]) for row in rows]) == str(
            [one["per_class"]["car"]["iou"] for one in of_images]
        )
    assert content["results"]["1.0"]["mean_iou"] != content["results"]["0.5"]["mean_iou"]

    shown = capsys.readouterr().out
    assert shown.strip() == (tmp_path / "out/table.md").read_text().strip()
    assert "mean IoU" in shown
    assert "Change of IoU from keep rate 1.0" in shown
    iou = content["results"]["0.5"]["per_class"]["car"]["iou"]
    assert f" {iou:.3f} |" in next(line for line in shown.splitlines() if line.startswith("| car"))
    for name in ("figure.png", "classes.png"):
        assert len(np.unique(np.asarray(Image.open(tmp_path / "out" / name)).reshape(-1, 4), axis=0)) > 20


def test_classes_that_disagree_are_refused(run, street_images, tmp_path, capsys):
    other = street_images.cast_column("classes", street_images.features["classes"])
    features = street_images.features.copy()
    features["classes"].feature.names = ["building", "sky", "road", "tree", "car"]
    with pytest.raises(SystemExit, match="2"):
        run(images=other.cast(features))
    said = " ".join(capsys.readouterr().err.split())
    assert "Model: sky, building, road, tree, car. Data: building, sky, road, tree, car." in said
    with pytest.raises(SystemExit, match="2"):  # masks of vessels
        run(images=street_images.remove_columns("classes"))
    assert "Data: background, vessel." in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_flags_of_two_classes_and_images_of_the_training_are_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("--threshold", 0.3)
    assert "--threshold is 0.3, but the model tells 5 classes apart (sky, building" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--skip_outside")
    assert "--skip_outside finds the circular field of view of fundus images" in capsys.readouterr().err
    write_training_images(tmp_path / "checkpoint", {"image 1"})
    with pytest.raises(SystemExit, match="2"):
        run()
    assert "was trained on 1 of the 3 images to measure: street/1" in capsys.readouterr().err


def test_the_class_that_loses_most_comes_first():
    iou = {
        "sky": {"1.0": 0.9, "0.7": 0.9, "0.3": 0.8},
        "none": {"1.0": math.nan, "0.7": math.nan, "0.3": math.nan},
        "pole": {"1.0": 0.4, "0.7": 0.3, "0.3": 0.1},
        "road": {"1.0": 0.8, "0.7": 0.7, "0.3": 0.9},
    }
    lost = lost_by_pruning(iou, "1.0")
    assert list(lost) == ["pole", "sky", "road", "none"]
    assert lost["pole"] == pytest.approx({"0.7": -0.1, "0.3": -0.3})


def test_models_of_vessels_are_told_by_their_names(tiny_config, street_model):
    assert is_of_vessels(tiny_config())
    assert is_of_vessels(tiny_config(id2label={0: "background", 1: "vessel"}))
    assert not is_of_vessels(tiny_config(id2label={0: "background", 1: "polyp"}))
    assert not is_of_vessels(street_model.config)
    assert model_classes(tiny_config()) == ["background", "vessel"]
