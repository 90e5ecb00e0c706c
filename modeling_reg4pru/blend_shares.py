"""How much of the blended prediction each patch of a tile decides, from where the tiles lie."""

import torch

from .image_tiles import OFFSET_COLUMNS, blend_ramp

# Tiles on either side that can reach into a tile: enough for neighbours that share up to eight ninths of their sides.
_NEIGHBOURS = 8


def blend_shares(patch_offsets: torch.Tensor, patch_size: int, grid_side: int) -> torch.Tensor:
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
        grid_side (`int`): Rows of patches of a tile, as many as columns; a number, as graphs need fixed shapes.

    Returns:
        `torch.Tensor` of shape `(num_tiles, grid_side, grid_side)`, `float32`, in [0, 1].

    Raises:
        `ValueError`: if the tiles have another size.
    """
    # A graph cannot look at the values that it will be given.
    if not (torch.compiler.is_compiling() or torch.compiler.is_exporting()):
        side = int(patch_offsets[0, OFFSET_COLUMNS.index("tile_size")])
        if side != patch_size * grid_side:
            raise ValueError(
                f"`patch_offsets` are those of tiles of {side} px, but the images have {patch_size * grid_side} px."
            )
    column = {name: patch_offsets[:, place] for place, name in enumerate(OFFSET_COLUMNS)}
    tile_size, overlap = column["tile_size"], column["tile_overlap"]
    pixels = torch.arange(patch_size * grid_side, device=patch_offsets.device)
    rows, columns = (
        _side_shares(column[first], column[length], tile_size, overlap, pixels).unflatten(1, (-1, patch_size)).mean(-1)
        for first, length in (("top", "frame_height"), ("left", "frame_width"))
    )
    return rows[:, :, None] * columns[:, None, :]


def visible_patches(pixel_mask: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Patches that show something, `(batch, rows, columns)`, by masks of pixels `(batch, height, width)`; `bool`."""
    by_patch = pixel_mask.bool().unflatten(2, (-1, patch_size)).unflatten(1, (-1, patch_size))
    return by_patch.any(dim=4).any(dim=2)


def _side_shares(
    start: torch.Tensor, length: torch.Tensor, tile_size: torch.Tensor, overlap: torch.Tensor, pixels: torch.Tensor
) -> torch.Tensor:
    """The shares along one side, `(num_tiles, pixels)`, of tiles that begin at `start` of a side of the image."""
    slack = length - tile_size
    stride = tile_size - overlap
    gaps = torch.where(slack > 0, (slack + stride - 1) // stride, 0)
    place = torch.where(gaps > 0, (start * gaps + slack - 1) // slack.clamp_min(1), 0)
    near = place[:, None] + torch.arange(-_NEIGHBOURS, _NEIGHBOURS + 1, device=start.device)  # tiles beside it
    there = (near >= 0) & (near <= gaps[:, None])
    begins = near * slack.clamp_min(0)[:, None] // gaps.clamp_min(1)[:, None]
    # (num_tiles, neighbours, pixels): where in each neighbour the pixels of a tile lie
    within = pixels + (start[:, None] - begins)[..., None]
    size = tile_size[:, None, None]
    weights = blend_ramp(within, size) * ((within >= 0) & (within < size) & there[..., None])
    own = blend_ramp(pixels, tile_size[:, None]) * (start[:, None] + pixels < length[:, None])
    return own / weights.sum(dim=1)
