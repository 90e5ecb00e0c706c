"""Devices and number formats that a command can compute on and in."""

import logging

import torch

logger = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    The data type that was the fastest of those that cost no accuracy, in `reg4pru benchmark --engines`: `"bfloat16"`
    where the device computes in it, a GPU since Ampere or a CPU with AVX-512 BF16, AMX or Arm's BF16, else
    `"float32"`.

    Args:
        device (`str`, *optional*): As in [`usable_device`].

    Raises:
        `ValueError`: if the device cannot be used.
    """
    kind = usable_device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        abilities = torch.cpu.get_capabilities() if kind == "cpu" else {}
        native = any(abilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last: ARM
    return "bfloat16" if native else "float32"


def warn_of_emulation(mixed_precision: str, device: str | None = None) -> None:
    """
    Warn that a training in bfloat16 computes in an emulation of it, where the device has no instructions for it.

    Args:
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`.
        device (`str`, *optional*): As in [`usable_device`].
    """
    if mixed_precision == "bf16" and fast_dtype(device) == "float32":
        logger.warning(
            "bf16 has no instructions on this machine and is emulated: a step can take more than ten times as long as "
            "in float32 (--mixed_precision no; Trainer: --bf16 false)."
        )
