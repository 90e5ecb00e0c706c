"""What the tests of the commands share: the commands as a user starts them, a checkpoint, images."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

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


STREET = ("sky", "building", "road", "tree", "car")


@pytest.fixture
def street_images() -> datasets.Dataset:
    """Three images of two sizes with label maps of five classes, each a noisy colour; a frame of them is ignored."""
    features = {"image": datasets.Image(mode="RGB"), "mask": datasets.Image(mode="L")}
    features |= {"name": datasets.Value("string"), "condition": datasets.ClassLabel(names=["unknown"])}
    features |= {"image_hash": datasets.Value("string"), "mask_hash": datasets.Value("string")}
    features |= {"classes": datasets.List(datasets.ClassLabel(names=list(STREET)))}
    rng, rows = np.random.default_rng(0), []
    for index, (height, width) in enumerate([(64, 96), (80, 80), (64, 96)]):
        blocks = rng.integers(0, len(STREET), (height // 16, width // 16))
        labels = np.kron(blocks, np.ones((16, 16))).astype(np.uint8)
        colours = rng.integers(0, 256, (len(STREET), 3))[labels]
        image = np.clip(colours + rng.normal(0, 10, colours.shape), 0, 255).astype(np.uint8)
        labels[:2] = labels[:, :2] = 255
        row = {"image": Image.fromarray(image), "mask": Image.fromarray(labels), "condition": 0}
        row |= {"name": f"street/{index}", "image_hash": f"image {index}", "mask_hash": f"labels {index}"}
        rows.append({**row, "classes": sorted(set(labels[labels < 255].tolist()))})
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


@pytest.fixture
def street_model(tiny_model) -> Reg4PruForSemanticSegmentation:
    """A tiny model of the classes of [`street_images`], whose queries differ enough that it predicts several."""
    model = tiny_model(num_labels=len(STREET), num_queries=10, id2label=dict(enumerate(STREET)))
    for weight in (model.class_predictor.weight, model.query.weight):
        torch.nn.init.normal_(weight, std=3)
    return model


@pytest.fixture
def speed() -> dict:
    """What `reg4pru tune` writes, of two settings on the front and one that is not."""
    best = {
        "keep_rates": [1.0, 0.7, 0.5], "reactivation_layer": 4, "selection_pool": "all", "allocation": "image",
        "milliseconds": 61.25, "ratio": 1.5, "average_precision": 0.875, "dice": 0.75, "cldice": None,
        "on_front": True,
    }  # fmt: skip
    fastest = best | {"keep_rates": [0.5, 0.5, 0.5], "milliseconds": 40.0, "ratio": 2.25, "average_precision": 0.8}
    return {
        "provenance": {"date": "2026-11-22T10:00:00+00:00"}, "settings": {"dataset": "../data/clinic"},
        "machine": {"device": "Slow & Steady", "dtype": "float32", "num_threads": 2},
        "image_size": [64, 64], "frame_size": [128, 128], "batch_size": 1, "tiles_per_image": 9, "num_layers": 6,
        "data": {"images": {"validation": 3}},
        "candidates": [best, fastest, best | {"milliseconds": 80.0, "on_front": False}],
    }  # fmt: skip
