"""Tiles: where they lie, what they show, and that nothing shows where they meet."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from modeling_reg4pru.image_tiles import (
    StageBlender,
    TileBlender,
    cut_tile,
    resize_map,
    split_images,
    tile_grid,
    tile_starts,
)


def offsets_of(height: int, width: int, tile: int, overlap: int, own: tuple[int, int] | None = None) -> torch.Tensor:
    own = own or (height, width)
    corners = tile_grid(height, width, tile, overlap)
    return torch.tensor([(0, *corner, tile, height, width, *own, overlap) for corner in corners])


def test_tiles_cover_overlap_and_are_as_few_as_can_be():
    for length in range(1, 140):
        for overlap in (0, 1, 10, 31):
            starts = tile_starts(length, 32, overlap)
            assert starts[0] == 0
            assert starts[-1] == max(0, length - 32)
            steps = [b - a for a, b in pairwise(starts)]
            assert all(0 < step <= 32 - overlap for step in steps)
            assert max(steps, default=0) - min(steps, default=0) <= 1  # evenly spread
            assert len(starts) == 1 or 32 + (len(starts) - 2) * (32 - overlap) < length  # one less is too few
    assert tile_grid(2048, 2048, 1024, 0) == [(0, 0), (0, 1024), (1024, 0), (1024, 1024)]
    assert tile_grid(2048, 2048, 2048, 512) == [(0, 0)]


@pytest.mark.parametrize("size", [(64, 64), (65, 100), (32, 32), (33, 32), (20, 90), (5, 7), (1, 1)])
@pytest.mark.parametrize("overlap", [0, 8, 31])
def test_tiles_cut_and_blended_give_the_frame_back(size, overlap):
    frame = np.random.default_rng(0).random((*size, 2), dtype=np.float32)
    offsets = offsets_of(*size, 32, overlap)
    blender = TileBlender(offsets)
    for row in offsets:
        tile = cut_tile(frame, *row[1:4].tolist())
        assert tile.shape == (32, 32, 2)
        blender.add(row, torch.from_numpy(tile.transpose(2, 0, 1)))
    torch.testing.assert_close(blender.result(), torch.from_numpy(frame.transpose(2, 0, 1)), rtol=0, atol=5e-6)


def test_small_frames_are_padded_by_reflection_or_a_value():
    frame = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(cut_tile(frame, 0, 0, 7), np.pad(frame, ((0, 5), (0, 4)), mode="reflect"))
    filled = cut_tile(frame, 0, 0, 7, fill=255)
    np.testing.assert_array_equal(filled[:2, :3], frame)
    assert (filled[2:] == 255).all()
    assert (filled[:, 3:] == 255).all()


def test_tiles_inside_are_views():
    frame = np.zeros((100, 100, 3), np.uint8)
    assert np.shares_memory(cut_tile(frame, 10, 20, 64), frame)


def test_the_middle_of_a_tile_weighs_more_than_its_edge():
    offsets = offsets_of(16, 24, 16, 8)
    blender = TileBlender(offsets)
    blender.add(offsets[0], torch.zeros(1, 16, 16))
    blender.add(offsets[1], torch.ones(1, 16, 16))
    row = blender.result()[0, 8]
    assert torch.equal(row[:8], torch.zeros(8))
    assert torch.equal(row[16:], torch.ones(8))
    assert (row[8:16].diff() > 0).all()  # a smooth ramp, no seam
    assert row[8] < 0.05
    assert row[15] > 0.95


def test_stages_are_those_of_the_nearest_tile():
    offsets = offsets_of(16, 24, 16, 8)
    blender = StageBlender(offsets)
    blender.add(offsets[0], torch.full((4, 4), 1))
    blender.add(offsets[1], torch.full((4, 4), 2))
    stages = blender.result()
    assert stages.dtype == torch.uint8
    assert (stages[:, :12] == 1).all()
    assert (stages[:, 12:] == 2).all()


def test_maps_have_the_size_of_the_image():
    offsets = offsets_of(16, 16, 16, 0, own=(40, 30))
    blender, stages = TileBlender(offsets), StageBlender(offsets)
    blender.add(offsets[0], torch.rand(3, 16, 16))
    stages.add(offsets[0], torch.randint(0, 4, (2, 2)))
    assert blender.result().shape == (3, 40, 30)
    assert blender.result((8, 9)).shape == (3, 8, 9)
    found = stages.result()
    assert found.shape == (40, 30)
    assert len({int(found[i, j]) for i in (0, 19) for j in (0, 14)}) == 1


def test_missing_tiles_are_refused():
    offsets = offsets_of(32, 32, 16, 0)
    blender = TileBlender(offsets)
    blender.add(offsets[1], torch.zeros(2, 16, 16))
    with pytest.raises(ValueError, match="do not cover 768 of 1024 pixels"):
        blender.result()


def test_concatenated_batches_are_split_by_image():
    first, second = offsets_of(32, 40, 16, 0), offsets_of(10, 10, 16, 0)
    groups = list(split_images(torch.cat([first, second, second, first])))
    assert [len(group) for group in groups] == [6, 1, 1, 6]
    assert torch.equal(groups[3], first)
    with pytest.raises(ValueError, match=r"shape \(6, 3\).*\(num_tiles, 9\)"):
        list(split_images(first[:, :3]))


def test_class_indices_are_not_interpolated():
    stages = torch.tensor([[0, 3]], dtype=torch.uint8)
    assert set(resize_map(stages[None], (5, 7), mode="nearest-exact").unique().tolist()) == {0, 3}
    same = torch.rand(2, 4, 4)
    assert resize_map(same, (4, 4)) is same
