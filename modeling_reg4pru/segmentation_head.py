"""EoMT's heads: from query and patch tokens to masks, classes and the mask that queries attend through."""

import torch
import torch.nn.functional as F
from torch import nn

from .distributed import draw_for_images

# Upscaled features are many times as large as all else. Above some 32 MiB the allocator of a CPU takes memory from the
# system and gives it back, page by page, at every call; below it the caches help, too.
BAND_BYTES = 1 << 23
# On an accelerator, where only the memory matters that many large tiles of one budget would take.
ACCELERATOR_BYTES = 1 << 30


def query_masks(queries: torch.Tensor, features: torch.Tensor, upscale: nn.Module) -> torch.Tensor:
    """
    Mask logits: the product of each query with the upscaled features. At inference it is computed in parts, on a CPU
    band by band, so that the upscaled features never exist as a whole: the same numbers in less memory and time.

    Args:
        queries (`torch.Tensor` of shape `(batch, num_queries, hidden_size)`): From EoMT's mask head.
        features (`torch.Tensor` of shape `(batch, hidden_size, rows, columns)`): Patch tokens on their grid.
        upscale (`Reg4PruScaleBlock`): EoMT's scale block, whose layers each double rows and columns and then look one
            row and column to every side.

    Returns:
        `torch.Tensor` of shape `(batch, num_queries, scale * rows, scale * columns)`
    """
    compiles = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    if torch.is_grad_enabled() or compiles:
        return torch.einsum("bqc,bchw->bqhw", queries, upscale(features))
    scale = 2 ** len(upscale.block)
    batch, channels, num_rows, num_columns = features.shape
    row_bytes = scale**2 * num_columns * channels * features.element_size()
    part = BAND_BYTES if features.device.type == "cpu" else ACCELERATOR_BYTES
    at_once = max(1, part // (num_rows * row_bytes))
    height = max(1, part // row_bytes)
    images, matrices = [], []
    for first in range(0, batch, at_once):
        some, of_some = features[first : first + at_once], queries[first : first + at_once]
        bands = []
        for top in range(0, num_rows, height):
            # What a band lacks beyond its edges reaches less than one row of patches into it: 2^n - 1 of 2^n rows.
            start, end = max(top - 1, 0), min(top + height + 1, num_rows)
            upscaled = upscale(some[:, :, start:end], matrices)[:, :, scale * (top - start) :][:, :, : scale * height]
            bands.append(torch.einsum("bqc,bchw->bqhw", of_some, upscaled))
        images.append(torch.cat(bands, dim=2))
    return torch.cat(images)


def semantic_logits(mask_logits: torch.Tensor, class_logits: torch.Tensor | None) -> torch.Tensor:
    """
    Class scores of every pixel.

    Args:
        mask_logits (`torch.Tensor` of shape `(batch, num_queries, height, width)`): Mask logits.
        class_logits (`torch.Tensor` of shape `(batch, num_queries, num_labels + 1)`, *optional*): Class logits.

    Returns:
        `torch.Tensor` of shape `(batch, num_labels, height, width)`: [0, m] for a single vessel query, else the
        logarithm of the semantic scores that EoMT's post-processing computes.
    """
    if class_logits is None:
        return torch.cat((torch.zeros_like(mask_logits), mask_logits), dim=1)
    class_probability = class_logits.float().softmax(-1)[..., :-1]
    scores = torch.einsum("bqc,bqhw->bchw", class_probability, mask_logits.float().sigmoid())
    return (scores + torch.finfo(scores.dtype).tiny).log().to(mask_logits.dtype)


def allowed_patches(mask_logits: torch.Tensor, grid_size: tuple[int, int], probability: torch.Tensor) -> torch.Tensor:
    """
    EoMT's masked attention (arXiv 2503.19108, Sec. 3.3): a query looks only at the patches inside its mask so far,
    unless the annealing frees it.

    Args:
        mask_logits (`torch.Tensor` of shape `(batch, num_queries, height, width)`): Masks so far.
        grid_size (`tuple[int, int]`): Rows and columns of patches.
        probability (`torch.Tensor` of shape `()`): That a query is masked.

    Returns:
        `torch.Tensor` of shape `(batch, num_queries, num_patches)`: True where it may look.
    """
    inside = F.interpolate(mask_logits, size=grid_size, mode="bilinear").flatten(2) > 0
    images, queries = inside.shape[:2]
    draws = draw_for_images(lambda count: torch.rand(count, queries, device=inside.device), images)
    return inside | (draws > probability)[..., None]


def mask_probability(block: int, num_blocks: int, progress: float) -> float:
    """
    Probability that the queries of a block are masked: block i of n goes from 1 to 0 between (3i + 2) / (3n + 3) and
    (3i + 4) / (3n + 3) of training, as (1 - t)^0.9 (EoMT, arXiv 2503.19108, Sec. 3.3 and its published recipes).

    Args:
        block (`int`): Which of the blocks with queries, from 0.
        num_blocks (`int`): How many there are.
        progress (`float`): Fraction of training that has passed, in [0, 1].
    """
    passed = (progress * (3 * num_blocks + 3) - (3 * block + 2)) / 2
    return (1 - min(max(passed, 0.0), 1.0)) ** 0.9
