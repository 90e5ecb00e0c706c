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


CLASSES = ["sky", "building", "road", "tree", "car"]
COLORS = dict(zip(CLASSES, ([128, 128, 128], [128, 0, 0], [128, 64, 128], [128, 128, 0], [64, 0, 128]), strict=True))


def _save_label_map(labels: np.ndarray, kind: str, path: Path) -> None:
    """As "grey", "palette" (ignored 255), "11" (ignored 11), "16 bits" (hundreds) or "colours" (ignored white)."""
    image = Image.fromarray(labels)
    palette = np.full((256, 3), 255, np.uint8)
    palette[: len(COLORS)] = list(COLORS.values())
    if kind == "palette":
        image.putpalette(palette.ravel().tolist())
    elif kind == "11":
        image = Image.fromarray(np.where(labels == 255, np.uint8(11), labels))
    elif kind == "16 bits":
        image = Image.fromarray(np.where(labels == 255, 65535, labels.astype(np.uint16) * 100 + 100).astype(np.uint16))
    elif kind == "colours":
        image = Image.fromarray(palette[labels])
    image.save(path)


@pytest.fixture
def street(tmp_path) -> Callable[..., Path]:
    """
    Writes a made-up data set of five classes and ignored pixels, `images/<split>` and `labels/<split>`: frames of two
    films for train, one for val, and one for test. Class `car` is in every third frame.
    """

    def write(kind: str = "grey", folder: str = "street", size: tuple[int, int] = (24, 32)) -> Path:
        rng, root = np.random.default_rng(0), tmp_path / folder
        for split, films in {"train": ("A1", "B2"), "val": ("C3",), "test": ("D4",)}.items():
            for place in ("images", "labels"):
                (root / place / split).mkdir(parents=True)
            for film in films:
                for frame in range(3):
                    labels = np.zeros(size, np.uint8)
                    labels[size[0] // 3 :] = 2
                    labels[:, : int(rng.integers(3, 9))] = 1
                    labels[int(rng.integers(4, 12)), 10:20] = 3
                    labels[-4:, -4:] = 4 if frame == 0 else 2
                    labels[-2:, :6] = 255
                    image = rng.integers(0, 255, (*size, 3), np.uint8)
                    Image.fromarray(image).save(root / "images" / split / f"{film}_{frame:03}.png")
                    _save_label_map(labels, kind, root / "labels" / split / f"{film}_{frame:03}.png")
        return root

    return write
