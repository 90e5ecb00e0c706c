"""Checkpoints, loaded for inference: what every command that predicts has in common."""

import logging

import torch
from safetensors import SafetensorError
from transformers import BaseImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17: see modeling_reg4pru/__init__

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation
from modeling_reg4pru.input_checks import check_inputs
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
    device = usable_device(device)
    model = load_model(model_name_or_path, revision, DTYPES[dtype])
    try:
        processor = AutoImageProcessor.from_pretrained(model_name_or_path, revision=revision or "main")
    except OSError as error:
        raise ValueError(f"No image processor could be loaded from {model_name_or_path!r}: {error}") from error
    check_binary(model.config)
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


def usable_device(name: str | None = None) -> torch.device:
    """
    The device of a name; by default the first GPU, if there is one.

    Raises:
        `ValueError`: if it cannot be used.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise ValueError(f"The device {name!r} cannot be used: {error}") from error


def fast_dtype(device: str | None = None) -> str:
    """
    The data type that was the fastest of those that cost no accuracy, in `reg4pru engines`: `"bfloat16"` where the
    device computes in it, a GPU or a CPU with AVX-512 BF16 or AMX, else `"float32"`.

    Args:
        device (`str`, *optional*): As in [`load_checkpoint`].

    Raises:
        `ValueError`: if the device cannot be used.
    """
    kind = usable_device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        abilities = torch.cpu.get_capabilities() if kind == "cpu" else {}
        native = any(abilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bfloat16" if native else "float32"


def warn_of_emulation(mixed_precision: str, device: str | None = None) -> None:
    """
    Say aloud that a training in bfloat16 computes in an emulation of it, where the device has no instructions for it.

    Args:
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`.
        device (`str`, *optional*): As in [`load_checkpoint`].
    """
    if mixed_precision == "bf16" and fast_dtype(device) == "float32":
        logger.warning(
            "bf16 has no instructions on this machine and is emulated: a step can take more than ten times as long as "
            "in float32 (--mixed_precision no; Trainer: --bf16 false)."
        )


def select_at_random(model: Reg4PruForSemanticSegmentation) -> None:
    """Replace the selectors of a loaded model by chance: the control for what selecting contributes."""
    # The field of the configuration stays: it also says how the model was trained, which this does not change.
    model.selectors = torch.nn.ModuleList([RandomSelector(model.config) for _ in model.config.pruning_layers])


def training_size(config: Reg4PruConfig) -> int:
    """Side of the square that the model was trained at, the shorter one where `config.image_size` is no square."""
    return config.image_size if isinstance(config.image_size, int) else min(config.image_size)


def check_binary(config: Reg4PruConfig) -> None:
    """Raises `ValueError` unless the model tells background and foreground apart."""
    if config.num_labels != 2:
        raise ValueError(
            f"The model tells {config.num_labels} classes apart (`num_labels`): vessel probabilities need 2, "
            "background and vessel."
        )
