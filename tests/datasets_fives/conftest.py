"""An archive of FIVES in small."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_pair() -> Callable[..., None]:
    """Writes an image and its mask, {0, 255} in RGB as in the published archive."""

    def write(
        root: Path, name: str, seed: int = 0, mask: np.ndarray | None = None, size: int = 32, mode: str = "RGB"
    ) -> None:
        published, stem = name.split("/")
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 255, (size, size, 3), np.uint8)
        if mask is None:
            mask = rng.integers(0, 2, (size, size), np.uint8) * np.uint8(255)
        for kind, pixels in (("Original", Image.fromarray(image)), ("Ground truth", Image.fromarray(mask))):
            (root / published / kind).mkdir(parents=True, exist_ok=True)
            pixels.convert("RGB" if kind == "Original" else mode).save(root / published / kind / f"{stem}.png")

    return write


@pytest.fixture
def archive(tmp_path, write_pair) -> Path:
    """Six pairs, train and test."""
    root = tmp_path / "fives"
    for seed, name in enumerate(["train/1_A", "train/2_D", "train/10_G", "train/11_N", "test/1_A", "test/2_N"]):
        write_pair(root, name, seed)
    return root
