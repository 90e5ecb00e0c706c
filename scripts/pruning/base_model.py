"""The dense model that is to be pruned, and its image processor."""

import logging
from collections.abc import Sequence
from statistics import median

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

logger = logging.getLogger(__name__)

# Models whose encoder is a plain ViT that also decodes: what this project can prune.
MODEL_TYPES = ("reg4pru", "eomt_dinov3", "eomt")
# What an image processor makes of the values of pixels.
PIXEL_FIELDS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def read_base(model_name_or_path: str, revision: str | None = None) -> Reg4PruForSemanticSegmentation:
    """
    The model to prune, in evaluation mode and float32.

    Args:
        model_name_or_path (`str`): Folder or Hub id of an EoMT model (DINOv2 or DINOv3) or of a Reg4Pru model.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.

    Raises:
        `ValueError`: for a checkpoint of another kind, or one that is not complete, with what can be done.
    """
    revision = revision or "main"
    try:
        config = AutoConfig.from_pretrained(model_name_or_path, revision=revision)
        if config.model_type not in MODEL_TYPES:
            raise ValueError(_refusal(model_name_or_path, config.model_type))
        # EoMT has no pruning stages: without these nothing is missing, and nothing is said to be.
        stages = {} if config.model_type == "reg4pru" else {"pruning_layers": [], "keep_rates": None}
        model = Reg4PruForSemanticSegmentation.from_pretrained(
            model_name_or_path, revision=revision, dtype=torch.float32, **stages
        )
    except (OSError, SafetensorError, HFValidationError) as error:
        raise ValueError(f"--model_name_or_path is {model_name_or_path}, which cannot be loaded: {error}") from error
    return model.eval()


def _refusal(name: str, model_type: str) -> str:
    known = ", ".join(MODEL_TYPES)
    if model_type in ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "vit_mae"):
        advice = (
            "It has no segmentation head yet: train one with reg4pru train --backbone_name_or_path, whose result is "
            "pruned already."
        )
    else:
        advice = (
            "Its encoder or decoder is no plain ViT, whose tokens could leave and come back. Fine-tune an EoMT or "
            "Reg4Pru checkpoint on the same data instead: reg4pru finetune."
        )
    return f"{name} is a {model_type!r} model; reg4pru prune takes {known}. {advice}"


def read_processor(
    model_name_or_path: str,
    config: Reg4PruConfig,
    image_sizes: Sequence[tuple[int, int]],
    revision: str | None = None,
    working_size: int | None = None,
) -> Reg4PruImageProcessor:
    """
    The image processor that cuts tiles for the pruned model: that of a Reg4Pru model; for EoMT's one with its
    normalisation and tiles, at the scale at which that one shows images, their shorter side as long as a tile.

    Args:
        model_name_or_path (`str`): The checkpoint.
        config ([`Reg4PruConfig`]): Its configuration.
        image_sizes (sequence of `tuple[int, int]`): Width and height of the images, whose median decides that scale.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        working_size (`int`, *optional*): Longer side of the images in pixels, if it is to be another.

    Raises:
        `ValueError`: if there is none, or its tiles are not as large as the model's input.
    """
    try:
        saved = AutoImageProcessor.from_pretrained(model_name_or_path, revision=revision or "main")
    except OSError as error:
        raise ValueError(f"No image processor could be loaded from {model_name_or_path}: {error}") from error
    height, width = config.input_size
    if type(saved).__name__ == "Reg4PruImageProcessor":
        processor = saved
        if working_size:
            processor.working_size = working_size
    else:
        tile = saved.size.get("shortest_edge") or saved.size.get("height")
        if not working_size:
            working_size = round(tile * median(max(size) / min(size) for size in image_sizes))
            logger.info(
                "Images are scaled to %d pixels (their longer side), as the checkpoint sees them.", working_size
            )
        processor = Reg4PruImageProcessor(
            size={"height": tile, "width": tile},
            working_size=working_size,
            num_labels=config.num_labels,
            **{name: getattr(saved, name) for name in PIXEL_FIELDS},
        )
    if (processor.size["height"], processor.size["width"]) != (height, width):
        raise ValueError(
            f"The image processor of {model_name_or_path} makes tiles of {processor.size['height']} pixels, but the "
            f"model's input (image_size) is {height}x{width}: they do not belong together."
        )
    return processor
