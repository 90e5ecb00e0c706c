"""A made-up data set of five classes and ignored pixels, without a background."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ["sky", "building", "road", "tree", "car"]
COLORS = dict(zip(CLASSES, ([128, 128, 128], [128, 0, 0], [128, 64, 128], [128, 128, 0], [64, 0, 128]), strict=True))


def write_street(root: Path, kind: str = "grey", size: tuple[int, int] = (24, 32)) -> Path:
    """
    Write `images/<split>` and `labels/<split>`: three frames of each of two films for train, of one for val, and of
    one for test. Class `car` is in the first frame of a film.

    Args:
        root (`Path`): The folder; created.
        kind (`str`, *optional*, defaults to `"grey"`): Kind of the label maps, and what is ignored in them: `"grey"`
            or `"palette"`, 255; `"11"`, 11; `"16 bits"` of 100, 200, ..., 65535; `"colours"`, white.
        size (`tuple[int, int]`, *optional*, defaults to `(24, 32)`): Height and width.
    """
    rng = np.random.default_rng(0)
    for split, films in {"train": ("A1", "B2"), "val": ("C3",), "test": ("D4",)}.items():
        for place in ("images", "labels"):
            (root / place / split).mkdir(parents=True)
        for film in films:
            for frame in range(3):
                labels = _draw(rng, size, has_car=frame == 0)
                image = np.array([*COLORS.values(), [255, 255, 255]])[np.minimum(labels, 5)]
                image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
                Image.fromarray(image).save(root / "images" / split / f"{film}_{frame:03}.png")
                _encode(labels, kind).save(root / "labels" / split / f"{film}_{frame:03}.png")
    return root


def _draw(rng: np.random.Generator, size: tuple[int, int], has_car: bool) -> np.ndarray:
    height, width = size
    labels = np.zeros(size, np.uint8)
    labels[int(rng.integers(height // 4, height // 2)) :] = 2
    labels[:, : int(rng.integers(3, width // 3))] = 1
    labels[int(rng.integers(4, height // 2)), int(rng.integers(width // 3, width - 8)) : -4] = 3
    labels[-4:, -4:] = 4 if has_car else 2
    labels[-2:, :6] = 255
    return labels


def _encode(labels: np.ndarray, kind: str) -> Image.Image:
    palette = np.full((256, 3), 255, np.uint8)
    palette[: len(COLORS)] = list(COLORS.values())
    if kind == "11":
        return Image.fromarray(np.where(labels == 255, np.uint8(11), labels))
    if kind == "16 bits":
        return Image.fromarray(np.where(labels == 255, 65535, labels.astype(np.uint16) * 100 + 100).astype(np.uint16))
    if kind == "colours":
        return Image.fromarray(palette[labels])
    image = Image.fromarray(labels)
    if kind == "palette":
        image.putpalette(palette.ravel().tolist())
    return image
