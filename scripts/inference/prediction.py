"""From a photograph of any size to its vessel probability."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BaseImageProcessor

from datasets_fives.tiling import TileBlender, tile_grid
from modeling_reg4pru import Reg4PruForSemanticSegmentation

from .loading import check_binary, training_size


def predict_probability(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    image: Image.Image,
    keep_rates: float | list[float] | None = None,
    *,
    tile_size: int | None = None,
    overlap: int | None = None,
    batch_size: int = 4,
) -> np.ndarray:
    """Vessel probability of every pixel, `(height, width)` `float32`; see [`predict_with_stages`]."""
    return predict_with_stages(
        model, processor, image, keep_rates, tile_size=tile_size, overlap=overlap, batch_size=batch_size
    )[0]


@torch.inference_mode()
def predict_with_stages(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    image: Image.Image,
    keep_rates: float | list[float] | None = None,
    *,
    tile_size: int | None = None,
    overlap: int | None = None,
    batch_size: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Vessel probability of every pixel, and where tokens were pruned.

    The photograph keeps its resolution. One that is larger than a tile is cut into overlapping tiles whose
    probabilities are blended; one that is smaller is continued by its mirror image.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): A model of two classes. Its training mode is left as it was.
        processor (`BaseImageProcessor`): Its image processor, of which only the normalisation is used.
        image (`PIL.Image.Image`): The photograph.
        keep_rates (`float` or `list[float]`, *optional*): One rate for all stages or one per stage; by default those
            of the configuration.
        tile_size (`int`, *optional*): Side of the tiles, a multiple of the patch size; by default the size that the
            model was trained at (`config.image_size`).
        overlap (`int`, *optional*): Least number of pixels that neighbouring tiles share, a multiple of the patch
            size; by default a quarter of a tile.
        batch_size (`int`, *optional*, defaults to 4): Tiles per forward pass.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the probability `(height, width)` in `float32`, and the pruning stages
        `(ceil(height / patch), ceil(width / patch))` in `int64`, see [`pruning_stages`]. Where tiles overlap, the
        stage is that of the tile in whose middle the token lies.

    Raises:
        `ValueError`: If the model has not two classes, or a size does not fit.
    """
    config = model.config
    patch_size = config.patch_size
    tile = training_size(config) if tile_size is None else tile_size
    overlap = tile // 4 // patch_size * patch_size if overlap is None else overlap
    check_binary(config)
    if tile < patch_size or tile % patch_size:
        raise ValueError(
            f"Tiles of side {tile} do not fit: the side must be a multiple of the patch size {patch_size}."
        )
    if overlap % patch_size:
        raise ValueError(f"The overlap is {overlap}: it must be a multiple of the patch size {patch_size}.")
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}: it must be at least 1.")

    pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    # To whole patches, so that the tokens of all tiles lie on one grid.
    rows, columns = (max(tile, -(-side // patch_size) * patch_size) for side in (height, width))
    pixels = np.pad(pixels, ((0, rows - height), (0, columns - width), (0, 0)), mode="reflect")
    frame = processor(Image.fromarray(pixels), do_resize=False, return_tensors="pt").pixel_values

    blender = TileBlender(rows, columns, tile)
    token_weight = F.avg_pool2d(blender.window[None, None], patch_size)[0, 0]
    best_weight = torch.zeros(rows // patch_size, columns // patch_size, dtype=token_weight.dtype)
    stages = torch.zeros(rows // patch_size, columns // patch_size, dtype=torch.int64)

    corners = tile_grid(rows, columns, tile, overlap)
    was_training = model.training
    model.eval()
    for start in range(0, len(corners), batch_size):
        batch = corners[start : start + batch_size]
        tiles = torch.cat([frame[..., top : top + tile, left : left + tile] for top, left in batch])
        outputs = model(
            pixel_values=tiles.to(model.device, model.dtype), keep_rates=keep_rates, output_keep_masks=True
        )
        # Upsampled as logits, then softmax: a probability that is interpolated has softer edges.
        logits = F.interpolate(outputs.logits.float(), size=(tile, tile), mode="bilinear")
        probabilities = logits.softmax(dim=1)[:, 1].cpu()
        for index, (top, left) in enumerate(batch):
            blender.add(top, left, probabilities[index])
            if outputs.keep_masks is None:  # a model without pruning stages
                continue
            window = tuple(slice(edge // patch_size, (edge + tile) // patch_size) for edge in (top, left))
            closer = token_weight > best_weight[window]
            stages[window][closer] = pruning_stages(outputs.keep_masks[index]).cpu()[closer]
            best_weight[window][closer] = token_weight[closer]
    model.train(was_training)

    tokens = stages[: -(-height // patch_size), : -(-width // patch_size)]
    # Blending may leave [0, 1] by a rounding error.
    return blender.result()[:height, :width].clamp(0, 1).numpy(), tokens.numpy()


def pruning_stages(keep_masks: torch.Tensor) -> torch.Tensor:
    """
    The stage at which each token was pruned, counted from 0, and `num_stages` where it is active after the last one.
    With the selection pool `all` a token can come back; then the stage is the one at which it left for good.

    Args:
        keep_masks (`torch.Tensor` of shape `(num_stages, rows, columns)`, `bool`): True for active tokens.

    Returns:
        `torch.Tensor` of shape `(rows, columns)`, `int64`.
    """
    after = torch.arange(1, keep_masks.shape[0] + 1, device=keep_masks.device)[:, None, None]
    return (keep_masks * after).amax(dim=0)
