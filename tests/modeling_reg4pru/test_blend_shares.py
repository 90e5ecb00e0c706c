"""Blend shares: what the blend of the tiles makes of each patch, and what a stage makes of that."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from modeling_reg4pru.blend_shares import blend_shares
from modeling_reg4pru.image_tiles import TileBlender, tile_grid


def offsets_of(height: int, width: int, tile: int, overlap: int, image: int = 0) -> torch.Tensor:
    corners = tile_grid(height, width, tile, overlap)
    return torch.tensor([(image, *corner, tile, height, width, height, width, overlap) for corner in corners])


def shares_by_blending(offsets: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Blend tiles that each are 1 in a channel of their own and 0 in those of all others."""
    tile, height, width = offsets[0, 3:6].tolist()
    shares, blender = [], TileBlender(offsets)
    for row, channels in zip(offsets, torch.eye(len(offsets)), strict=True):
        blender.add(row, channels[:, None, None].expand(-1, tile, tile))
    for row, blended in zip(offsets, blender.result(), strict=True):
        padded = torch.zeros(height + tile, width + tile)
        padded[:height, :width] = blended
        _, top, left, *_ = row.tolist()
        mine = padded[top : top + tile, left : left + tile]
        shares.append(mine.unfold(0, patch_size, patch_size).unfold(1, patch_size, patch_size).mean((-1, -2)))
    return torch.stack(shares)


@pytest.mark.parametrize("size", [(64, 64), (65, 50), (16, 16), (40, 16), (10, 30), (3, 5)])
@pytest.mark.parametrize("overlap", [0, 3, 8, 14])
def test_shares_are_those_of_the_blend(size, overlap):
    offsets = offsets_of(*size, 16, overlap)
    expected = shares_by_blending(offsets, 4)
    torch.testing.assert_close(blend_shares(offsets, 4, 4), expected, rtol=0, atol=1e-5)
    assert expected.sum().item() * 16 == pytest.approx(size[0] * size[1], rel=1e-4)


def test_a_tile_knows_its_neighbours_in_any_batch():
    images = [offsets_of(64, 40, 16, 5), offsets_of(20, 33, 16, 5, image=1)]
    whole = torch.cat([blend_shares(offsets, 4, 4) for offsets in images])
    mixed = torch.cat(images)
    order = torch.randperm(len(mixed))
    torch.testing.assert_close(blend_shares(mixed[order], 4, 4), whole[order])


def test_an_image_of_one_tile_is_pruned_as_without_shares(tiny_model, pixel_values):
    offsets = offsets_of(64, 64, 64, 16)
    for allocation in ("tile", "image"):
        model = tiny_model(keep_rates=0.5, allocation=allocation, blend_share_weight=2.0, token_multiple=1)
        with torch.no_grad():
            alone = model(pixel_values[:1], output_keep_masks=True)
            tiled = model(pixel_values[:1], patch_offsets=offsets, output_keep_masks=True)
        assert alone.keep_masks.equal(tiled.keep_masks)
        torch.testing.assert_close(alone.logits, tiled.logits, rtol=0, atol=0 if allocation == "tile" else 1e-5)


def test_patches_that_another_tile_decides_leave_first(tiny_model, pixel_values):
    offsets = offsets_of(64, 112, 64, 16)
    plain, weighted = (
        tiny_model(keep_rates=[0.5, 1.0, 1.0], blend_share_weight=weight)(
            pixel_values[: len(offsets)], patch_offsets=offsets, output_keep_masks=True
        ).keep_masks[:, 0]
        for weight in (0.0, 100.0)
    )
    shares = blend_shares(offsets, 8, 8)
    assert shares[weighted].min() >= shares[~weighted].max() - 1e-6
    assert shares[plain].min() < shares[~plain].max()


def test_weights_below_zero_are_refused(tiny_config):
    with pytest.raises(StrictDataclassClassValidationError, match="`blend_share_weight` is -1"):
        tiny_config(blend_share_weight=-1)


def test_tiles_of_another_size_are_refused(tiny_model, pixel_values):
    with pytest.raises(ValueError, match="are those of tiles of 32 px, but the images have 64 px"):
        tiny_model(keep_rates=0.5)(pixel_values[:1], patch_offsets=offsets_of(32, 32, 32, 8))
