"""Large photographs in pieces: tiles to train on, and a smooth blend of the predictions for overlapping tiles."""

from collections.abc import Iterable

import numpy as np
import torch
from datasets import Dataset

from .pixels import encode_png

# Weight of a tile at its very edge, where it has seen least of the surroundings; in its middle the weight is 1.
_EDGE_WEIGHT = 1e-3


def cut_into_tiles(dataset: Dataset, tile_size: int, stride: int | None = None) -> Dataset:
    """
    Cut photographs and masks into square tiles; only ever after splitting, so that no photograph is on two sides.

    Args:
        dataset (`Dataset`): Rows as [`load_fives`] gives them.
        tile_size (`int`): Side of the tiles; half of the photograph's side gives its quadrants.
        stride (`int`, *optional*, defaults to `tile_size`):
            Distance of neighbouring tiles. The last ones are shifted inwards where they would not fit.

    Returns:
        `Dataset`: A row per tile, named `"<name>#<row>-<column>"`.

    Raises:
        ValueError: If the tile size or the stride is wrong, or a photograph is smaller than a tile.
    """
    stride = tile_size if stride is None else stride
    _check_tiles(tile_size, tile_size - stride)
    return dataset.map(
        _cut,
        batched=True,
        batch_size=1,
        writer_batch_size=64,
        fn_kwargs={"tile_size": tile_size, "stride": stride},
        features=dataset.features,
        desc="Cutting tiles",
    )


def _cut(batch: dict[str, list], tile_size: int, stride: int) -> dict[str, list]:
    (image,), (name,) = batch["image"], batch["name"]
    if min(image.size) < tile_size:
        raise ValueError(f"{name} has {image.size} pixels (width, height), less than a tile of {tile_size}.")
    masks = {key: np.asarray(batch[key][0]) for key in ("mask", "field_of_view") if key in batch}
    tops, lefts = (_starts(length, tile_size, stride) for length in masks["mask"].shape)
    rows: dict[str, list] = {key: [] for key in batch}
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            rows["image"].append(encode_png(image.crop((left, top, left + tile_size, top + tile_size))))
            for key, pixels in masks.items():
                rows[key].append(encode_png(pixels[top : top + tile_size, left : left + tile_size]))
            rows["name"].append(f"{name}#{row}-{column}")
            for key in batch.keys() - {"image", "name", *masks}:
                rows[key] += batch[key]
    return rows


def tile_grid(height: int, width: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """
    Where to put tiles so that they cover a frame, with at least `overlap` pixels shared by neighbours.

    Args:
        height (`int`): Height of the frame.
        width (`int`): Width of the frame.
        tile (`int`): Side of the tiles. A frame smaller than that is to be padded, see [`pad_to_tile`].
        overlap (`int`): Pixels shared by neighbouring tiles; the last tile is shifted inwards and may share more.

    Returns:
        `list[tuple[int, int]]`: Top and left of each tile, row by row.

    Raises:
        ValueError: If a size is not positive or the overlap is not in [0, tile).
    """
    _check_tiles(tile, overlap)
    if height < 1 or width < 1:
        raise ValueError(f"The frame must have pixels, got {height}x{width}.")
    return [(t, s) for t in _starts(height, tile, tile - overlap) for s in _starts(width, tile, tile - overlap)]


def pad_to_tile(pixel_values: torch.Tensor, tile: int) -> torch.Tensor:
    """
    Mirror a frame at its bottom and right until a tile fits; [`TileBlender`] crops the result back.

    Args:
        pixel_values (`torch.Tensor` of shape (..., height, width)): The frame.
        tile (`int`): Side of the tiles.

    Returns:
        `torch.Tensor` of shape (..., max(height, tile), max(width, tile)): The frame, or itself if it is large enough.
    """
    for dim in (-2, -1):
        length = pixel_values.shape[dim]
        if length < tile:
            # Of indices, not of pixels: unlike torch's padding this mirrors frames of less than half a tile, too.
            mirrored = np.pad(np.arange(length), (0, tile - length), mode="reflect")
            pixel_values = pixel_values.index_select(dim, torch.from_numpy(mirrored).to(pixel_values.device))
    return pixel_values


class TileBlender:
    """
    Collect the predictions for tiles, one by one, and blend them into the full frame.

    Each tile is weighted by a raised-cosine (Hann) window, so that no seams show where tiles overlap.

    Args:
        height (`int`): Height of the frame.
        width (`int`): Width of the frame.
        tile (`int`): Side of the tiles.

    Example:
        >>> frame = pad_to_tile(pixel_values, tile)
        >>> blender = TileBlender(height, width, tile)
        >>> for top, left in tile_grid(height, width, tile, overlap):
        ...     blender.add(top, left, predict(frame[..., top : top + tile, left : left + tile]))
        >>> probabilities = blender.result()
    """

    def __init__(self, height: int, width: int, tile: int):
        _check_tiles(tile, 0)
        self.height, self.width, self.tile = height, width, tile
        # Sums of many overlapping tiles in float64, so that the blend is exact to float32.
        ramp = torch.sin(torch.pi * (torch.arange(tile, dtype=torch.float64) + 0.5) / tile) ** 2
        ramp = _EDGE_WEIGHT + (1 - _EDGE_WEIGHT) * ramp
        self.window = ramp[:, None] * ramp
        self.weights = torch.zeros(max(height, tile), max(width, tile), dtype=torch.float64)
        self.total: torch.Tensor | None = None

    def add(self, top: int, left: int, probabilities: torch.Tensor) -> None:
        """
        Add one tile.

        Args:
            top (`int`): First row of the tile in the frame.
            left (`int`): First column of the tile in the frame.
            probabilities (`torch.Tensor` of shape (..., tile, tile)): What was predicted for the tile.

        Raises:
            ValueError: If the tile has another size or does not lie in the frame.
        """
        if probabilities.shape[-2:] != self.window.shape:
            raise ValueError(f"Tiles are {self.tile}x{self.tile}, got {tuple(probabilities.shape)}.")
        rows, columns = slice(top, top + self.tile), slice(left, left + self.tile)
        if top < 0 or left < 0 or rows.stop > self.weights.shape[0] or columns.stop > self.weights.shape[1]:
            raise ValueError(f"The tile at ({top}, {left}) leaves the frame of {tuple(self.weights.shape)}.")
        tile = probabilities.detach().cpu().double()
        if self.total is None:
            self.total = torch.zeros(*tile.shape[:-2], *self.weights.shape, dtype=torch.float64)
        self.total[..., rows, columns] += tile * self.window
        self.weights[rows, columns] += self.window

    def result(self) -> torch.Tensor:
        """
        The blended frame.

        Returns:
            `torch.Tensor` of shape (..., height, width): `float32`, on the CPU.

        Raises:
            ValueError: If some pixel was covered by no tile.
        """
        weights = self.weights[: self.height, : self.width]
        if self.total is None or (weights == 0).any():
            raise ValueError(f"The tiles do not cover {int((weights == 0).sum())} pixels of the frame.")
        return (self.total[..., : self.height, : self.width] / weights).float()


def blend_tiles(
    tiles: Iterable[torch.Tensor], positions: Iterable[tuple[int, int]], height: int, width: int
) -> torch.Tensor:
    """
    Blend the predictions for tiles into the full frame, see [`TileBlender`].

    Args:
        tiles (`Iterable[torch.Tensor]`): What was predicted, each of shape (..., tile, tile).
        positions (`Iterable[tuple[int, int]]`): Top and left of each, as from [`tile_grid`].
        height (`int`): Height of the frame.
        width (`int`): Width of the frame.

    Returns:
        `torch.Tensor` of shape (..., height, width): `float32`, on the CPU.

    Raises:
        ValueError: If there are no tiles, not as many as positions, or they do not cover the frame.
    """
    blender = None
    for tile, (top, left) in zip(tiles, positions, strict=True):
        blender = blender or TileBlender(height, width, tile.shape[-1])
        blender.add(top, left, tile)
    if blender is None:
        raise ValueError("There are no tiles to blend.")
    return blender.result()


def _starts(length: int, tile: int, stride: int) -> list[int]:
    last = max(0, length - tile)
    return [*range(0, last, stride), last]


def _check_tiles(tile: int, overlap: int) -> None:
    if tile < 1:
        raise ValueError(f"The side of a tile must be at least 1, got {tile}.")
    if not 0 <= overlap < tile:
        raise ValueError(f"Neighbouring tiles of side {tile} may share 0 to {tile - 1} pixels, got {overlap}.")
