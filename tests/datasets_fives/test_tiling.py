"""Tiles for training, and the blend that gives a frame back."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from datasets_fives import load_fives
from datasets_fives.tiling import TileBlender, blend_tiles, cut_into_tiles, pad_to_tile, tile_grid


@pytest.fixture
def rows(tmp_path):
    return load_fives("synthetic", photograph_size=64, synthetic_counts=(3, 0, 1), cache_dir=tmp_path)["train"]


def test_quadrants_put_together_are_the_photograph(rows):
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


@pytest.mark.parametrize("size", [(64, 64), (65, 100), (32, 32), (33, 32), (20, 90), (5, 7)])
@pytest.mark.parametrize("overlap", [0, 8, 31])
def test_tiles_cut_and_blended_give_the_map_back(size, overlap):
    tile = 32
    frame = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    padded = pad_to_tile(frame, tile)
    positions = tile_grid(*size, tile, overlap)
    cuts = [padded[..., t : t + tile, s : s + tile] for t, s in positions]
    assert all(cut.shape == (2, tile, tile) for cut in cuts)
    torch.testing.assert_close(blend_tiles(cuts, positions, *size), frame, rtol=0, atol=1e-6)


def test_the_grid_covers_and_overlaps():
    assert tile_grid(2048, 2048, 1024, 0) == [(0, 0), (0, 1024), (1024, 0), (1024, 1024)]
    assert tile_grid(100, 50, 64, 16) == [(0, 0), (36, 0)]
    for height in range(1, 90):
        tops = sorted({top for top, _ in tile_grid(height, 32, 32, 10)})
        assert tops[0] == 0
        assert tops[-1] == max(0, height - 32)
        assert all(0 < b - a <= 22 for a, b in pairwise(tops))


def test_the_middle_of_a_tile_counts_more_than_its_edge():
    blender = TileBlender(16, 24, 16)
    blender.add(0, 0, torch.zeros(16, 16))
    blender.add(0, 8, torch.ones(16, 16))
    row = blender.result()[8]
    assert torch.equal(row[:8], torch.zeros(8))
    assert torch.equal(row[16:], torch.ones(8))
    assert (row[8:16].diff() > 0).all()  # a smooth ramp, no seam
    assert row[8] < 0.05
    assert row[15] > 0.95


def test_padding_mirrors_even_very_small_frames():
    frame = torch.arange(6.0).reshape(2, 3)
    padded = pad_to_tile(frame, 7)
    np.testing.assert_array_equal(padded, np.pad(frame.numpy(), ((0, 5), (0, 4)), mode="reflect"))
    large = torch.rand(3, 9, 9)
    assert pad_to_tile(large, 7) is large


def test_wrong_tiles_are_refused():
    blender = TileBlender(32, 32, 16)
    with pytest.raises(ValueError, match="do not cover 1024 pixels"):
        blender.result()
    with pytest.raises(ValueError, match=r"Tiles are 16x16, got \(8, 16\)"):
        blender.add(0, 0, torch.zeros(8, 16))
    for position in ((17, 0), (0, -1)):
        with pytest.raises(ValueError, match="leaves the frame"):
            blender.add(*position, torch.zeros(16, 16))
    blender.add(0, 0, torch.zeros(16, 16))
    with pytest.raises(ValueError, match="do not cover 768 pixels"):
        blender.result()
    with pytest.raises(ValueError, match="no tiles"):
        blend_tiles([], [], 4, 4)
    with pytest.raises(ValueError, match="may share"):
        tile_grid(64, 64, 16, 16)
    with pytest.raises(ValueError, match="must have pixels"):
        tile_grid(0, 64, 16, 0)
