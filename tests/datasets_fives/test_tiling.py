"""Tiles for training."""

import numpy as np
import pytest

from datasets_fives import load_fives
from datasets_fives.training_samples import cut_into_tiles


@pytest.fixture
def rows(tmp_path):
    return load_fives("synthetic", working_size=64, synthetic_counts=(3, 0, 1), cache_dir=tmp_path)["train"]


def test_quadrants_put_together_are_the_image(rows):
    tiles = cut_into_tiles(rows, 32)
    assert len(tiles) == 12
    assert tiles.features == rows.features
    assert tiles["name"][4:8] == ["synthetic/2_D#0-0", "synthetic/2_D#0-1", "synthetic/2_D#1-0", "synthetic/2_D#1-1"]
    assert tiles["condition"][:] == [0] * 4 + [1] * 4 + [2] * 4
    for key in ("image", "mask"):
        a, b, c, d = (np.asarray(tiles[i][key]) for i in range(4, 8))
        whole = np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)])
        np.testing.assert_array_equal(whole, np.asarray(rows[1][key]))


def test_tiles_that_do_not_fit_are_shifted_inwards(rows):
    tiles = cut_into_tiles(rows, 40, stride=20)
    assert len(tiles) == 3 * 9
    np.testing.assert_array_equal(np.asarray(tiles[8]["mask"]), np.asarray(rows[0]["mask"])[24:, 24:])
    np.testing.assert_array_equal(np.asarray(tiles[1]["image"]), np.asarray(rows[0]["image"])[:40, 20:60])


def test_tiles_of_wrong_size_are_refused(rows):
    with pytest.raises(ValueError, match=r"synthetic/1_A has \(64, 64\) pixels.*tile of 65"):
        cut_into_tiles(rows, 65)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cut_into_tiles(rows, 0)
    for stride in (0, 33):
        with pytest.raises(ValueError, match="may share 0 to 31 pixels"):
            cut_into_tiles(rows, 32, stride=stride)
