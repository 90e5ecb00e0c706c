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
