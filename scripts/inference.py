"""From a photograph of any size to its vessel probability: what every script that predicts has in common."""

import logging

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, BaseImageProcessor

from datasets_fives.tiling import TileBlender, tile_grid
from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation
from modeling_reg4pru.token_selection import RandomSelector

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_checkpoint(
    model_name_or_path: str, revision: str | None = None, device: str | None = None, dtype: str = "float32"
) -> tuple[Reg4PruForSemanticSegmentation, BaseImageProcessor]:
    """
    Load a model, in evaluation mode, and its image processor.

    Args:
        model_name_or_path (`str`): A folder written by `save_pretrained`, or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        device (`str`, *optional*): Where to; by default the first GPU, if there is one.
        dtype (`str`, *optional*, defaults to `"float32"`): `"float32"`, `"bfloat16"` or `"float16"`.

    Raises:
        `ValueError`: If there is no such checkpoint, device or type, the checkpoint is not complete, or its model has
            not two classes.
    """
    if dtype not in DTYPES:
        raise ValueError(f"The data type is {dtype!r}: it must be one of {', '.join(DTYPES)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise ValueError(f"The device {device!r} cannot be used: {error}") from error
    try:
        model, loading = Reg4PruForSemanticSegmentation.from_pretrained(
            model_name_or_path, revision=revision or "main", dtype=DTYPES[dtype], output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(model_name_or_path, revision=revision or "main")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"No checkpoint could be loaded from {model_name_or_path!r}: {error}") from error
    _check_binary(model.config)
    # What a checkpoint lacks is filled with random numbers, whose results would look like the checkpoint's.
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("selectors."))
    if missing:
        raise ValueError(
            f"The checkpoint {model_name_or_path!r} lacks {len(missing)} weights of the model, such as {missing[0]}: "
            "it is no Reg4Pru or EoMT-DINOv3 model, or its configuration does not fit its weights."
        )
    if loading["missing_keys"]:
        logger.warning("%s has no trained selectors: below a keep rate of 1 it prunes at random.", model_name_or_path)
    return model.to(device).eval(), processor


def select_at_random(model: Reg4PruForSemanticSegmentation) -> None:
    """Replace the selectors of a loaded model by chance: the control for what selecting contributes."""
    # The field of the configuration stays: it also says how the model was trained, which this does not change.
    model.selectors = torch.nn.ModuleList([RandomSelector(model.config) for _ in model.config.pruning_layers])


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
    _check_binary(config)
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


def training_size(config: Reg4PruConfig) -> int:
    """Side of the square that the model was trained at, the shorter one where `config.image_size` is no square."""
    return config.image_size if isinstance(config.image_size, int) else min(config.image_size)


def _check_binary(config: Reg4PruConfig) -> None:
    if config.num_labels != 2:
        raise ValueError(
            f"The model tells {config.num_labels} classes apart (`num_labels`): vessel probabilities need 2, "
            "background and vessel."
        )
