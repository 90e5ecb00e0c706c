import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from datasets_fives.field_of_view import field_of_view


def disc(height: int, width: int, row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:height, :width]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def draw_field(inside: np.ndarray, seed: int = 0) -> np.ndarray:
    """An orange field with uneven light and noise on a sensor that is not quite black."""
    rng = np.random.default_rng(seed)
    light = np.linspace(0.35, 1.0, inside.shape[1])[None, :, None]
    image = np.where(inside[..., None], np.array([170, 85, 40]) * light, 4.0)
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def agreement(found: np.ndarray, true: np.ndarray) -> float:
    return np.count_nonzero(found & true) / np.count_nonzero(found | true)


@pytest.mark.parametrize("size", [128, 700, 2048])
def test_disc_is_found_without_the_characters_in_the_corner(size):
    true = disc(size, size, 0.5 * size, 0.49 * size, 0.47 * size)
    image = draw_field(true)
    image[size // 64 : size // 16, size // 64 : size // 12] = 255
    found = field_of_view(image)
    assert found.dtype == bool
    assert found.shape == (size, size)
    assert not found[: size // 14, : size // 11].any()
    # One pixel of the radius at 128 is 3 % of the area.
    assert agreement(found, true) > (0.97 if size == 128 else 0.99)


def test_notch_at_the_rim_is_outside():
    true = disc(512, 512, 255, 255, 230)
    image = draw_field(true)
    image[240:270, 480:505] = (170, 85, 40)
    found = field_of_view(image)
    assert not found[240:270, 490:].any()
    assert agreement(found, true) > 0.99


def test_tile_with_one_dark_corner():
    true = disc(400, 400, 399, 399, 380)
    assert agreement(field_of_view(draw_field(true)), true) > 0.99


def test_disc_that_the_camera_cuts_at_top_and_bottom():
    rows = np.arange(400)[:, None]
    true = disc(400, 400, 200, 200, 190) & (rows > 80) & (rows < 320)
    found = field_of_view(draw_field(true))
    assert agreement(found, true) > 0.98
    assert not found[:70].any()


def test_disc_that_is_wider_than_the_image_is_high():
    true = disc(300, 500, 150, 250, 240)
    assert agreement(field_of_view(draw_field(true)), true) > 0.99


def test_image_without_dark_border_is_all_field():
    rng = np.random.default_rng(0)
    assert field_of_view(rng.integers(60, 200, (100, 140, 3), dtype=np.uint8)).all()
    assert field_of_view(np.zeros((64, 64, 3), dtype=np.uint8)).all()
    assert field_of_view(np.full((1, 1, 3), 90, dtype=np.uint8)).all()


def test_speck_is_no_field():
    image = draw_field(disc(256, 256, 128, 128, 20))
    assert field_of_view(image).all()


def test_same_result_every_time():
    image = draw_field(disc(256, 256, 128, 120, 110))
    np.testing.assert_array_equal(field_of_view(image), field_of_view(image))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8), np.uint8), ((8, 8, 4), np.uint8), ((8, 8, 3), np.float32), ((0, 8, 3), np.uint8)]
)
def test_other_arrays_are_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"RGB image of shape \(height, width, 3\)"):
        field_of_view(np.zeros(shape, dtype=dtype))


@pytest.mark.skipif("FIVES_DIR" not in os.environ, reason="FIVES_DIR, the folder of the FIVES images, is not set")
def test_real_images():
    paths = sorted(Path(os.environ["FIVES_DIR"]).glob("*/Original/*.png"))[:4]
    assert paths
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"))
        mask = np.asarray(Image.open(path.parent.parent / "Ground truth" / path.name).convert("L")) > 127
        start = time.perf_counter()
        found = field_of_view(image)
        assert time.perf_counter() - start < 1
        assert 0.72 < found.mean() < 0.8
        assert not found[:150, :150].any()  # the characters
        assert ndimage.label(found)[1] == 1
        assert np.count_nonzero(image.max(axis=2)[found] < 12) < 0.001 * found.sum()
        # A few vessels run on into the notch at the rim.
        assert np.count_nonzero(mask & ~found) < 0.005 * mask.sum()
