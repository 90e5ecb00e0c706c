"""A model that computes no numbers gives no masks and no metrics, in any of the ways into it."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_reg4pru import Reg4PruImageProcessor, predict_image
from reg4pru import evaluate, predict


@pytest.fixture
def broken(tiny_model, save_checkpoint):
    """A checkpoint one of whose weights is not a number."""
    model = tiny_model()
    with torch.no_grad():
        model.layers[2].mlp.up_proj.weight[0, 0] = torch.nan
    return save_checkpoint(model)


@pytest.fixture
def folder(images, tmp_path):
    (tmp_path / "images").mkdir()
    for name, row in zip(("a", "b"), images, strict=True):
        row["image"].save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def test_predict_names_image_and_type_and_writes_no_mask(broken, folder, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--model_name_or_path", broken, "--images", folder, "--output_dir", out, "--keep_rates", 1.0, 0.5]
    assert predict.main([*map(str, flags)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Not predicted")]
    assert len(said) == 4
    assert all("float32" in line and "not finite" in line for line in said)
    assert all(f"{name}.png at keep rate {rate}" in "".join(said) for name in "ab" for rate in ("1.0", "0.5"))
    assert not list(out.glob("*.png"))


def test_evaluate_writes_no_numbers(broken, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    flags = ["--model_name_or_path", broken, "--synthetic_counts", 1, 0, 2, "--working_size", 64]
    with pytest.raises(SystemExit, match=r"Not measured: synthetic/.* could not be measured at 1.0: .*float32"):
        evaluate.main([*map(str, flags), "--output_dir", str(tmp_path / "out")])
    assert not list((tmp_path / "out").glob("metrics.json"))


def test_pipeline_refuses(broken):
    with pytest.raises(ValueError, match=r"not finite .* in float32"):
        pipeline("image-segmentation", model=str(broken))(Image.new("RGB", (64, 64), "red"))


@pytest.mark.parametrize("num_labels", [2, 3])
def test_overflow_of_half_precision_names_it(tiny_model, num_labels):
    model = tiny_model(num_labels=num_labels, num_queries=1 if num_labels == 2 else 6)
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.v_proj.weight *= 1e6
            layer.attention.v_proj.bias *= 1e6
            layer.attention.o_proj.weight /= 1e6
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64}, num_labels=num_labels)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert predict_image(model, processor, image).probabilities.isfinite().all()
    with pytest.raises(ValueError, match=r"in float16: numbers overflow, or .*Use bfloat16 or float32"):
        predict_image(model.half(), processor, image)
