"""Checkpoints, loaded for inference: what every command that predicts has in common."""

import logging

import torch
from safetensors import SafetensorError
from transformers import BaseImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation
from modeling_reg4pru.input_checks import check_inputs
from modeling_reg4pru.token_selectors import RandomSelector

from ..common.devices import DTYPES, usable_device

logger = logging.getLogger(__name__)


def load_checkpoint(
    model_name_or_path: str,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    num_labels: int | None = None,
) -> tuple[Reg4PruForSemanticSegmentation, BaseImageProcessor]:
    """
    Load a model, in evaluation mode, and its image processor.

    Args:
        model_name_or_path (`str`): A folder written by `save_pretrained`, or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        device (`str`, *optional*): Where to; by default the first GPU, if there is one.
        dtype (`str`, *optional*, defaults to `"float32"`): `"float32"`, `"bfloat16"` or `"float16"`.
        num_labels (`int`, *optional*): How many classes the model must have; any number by default.

    Raises:
        `ValueError`: If there is no such checkpoint, device or type, the checkpoint is not complete, or it has another
            number of classes.
    """
    if dtype not in DTYPES:
        raise ValueError(f"The data type is {dtype!r}: it must be one of {', '.join(DTYPES)}.")
    device = usable_device(device)
    model = load_model(model_name_or_path, revision, DTYPES[dtype])
    try:
        processor = AutoImageProcessor.from_pretrained(model_name_or_path, revision=revision or "main")
    except OSError as error:
        raise ValueError(f"No image processor could be loaded from {model_name_or_path!r}: {error}") from error
    if num_labels not in (None, model.config.num_labels):
        names = ", ".join(model.config.id2label.values())
        raise ValueError(
            f"The model of {model_name_or_path!r} tells {model.config.num_labels} classes apart ({names}): this needs "
            f"one of {num_labels}."
        )
    return model.to(device), processor


def load_model(
    model_name_or_path: str, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> Reg4PruForSemanticSegmentation:
    """
    The model of a checkpoint alone, of any number of classes, in evaluation mode; arguments as in [`load_checkpoint`].

    Raises:
        `ValueError`: If there is no such checkpoint, or it is not complete.
    """
    try:
        model = Reg4PruForSemanticSegmentation.from_pretrained(
            model_name_or_path, revision=revision or "main", dtype=dtype
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"No checkpoint could be loaded from {model_name_or_path!r}: {error}") from error
    return model.eval()


def check_image_size(config: Reg4PruConfig, height: int, width: int) -> None:
    """Raises `ValueError` unless the model takes images of this size."""
    if min(height, width) < 1:
        raise ValueError(f"The images are {height} x {width} pixels: both sides must be at least 1.")
    check_inputs(config, torch.empty(1, config.num_channels, height, width, device="meta"), None)


def select_at_random(model: Reg4PruForSemanticSegmentation) -> None:
    """Replace the selectors of a loaded model by chance: the control for what selecting contributes."""
    # The field of the configuration stays: it also says how the model was trained, which this does not change.
    model.selectors = torch.nn.ModuleList([RandomSelector(model.config) for _ in model.config.pruning_layers])


def training_size(config: Reg4PruConfig) -> int:
    """Side of the square that the model was trained at, the shorter one where `config.image_size` is no square."""
    return config.image_size if isinstance(config.image_size, int) else min(config.image_size)
