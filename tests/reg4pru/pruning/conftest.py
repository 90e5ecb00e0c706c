"""A dense model of transformers' own class with its image processor, and images without labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation, EomtImageProcessorPil

from reg4pru.pruning import calibration

from ...modeling_reg4pru.test_eomt_checkpoints import SIZES


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(calibration, "CORRECTION_STEPS", 40)
    monkeypatch.setattr(calibration, "SELECTOR_STEPS", 40)


@pytest.fixture
def eomt(tmp_path) -> EomtDinov3ForUniversalSegmentation:
    """A dense model of three classes; its checkpoint is in `tmp_path / "eomt"`."""
    model = EomtDinov3ForUniversalSegmentation(EomtDinov3Config(**SIZES)).eval()
    model.attn_mask_probs.zero_()
    model.save_pretrained(tmp_path / "eomt")
    EomtImageProcessorPil(size={"shortest_edge": 64, "longest_edge": None}).save_pretrained(tmp_path / "eomt")
    return model


@pytest.fixture
def image_files(tmp_path) -> Path:
    """A folder of 20 images of 96 x 64 pixels: two tiles each."""
    folder, draws = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(20):
        coarse = draws.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64)


@pytest.fixture
def flags(eomt, image_files, tmp_path) -> list[str]:
    """Of `reg4pru prune`, to `tmp_path / "out"`."""
    return [
        "--model_name_or_path", str(tmp_path / "eomt"), "--images", str(image_files),
        "--output_dir", str(tmp_path / "out"), "--keep_rates", "0.7", "0.4",
    ]  # fmt: skip


@pytest.fixture
def labelled(image_files, tmp_path) -> Path:
    """A data set of 20 images to train on, and three to test on, with label maps of three classes."""
    folder, draws = tmp_path / "labelled", np.random.default_rng(1)
    files = sorted(image_files.iterdir())
    for kind in ("images", "labels"):
        for side in ("train", "test"):
            (folder / kind / side).mkdir(parents=True)
    for number in range(23):
        side, name = ("train" if number < 20 else "test"), f"{number:02}.png"
        if number < 20:
            pixels = np.asarray(Image.open(files[number]))
        else:
            coarse = draws.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            pixels = np.asarray(Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC))
        Image.fromarray(pixels).save(folder / "images" / side / name)
        labels = Image.fromarray(draws.integers(0, 3, (4, 6), dtype=np.uint8))
        labels.resize((96, 64), Image.Resampling.NEAREST).save(folder / "labels" / side / name)
    (folder / "classes.txt").write_text("low\nmiddle\nhigh\n", encoding="utf-8")
    return folder
