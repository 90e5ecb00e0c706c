"""The synthetic images: repeatable, cached, of the right kind, and no easier than they should be."""

import multiprocessing
import time

import numpy as np
import pytest
from scipy import ndimage

from datasets_fives import load_fives
from datasets_fives.sources import synthetic as module
from datasets_fives.sources.synthetic import draw_image


def draw(size, index=0, seed=0):
    return draw_image(size, "ADGN"[index % 4], np.random.SeedSequence((seed, index)))


def load(tmp_path, **kwargs):
    kwargs = {"working_size": 48, "synthetic_counts": (4, 2, 2)} | kwargs
    return load_fives("synthetic", cache_dir=tmp_path, **kwargs)


@pytest.mark.parametrize("size", [64, 100, 300])
def test_image_and_mask_have_the_size_asked_for(size):
    image, mask = draw(size)
    assert image.shape == (size, size, 3)
    assert image.dtype == mask.dtype == np.uint8
    assert mask.shape == (size, size)
    assert set(np.unique(mask)) == {0, 1}


def test_the_seed_decides_the_image():
    image, mask = draw(64, 1)
    again, same = draw(64, 1)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, same)
    assert (draw(64, 1, seed=1)[1] != mask).any()
    assert (draw(64, 5)[1] != mask).any()


def test_the_same_seed_is_the_same_eye_at_every_size():
    small, large = draw(128, 2)[1], draw(512, 2)[1]
    coarse = large.reshape(128, 4, 128, 4).mean((1, 3))
    assert np.corrcoef(small.ravel(), coarse.ravel())[0, 1] > 0.8


def test_vessels_are_as_many_and_as_wide_as_in_fives():
    masks = [draw(128, i)[1] for i in range(12)]
    assert 0.06 < np.mean(masks) < 0.10
    # The largest inscribed circle anywhere but at the crowded disc: one to five pixels of width.
    widths = np.concatenate([2 * ndimage.distance_transform_cdt(mask, "chessboard")[mask > 0] - 1 for mask in masks])
    assert widths.min() == 1
    assert np.quantile(widths, 0.99) <= 5


def test_vessels_are_darker_than_what_is_beside_them_but_no_threshold_finds_them():
    for index in range(8):
        image, mask = draw(128, index)
        green, vessel = image[..., 1].astype(float), mask > 0
        near = ndimage.binary_dilation(vessel, iterations=3) & ~ndimage.binary_dilation(vessel)
        near &= image[..., 0] > 40
        ratio = green[vessel].mean() / green[near].mean()
        assert 0.72 < ratio < 0.97, index
        field = image[..., 0] > 40
        best = max(
            2 * (found & vessel).sum() / (found.sum() + vessel.sum())
            for found in (field & (green < level) for level in np.quantile(green[field], np.linspace(0.02, 0.5, 25)))
        )
        assert best < 0.75, index


def test_nothing_but_black_lies_outside_the_field_of_view():
    image, mask = draw(128, 3)
    corners = np.hypot(*(np.mgrid[:128, :128] - 63.5)) > 0.54 * 128
    assert image[corners].max() <= 4
    assert mask[corners].max() == 0


def test_the_cup_is_large_in_glaucoma():
    def bright(condition):
        seeds = [np.random.SeedSequence((7, i)) for i in range(6)]
        return np.mean([(draw_image(128, condition, s)[0][..., 2] > 110).sum() for s in seeds])

    assert bright("G") > 1.5 * bright("N")


def test_the_data_set_has_sides_names_and_conditions(tmp_path):
    data = load(tmp_path)
    assert {side: len(rows) for side, rows in data.items()} == {"train": 4, "validation": 2, "test": 2}
    assert data["train"]["name"][:] == ["synthetic/1_A", "synthetic/2_D", "synthetic/3_G", "synthetic/4_N"]
    assert data["validation"]["name"][:] == ["synthetic/5_A", "synthetic/6_D"]
    assert data["train"]["condition"][:] == [0, 1, 2, 3]
    np.testing.assert_array_equal(np.asarray(data["train"][2]["image"]), draw(48, 2)[0])
    assert "validation" not in load(tmp_path, synthetic_counts=(4, 0, 2))


def test_the_second_load_draws_nothing(tmp_path, monkeypatch):
    first = load(tmp_path)

    def fail(*args):
        raise AssertionError("drawn again")

    monkeypatch.setattr(module, "draw_image", fail)
    assert load(tmp_path)["test"][1]["image"].tobytes() == first["test"][1]["image"].tobytes()


def test_an_interrupted_load_leaves_nothing_half_made(tmp_path, monkeypatch):
    original, drawn = module.draw_image, []

    def interrupt(*args):
        drawn.append(args)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, "draw_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path)
    assert not list(tmp_path.rglob("*.arrow"))
    monkeypatch.undo()
    assert len(load(tmp_path)["train"]) == 4


def _load_in_process(path):
    return [row["image"].tobytes() for row in load(path)["train"]]


def test_processes_may_race_for_the_cache(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        one, other = pool.map(_load_in_process, [tmp_path, tmp_path])
    assert one == other


def test_drawing_is_not_felt():
    draw(128)
    start = time.process_time()
    for index in range(16):
        draw(128, index)
    # 256 images of 128 pixels in about ten seconds of one core; three times that only on a crowded machine.
    assert (time.process_time() - start) / 16 < 0.12
