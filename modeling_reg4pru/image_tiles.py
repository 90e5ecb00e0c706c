"""Tiles of images: where they lie, cutting them, and blending what was predicted for them."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from .label_maps import IGNORE_INDEX

# Columns of `patch_offsets`; EoMT's begin with the index of the image, too.
OFFSET_COLUMNS = (
    "image",
    "top",
    "left",
    "tile_size",
    "frame_height",
    "frame_width",
    "image_height",
    "image_width",
    "tile_overlap",
)
# Weight of a tile at its very edge, where it has seen least of the surroundings; in its middle the weight is 1.
_EDGE_WEIGHT = 1e-3


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """
    Where to put the fewest tiles that cover a length with `overlap` pixels or more between neighbours; evenly spread.

    Args:
        length (`int`): Pixels to cover.
        tile (`int`): Side of the tiles; a shorter length gets one tile, which is to be padded.
        overlap (`int`): Least number of pixels that neighbours share, in [0, tile).

    Returns:
        `list[int]`: The first pixel of each tile, ascending from 0.
    """
    if length <= tile:
        return [0]
    gaps = math.ceil((length - tile) / (tile - overlap))
    return [gap * (length - tile) // gaps for gap in range(gaps + 1)]


def tile_grid(height: int, width: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Top and left of the tiles that cover a frame, row by row, beginning with (0, 0); see [`tile_starts`]."""
    return [(top, left) for top in tile_starts(height, tile, overlap) for left in tile_starts(width, tile, overlap)]


def cut_tile(frame: np.ndarray, top: int, left: int, tile: int, fill: int | None = None) -> np.ndarray:
    """
    One tile of a frame. A frame smaller than a tile is padded by reflection at its bottom and right.

    Args:
        frame (`np.ndarray` of shape `(height, width, ...)`): The frame.
        top (`int`): First row.
        left (`int`): First column.
        tile (`int`): Side of the tile.
        fill (`int`, *optional*): A value to pad with instead.

    Returns:
        `np.ndarray` of shape `(tile, tile, ...)`: A view of the frame wherever it covers the tile.
    """
    inside = frame[top : top + tile, left : left + tile]
    padding = [(0, tile - side) for side in inside.shape[:2]] + [(0, 0)] * (frame.ndim - 2)
    if not np.any(padding):
        return inside
    if fill is not None:
        return np.pad(inside, padding, constant_values=fill)
    return np.pad(inside, padding, mode="reflect")


class TiledImage(Sequence):
    """
    The tiles of an image, each made when it is asked for.

    Args:
        frame (`np.ndarray` of shape `(height, width, 3)`, `uint8`): The image at its working size.
        patch_offsets (`torch.Tensor` of shape `(num_tiles, 9)`): Where the tiles lie, see `OFFSET_COLUMNS`.
        scale (`np.ndarray` of shape `(3, 1, 1)`): Factor by which the pixels are multiplied.
        shift (`np.ndarray` of shape `(3, 1, 1)`): What is then added to them.
        mask (`np.ndarray` of shape `(height, width)`, `bool`, *optional*): False where the image shows nothing.
    """

    def __init__(
        self,
        frame: np.ndarray,
        patch_offsets: torch.Tensor,
        scale: np.ndarray,
        shift: np.ndarray,
        mask: np.ndarray | None = None,
    ):
        self.frame, self.patch_offsets, self.scale, self.shift = frame, patch_offsets, scale, shift
        self.mask = mask

    def __len__(self) -> int:
        return len(self.patch_offsets)

    def __getitem__(self, index: int) -> np.ndarray:
        """One tile, `(3, tile, tile)`, `float32`."""
        _, top, left, tile_size, *_ = self.patch_offsets[index].tolist()
        pixels = cut_tile(self.frame, top, left, tile_size).transpose(2, 0, 1).astype(np.float32)
        pixels *= self.scale
        pixels += self.shift
        return pixels

    def pixel_mask(self, index: int) -> np.ndarray | None:
        """Where one tile shows something, `(tile, tile)`, `bool`; `None` without a mask of the image."""
        if self.mask is None:
            return None
        _, top, left, tile_size, *_ = self.patch_offsets[index].tolist()
        return cut_tile(self.mask, top, left, tile_size, fill=False)


def split_images(patch_offsets: torch.Tensor) -> Iterator[torch.Tensor]:
    """
    The rows of each image. The first tile of each lies at (0, 0), so that concatenated batches, each of which counts
    its images from 0, are split by image, too.

    Args:
        patch_offsets (`torch.Tensor` of shape `(num_tiles, 9)`, `int64`): Where the tiles lie, see `OFFSET_COLUMNS`.

    Yields:
        `torch.Tensor` of shape `(num_tiles_of_one, 9)`.

    Raises:
        `ValueError`: if the tensor has another shape.
    """
    if patch_offsets.ndim != 2 or patch_offsets.shape[1] != len(OFFSET_COLUMNS):
        raise ValueError(
            f"`patch_offsets` has shape {tuple(patch_offsets.shape)}: it must be (num_tiles, {len(OFFSET_COLUMNS)}), "
            "as `Reg4PruImageProcessor` gives it beside `pixel_values`."
        )
    begins = (patch_offsets[:, 1:3] == 0).all(dim=1).nonzero().flatten().tolist()
    for start, end in pairwise([*dict.fromkeys([0, *begins]), len(patch_offsets)]):
        yield patch_offsets[start:end]


def tile_probabilities(outputs, index: int, size: tuple[int, int]) -> torch.Tensor:
    """
    Class scores of every pixel of a tile.

    Logits are interpolated, as interpolated scores have softer edges. With a single foreground query
    the scores are probabilities [1 - p, p]; with many queries they are EoMT's semantic scores, the sum over the
    queries of class probability times mask probability. Pixels that show nothing (`pixel_mask`) are background, or
    where there is none have no score at all.

    Args:
        outputs ([`Reg4PruSemanticSegmenterOutput`] or an output of EoMT): What the model gave for a batch of tiles.
        index (`int`): Which of the batch.
        size (`tuple[int, int]`): Height and width of the tile.

    Returns:
        `torch.Tensor` of shape `(num_labels, *size)`, `float32`.

    Raises:
        `ValueError`: if what the model gave is not finite, which would look like an image without any foreground.
    """
    one = slice(index, index + 1)
    _check_finite(outputs, index)
    if outputs.class_queries_logits is None:
        scores = F.interpolate(outputs.logits[one].float(), size=size, mode="bilinear")[0].softmax(dim=0)
    else:
        masks = F.interpolate(outputs.masks_queries_logits[one].float(), size=size, mode="bilinear")[0]
        classes = outputs.class_queries_logits[index].float().softmax(dim=-1)[:, :-1]
        scores = torch.einsum("qc,qhw->chw", classes, masks.sigmoid())
    pixel_mask = getattr(outputs, "pixel_mask", None)  # EoMT's output has none
    if pixel_mask is not None:
        hidden = ~pixel_mask[index].to(scores.device).bool()
        scores = scores.masked_fill(hidden, 0.0)
        if outputs.class_queries_logits is None:
            scores[0] = scores[0].masked_fill(hidden, 1.0)
    return scores


def most_probable(scores: torch.Tensor) -> torch.Tensor:
    """
    The class of every pixel, `(height, width)`, `int64`, by scores `(num_labels, height, width)`;
    [`IGNORE_INDEX`] where no class has any, as where the image shows nothing.
    """
    highest, classes = scores.max(dim=0)
    return classes.masked_fill(highest == 0, IGNORE_INDEX)


def _check_finite(outputs, index: int) -> None:
    """Raises `ValueError` if the logits of a tile are not all finite; names their data type."""
    queries = outputs.class_queries_logits is not None
    for logits in (outputs.masks_queries_logits, outputs.class_queries_logits) if queries else (outputs.logits,):
        if not logits[index].isfinite().all():
            dtype = str(logits.dtype).removeprefix("torch.")
            raise ValueError(
                f"The model computed numbers that are not finite (NaN or infinite) in {dtype}: "
                + ("numbers overflow, or " if logits.dtype == torch.float16 else "")
                + "the weights are damaged, as by a training that diverged. "
                + ("Use bfloat16 or float32." if logits.dtype == torch.float16 else "Use another checkpoint.")
            )


def blend_ramp(pixels: torch.Tensor, tile_size: int | torch.Tensor) -> torch.Tensor:
    """
    Weight of the pixels of a tile along one of its sides, when tiles are blended: a raised cosine (Hann window), which
    is nearly 0 at the edges. The window of a tile is the product of the ramps of its two sides.
    """
    ramp = torch.sin(torch.pi * (pixels + 0.5) / tile_size) ** 2
    return _EDGE_WEIGHT + (1 - _EDGE_WEIGHT) * ramp


class _Tiles:
    """Where the tiles of one image lie, and how much each counts where they overlap."""

    def __init__(self, patch_offsets: torch.Tensor):
        _, _, _, self.tile_size, *sizes, _ = patch_offsets[0].tolist()
        self.frame_size, self.image_size = tuple(sizes[:2]), tuple(sizes[2:])
        ramp = blend_ramp(torch.arange(self.tile_size), self.tile_size)
        self.window = ramp[:, None] * ramp
        self.weights = torch.zeros(self.frame_size)

    def place(self, row: torch.Tensor) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The tile's part of the frame, and the frame's part of the tile, which may go on beyond it."""
        frame = tuple(
            slice(first, min(first + self.tile_size, side))
            for first, side in zip(row[1:3].tolist(), self.frame_size, strict=True)
        )
        return frame, tuple(slice(0, part.stop - part.start) for part in frame)


class TileBlender(_Tiles):
    """
    Blends what was predicted for the tiles of an image into a map of the image's own size.

    Each tile is weighted by a raised-cosine (Hann) window, so that no seams show where tiles overlap.

    Args:
        patch_offsets (`torch.Tensor` of shape `(num_tiles, 9)`): Rows of one image.

    Example:

    ```python
    >>> blender = TileBlender(patch_offsets)
    >>> for index, row in enumerate(patch_offsets):
    ...     blender.add(row, tile_probabilities(outputs, index, (1024, 1024)))
    >>> probabilities = blender.result()
    ```
    """

    def __init__(self, patch_offsets: torch.Tensor):
        super().__init__(patch_offsets)
        self.total: torch.Tensor | None = None
        self.largest = 0.0

    def add(self, row: torch.Tensor, tile: torch.Tensor) -> None:
        """
        Add one tile.

        Args:
            row (`torch.Tensor` of shape `(9,)`): Where the tile lies, a row of `patch_offsets`.
            tile (`torch.Tensor` of shape `(num_labels, tile, tile)`): What was predicted for it.
        """
        frame, inside = self.place(row)
        if self.total is None:
            self.total = torch.zeros(tile.shape[0], *self.frame_size)
        self.largest = max(self.largest, tile.max().item())
        self.total[(..., *frame)] += tile[(..., *inside)].cpu() * self.window[inside]
        self.weights[frame] += self.window[inside]

    def result(self, size: tuple[int, int] | None = None) -> torch.Tensor:
        """
        The blended map.

        Args:
            size (`tuple[int, int]`, *optional*): Wanted height and width, by default the image's own.

        Returns:
            `torch.Tensor` of shape `(num_labels, height, width)`, `float32`, on the CPU.

        Raises:
            `ValueError`: if the tiles do not cover the image.
        """
        uncovered = int((self.weights == 0).sum())
        if uncovered:
            raise ValueError(
                f"The tiles do not cover {uncovered} of {self.weights.numel()} pixels of an image: give all of "
                "its tiles, in their order."
            )
        blended = (self.total / self.weights).clamp_(max=self.largest)  # a probability above 1 is a rounding error
        return resize_map(blended, self.image_size if size is None else size)


class StageBlender(_Tiles):
    """
    Joins the stages at which the tokens of an image's tiles were pruned. Where tiles overlap, a pixel has the stage
    of the tile whose centre is nearest.

    Args:
        patch_offsets (`torch.Tensor` of shape `(num_tiles, 9)`): Rows of one image.
    """

    def __init__(self, patch_offsets: torch.Tensor):
        super().__init__(patch_offsets)
        self.stages = torch.zeros(self.frame_size, dtype=torch.uint8)

    def add(self, row: torch.Tensor, tile: torch.Tensor) -> None:
        """
        Add one tile.

        Args:
            row (`torch.Tensor` of shape `(9,)`): Where the tile lies, a row of `patch_offsets`.
            tile (`torch.Tensor` of shape `(rows, columns)`): The stage of each token.
        """
        frame, inside = self.place(row)
        pixels = resize_map(tile[None].cpu(), (self.tile_size, self.tile_size), mode="nearest-exact")[0][inside]
        closer = self.window[inside] > self.weights[frame]
        self.stages[frame][closer] = pixels[closer].to(torch.uint8)
        self.weights[frame][closer] = self.window[inside][closer]

    def result(self) -> torch.Tensor:
        """The stages, `(height, width)` of the image's own size, `uint8`, on the CPU."""
        return resize_map(self.stages[None], self.image_size, mode="nearest-exact")[0]


def resize_map(pixels: torch.Tensor, size: tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
    """
    Resize a map.

    Args:
        pixels (`torch.Tensor` of shape `(channels, height, width)`): The map.
        size (`tuple[int, int]`): Wanted height and width.
        mode (`str`, *optional*, defaults to `"bilinear"`):
            That, or `"nearest-exact"` for numbers of classes or stages.

    Returns:
        `torch.Tensor` of shape `(channels, *size)`, of the same type.
    """
    size = tuple(int(side) for side in size)
    if pixels.shape[-2:] == size:
        return pixels
    return F.interpolate(pixels[None].float(), size=size, mode=mode)[0].to(pixels.dtype)
