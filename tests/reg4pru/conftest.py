"""What the tests of the commands share: the commands as a user starts them, a checkpoint, images."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from datasets_fives import load_fives
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor


@pytest.fixture
def run_command(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Starts a command in a process of its own, as a user does."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, "-m", "reg4pru", name, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)

    return run


@pytest.fixture
def save_checkpoint(tmp_path) -> Callable[[Reg4PruForSemanticSegmentation], Path]:
    """Saves a model and an image processor as a checkpoint."""

    def save(model: Reg4PruForSemanticSegmentation) -> Path:
        folder = tmp_path / "checkpoint"
        model.save_pretrained(folder)
        size = model.config.image_size
        Reg4PruImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def images(tmp_path) -> datasets.Dataset:
    """Two synthetic images of 128 pixels a side, twice the input of the tiny model."""
    sides = load_fives("synthetic", working_size=128, synthetic_counts=(1, 0, 2), cache_dir=tmp_path / "generated")
    return sides["test"]


@pytest.fixture
def speed() -> dict:
    """What `reg4pru tune` writes, of two settings on the front and one that is not."""
    best = {
        "keep_rates": [1.0, 0.7, 0.5], "reactivation_layer": 4, "selection_pool": "all", "milliseconds": 61.25,
        "ratio": 1.5, "average_precision": 0.875, "dice": 0.75, "cldice": None, "on_front": True,
    }  # fmt: skip
    fastest = best | {"keep_rates": [0.5, 0.5, 0.5], "milliseconds": 40.0, "ratio": 2.25, "average_precision": 0.8}
    return {
        "provenance": {"date": "2026-11-22T10:00:00+00:00"}, "settings": {"dataset": "../data/clinic"},
        "machine": {"device": "Slow & Steady", "dtype": "float32", "num_threads": 2},
        "image_size": [64, 64], "batch_size": 1, "tiles_per_image": 9.0, "num_layers": 6,
        "data": {"images": {"validation": 3}},
        "candidates": [best, fastest, best | {"milliseconds": 80.0, "on_front": False}],
    }  # fmt: skip
