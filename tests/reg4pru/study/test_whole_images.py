"""Ways to segment a whole image, in turns."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from transformers.image_utils import SizeDict

from datasets_fives.field_of_view import field_of_view
from datasets_fives.masks import counted_pixels
from datasets_fives.metrics import VesselMetrics
from datasets_fives.metrics.class_metrics import ClassMetrics
from datasets_fives.metrics.evaluation import imaged_area
from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor, predict_image
from reg4pru.study.unet import UNet, unet_predictor
from reg4pru.study.whole_images import Way, main, ratios

from ...street_scenes import CLASSES, write_street

DATA = ["--dataset", "synthetic", "--synthetic_counts", "1", "0", "2", "--working_size", "128"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = Reg4PruConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=8,
        pruning_layers=[1, 2], reactivation_layer=3,
    )  # fmt: skip
    return Reg4PruForSemanticSegmentation(config).eval()


def test_each_way_is_measured_with_its_own_settings(model, save_checkpoint, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("reg4pru.study.whole_images.why_not", lambda *_: None)  # a CPU may have to emulate bfloat16
    checkpoint, rows = save_checkpoint(model), tmp_path / "rows.yaml"
    ways = {"dense": {}, "pruned": {"keep_rate": 0.5, "tile_overlap": 0.5, "allocation": "image"}}
    ways["skipping"] = ways["pruned"] | {"skip_outside": True}
    ways["engine"] = {"keep_rate": 0.5, "tile_overlap": 0.5, "engine": "float32"}
    ways["weighted"] = ways["pruned"] | {"blend_share_weight": 2.0}
    ways["bfloat16"] = ways["pruned"] | {"bfloat16": True}
    ways["small tiles"] = ways["pruned"] | {"tile_size": 32}
    ways = {label: {"checkpoint": str(checkpoint), **way} for label, way in ways.items()}
    (tmp_path / "unet").mkdir()
    save_file(UNet().state_dict(), tmp_path / "unet" / "model.safetensors")
    ways["U-Net"] = {"checkpoint": str(tmp_path / "unet"), "unet": True, "tile_size": 64, "tile_overlap": 0.25}
    rows.write_text(yaml.safe_dump(ways))
    main([*DATA, "--rows", str(rows), "--seeds", "0", "1", "--output_dir", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "whole_images.json").read_text(encoding="utf-8"))["ways"]
    assert [len(way["seconds"]) for way in found.values()] == [4] * 8

    (unet_precision,) = set(found["U-Net"]["average_precision"])
    predict, wanted = unet_predictor(tmp_path / "unet", 64, 0.25), VesselMetrics()
    for row in images:
        foreground, counts = counted_pixels(np.asarray(row["mask"]))
        wanted.update(row["name"], None, predict(row["image"], 0), foreground, counts & imaged_area(row))
    assert unet_precision == pytest.approx(wanted.compute()["pooled"]["average_precision"])

    processor = Reg4PruImageProcessor.from_pretrained(checkpoint)
    for label in ("dense", "pruned", "skipping", "engine", "weighted", "small tiles", "bfloat16"):
        rate = None if label == "dense" else 0.5
        side = 32 if label == "small tiles" else 64
        processor.size = SizeDict(height=side, width=side)
        if label == "bfloat16":  # loaded in it: rotary tables stay in float32, which a cast would not leave so
            model = Reg4PruForSemanticSegmentation.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
        model.config.blend_share_weight = 2.0 if label == "weighted" else 0.0
        if rate:
            processor.tile_overlap, model.config.allocation = 0.5, "tile" if label == "engine" else "image"
        wanted = VesselMetrics()
        for number, row in enumerate(images):
            torch.manual_seed(number)
            mask = field_of_view(np.asarray(row["image"])) if label == "skipping" else None
            prediction = predict_image(model, processor, row["image"], rate, pixel_mask=mask)
            probabilities = prediction.probabilities[1].numpy()
            foreground, counts = counted_pixels(np.asarray(row["mask"]))
            wanted.update(row["name"], None, probabilities, foreground, counts & imaged_area(row))
        wanted = wanted.compute()["pooled"]["average_precision"]
        assert found[label]["average_precision"] == pytest.approx([wanted, wanted])
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| dense | 1.0 |" in table
    assert table.splitlines()[-1] in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "whole_images.png").width > 500


def test_bfloat16_is_refused_where_it_is_emulated(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("reg4pru.study.whole_images.why_not", lambda engine, _: f"{engine} is slow here")
    (tmp_path / "rows.yaml").write_text(f"half: {{checkpoint: {tmp_path}, bfloat16: true}}")
    with pytest.raises(SystemExit):
        main([*DATA, "--rows", str(tmp_path / "rows.yaml"), "--output_dir", str(tmp_path / "out")])
    assert "half cannot be measured, as bfloat16 is slow here" in capsys.readouterr().err


def test_ratios_are_those_of_the_same_image():
    first, other = Way("a"), Way("b")
    first.seconds, other.seconds = [4.0, 9.0], [2.0, 3.0]
    assert ratios(other, first) == [2.0, 3.0]


def test_more_than_two_classes_are_measured_by_mean_iou(street_model, save_checkpoint, tmp_path):
    checkpoint, data, rows = save_checkpoint(street_model), write_street(tmp_path / "street"), tmp_path / "rows.yaml"
    rows.write_text(yaml.safe_dump({"pruned": {"checkpoint": str(checkpoint), "keep_rate": 0.5}}))
    flags = ["--dataset", str(data), "--classes", *CLASSES, "--working_size", "32", "--limit", "2", "--seeds", "0"]
    main([*flags, "--rows", str(rows), "--output_dir", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "whole_images.json").read_text(encoding="utf-8"))["ways"]["pruned"]
    assert len(found["seconds"]) == 2

    processor, wanted = Reg4PruImageProcessor.from_pretrained(checkpoint), ClassMetrics(CLASSES)
    for frame in (0, 2):  # two of three, spread evenly
        image, labels = (Image.open(data / place / "test" / f"D4_{frame:03}.png") for place in ("images", "labels"))
        wanted.update(predict_image(street_model, processor, image, 0.5).segmentation.numpy(), np.asarray(labels))
    wanted = wanted.compute()
    assert found["mean_iou"] == [pytest.approx(wanted["mean_iou"])]
    assert found["boundary_iou"] == [pytest.approx(wanted["boundary_iou"])]
    assert "| way | keep rate | seconds per image | × first | mean IoU | boundary IoU |" in (
        tmp_path / "out" / "table.md"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"unet": True, "tile_size": 64, "tile_overlap": 0.25}, "is a U-Net, but there are 5 classes"),
        ({"skip_outside": True}, "--skip_outside finds the circular field of view"),
        ({}, "The model and the data set have other classes"),
    ],
)
def test_what_does_not_fit_the_classes_is_refused(way, message, street_model, model, save_checkpoint, tmp_path):
    checkpoint = save_checkpoint(street_model if way else model)
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump({"way": {"checkpoint": str(checkpoint), **way}}))
    flags = ["--dataset", str(write_street(tmp_path / "street")), "--classes", *CLASSES, "--seeds", "0"]
    with pytest.raises(SystemExit, match=message):
        main([*flags, "--rows", str(tmp_path / "rows.yaml"), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        "dense: {checkpoint: a, keep: 0.5}",
        "- a",
        "dense: [",
        "",
        "a: {checkpoint: a}",
        "a: {checkpoint: a, engine: tpu}",
        "a: {checkpoint: a, engine: float32, bfloat16: true}",
        "a: {checkpoint: a, unet: true, tile_size: 64}",
        "a: {checkpoint: a, unet: true, tile_size: 64, tile_overlap: 0.25, keep_rate: 0.5}",
    ],
)
def test_rows_that_cannot_be_read_are_refused(text, tmp_path, capsys):
    rows = tmp_path / "rows.yaml"
    rows.write_text(text)
    with pytest.raises(SystemExit):
        main([*DATA, "--rows", str(rows), "--output_dir", str(tmp_path / "out")])
    assert f"--rows is {rows}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_record_says_how_it_was_started_wherever_that_was(model, save_checkpoint, tmp_path):
    (tmp_path / "rows.yaml").write_text(f"dense: {{checkpoint: {save_checkpoint(model).name}}}")
    flags = [*DATA, "--rows", "rows.yaml", "--seeds", "0", "--output_dir", "out"]
    command = [sys.executable, "-m", "reg4pru.study.whole_images", *flags]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    made_by = json.loads((tmp_path / "out" / "whole_images.json").read_text(encoding="utf-8"))["provenance"]
    assert made_by["command"] == " ".join(["python", *command[1:]])
