"""How much of the blended prediction each patch of a tile decides, from where the tiles lie."""

import torch

from .image_tiles import OFFSET_COLUMNS, blend_ramp

# Tiles on either side that can reach into a tile: enough for neighbours that share up to eight ninths of their sides.
_NEIGHBOURS = 8


def blend_shares(patch_offsets: torch.Tensor, patch_size: int) -> torch.Tensor:
    """
    The blend share of every patch: the window of its tile by the sum of all windows there, averaged over its pixels.
    Where a tile lies alone it is 1; where tiles overlap the shares of a pixel add up to 1; what a tile shows beyond
    its image has 0.

    Tiles lie on a grid of rows and columns ([`~modeling_reg4pru.image_tiles.tile_starts`]) and their window is a
    product of one ramp each way, so a share is one, too; a row of `patch_offsets` says enough to know its neighbours,
    and tiles of one image may come in any batches.

    Args:
        patch_offsets (`torch.Tensor` of shape `(num_tiles, 9)`, `int64`): Where the tiles lie, see `OFFSET_COLUMNS`.
        patch_size (`int`): Side of a patch in pixels.

    Returns:
        `torch.Tensor` of shape `(num_tiles, rows, columns)`, `float32`, in [0, 1].
    """
    column = {name: patch_offsets[:, place] for place, name in enumerate(OFFSET_COLUMNS)}
    tile_size, overlap = column["tile_size"], column["tile_overlap"]
    rows, columns = (
        _side_shares(column[first], column[length], tile_size, overlap, patch_size)
        for first, length in (("top", "frame_height"), ("left", "frame_width"))
    )
    return rows[:, :, None] * columns[:, None, :]


def _side_shares(
    start: torch.Tensor, length: torch.Tensor, tile_size: torch.Tensor, overlap: torch.Tensor, patch_size: int
) -> torch.Tensor:
    """The shares along one side, `(num_tiles, patches)`, of tiles that begin at `start` of a side of the image."""
    slack = length - tile_size
    stride = tile_size - overlap
    gaps = torch.where(slack > 0, (slack + stride - 1) // stride, 0)
    place = torch.where(gaps > 0, (start * gaps + slack - 1) // slack.clamp_min(1), 0)
    near = place[:, None] + torch.arange(-_NEIGHBOURS, _NEIGHBOURS + 1, device=start.device)  # tiles beside it
    there = (near >= 0) & (near <= gaps[:, None])
    begins = near * slack.clamp_min(0)[:, None] // gaps.clamp_min(1)[:, None]
    pixels = torch.arange(int(tile_size[0]), device=start.device)
    # (num_tiles, neighbours, pixels): where in each neighbour the pixels of a tile lie
    within = pixels + (start[:, None] - begins)[..., None]
    size = tile_size[:, None, None]
    weights = blend_ramp(within, size) * ((within >= 0) & (within < size) & there[..., None])
    own = blend_ramp(pixels, tile_size[:, None]) * (start[:, None] + pixels < length[:, None])
    return (own / weights.sum(dim=1)).unflatten(1, (-1, patch_size)).mean(dim=-1)
