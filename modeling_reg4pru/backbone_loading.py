"""Loading the weights of a plain vision transformer, from a folder, a file or the Hub, into a Reg4Pru model."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, EomtForUniversalSegmentation, logging

from .backbone_families import RENAMES, guess_heads, position_grid, read_fields, rename, timm_fields
from .configuration_reg4pru import Reg4PruConfig

logger = logging.get_logger(__name__)

# What finds a checkpoint and never becomes part of a configuration.
HUB_ARGUMENTS = ("token", "revision", "cache_dir", "subfolder", "local_files_only", "force_download")
# Licences that bind whoever goes on from the weights, by what the checkpoint is called.
LICENCES = {
    "dinov3": "the DINOv3 licence (https://ai.meta.com/resources/models-and-libraries/dinov3-license)",
    "retfound": "CC BY-NC 4.0 (no commercial use)",
}
# By their names, which `from_pretrained` takes, too.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
# Weights that only pruning needs: no other model has a counterpart of them.
PRUNING_WEIGHTS = ("selectors.", "drift_corrections.")
# Weights that a checkpoint may lack: they are learned anew.
MAY_BE_NEW = (*PRUNING_WEIGHTS, "class_predictor.", "criterion.", "attn_mask_probs")
# Fields that the weights decide: a configuration that differs in one of them does not fit.
ARCHITECTURE_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
    "num_channels", "num_register_tokens", "query_bias", "key_bias", "value_bias", "use_gated_mlp", "positions",
    "position_grid",
)  # fmt: skip


class Backbone(NamedTuple):
    """
    Weights of a plain vision transformer in our names, the fields of [`Reg4PruConfig`] that they decide, and those
    that they do not tell, which the user may know better.
    """

    fields: dict
    weights: dict[str, torch.Tensor]
    guesses: dict


def read_backbone(checkpoint: str, **hub: object) -> Backbone:
    """
    Read a checkpoint.

    Args:
        checkpoint (`str`): Hub id or folder of a `DINOv3ViTModel`, `Dinov2Model`, `Dinov2WithRegistersModel`,
            `ViTModel` or `ViTMAEModel` of transformers, or of a timm model; or a file (`.pth`, `.safetensors`) in
            timm's names, such as RETFound's.
        hub: See [`HUB_ARGUMENTS`].

    Raises:
        `ValueError`: If it is none of these, or lacks weights.
        `OSError`: If there is no such checkpoint.
    """
    for name, licence in LICENCES.items():
        if name in str(checkpoint).lower():
            logger.warning("The weights of %s are under %s.", checkpoint, licence)
    if Path(checkpoint).is_file():
        return _timm_backbone("", _read_state_dict(Path(checkpoint)))
    timm = _timm_config(checkpoint, hub)
    if timm is not None:
        return _timm_backbone(timm["architecture"], _read_state_dict(_timm_weights(checkpoint, hub)))

    config = AutoConfig.from_pretrained(checkpoint, **hub)
    known = sorted(RENAMES.keys() - {"eomt", "timm"})  # whole models, and names without a configuration
    if config.model_type not in known:
        raise ValueError(
            f"{checkpoint} is a {config.model_type!r}: plain vision transformers are known as {', '.join(known)}; "
            "EoMT and Reg4Pru models are loaded by `from_pretrained`."
        )
    model, loading = AutoModel.from_pretrained(checkpoint, output_loading_info=True, **hub)
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(f"{checkpoint} lacks {len(missing)} weights of its model, such as {missing[0]}.")
    weights = rename(model.state_dict(), config.model_type, position_grid(config))
    return Backbone(read_fields(config, weights), weights, {})


def _timm_backbone(architecture: str, state_dict: dict[str, torch.Tensor]) -> Backbone:
    weights = rename(state_dict, "timm")
    fields = timm_fields(architecture, weights)
    return Backbone(fields, weights, {"num_attention_heads": guess_heads(fields["hidden_size"])})


def read_eomt(checkpoint: str, **hub: object) -> dict[str, torch.Tensor]:
    """The weights of an EoMT model on DINOv2 in our names; arguments as for [`read_backbone`]."""
    model, loading = EomtForUniversalSegmentation.from_pretrained(checkpoint, output_loading_info=True, **hub)
    check_loading(loading["missing_keys"], checkpoint)
    return rename(model.state_dict(), "eomt")


def check_loading(missing_keys: Iterable[str], checkpoint: str) -> None:
    """
    What a checkpoint lacks is filled with random numbers, whose results would look like the checkpoint's. Selectors
    may be new (a warning), and so may the class head.

    Raises:
        `ValueError`: if anything else is missing.
    """
    missing = sorted(missing_keys)
    wrong = [name for name in missing if not name.startswith(MAY_BE_NEW)]
    if wrong:
        raise ValueError(
            f"The checkpoint {checkpoint!r} lacks {len(wrong)} weights of the model, such as {wrong[0]}: it is no "
            "Reg4Pru or EoMT model, or its configuration does not fit its weights. A plain vision transformer is "
            "loaded by `from_backbone`."
        )
    if any(name.startswith("selectors.") for name in missing):
        logger.warning("%s has no trained selectors: below a keep rate of 1 it prunes at random.", checkpoint)
    if any(name.startswith("drift_corrections.") for name in missing):
        logger.warning("%s has no trained drift corrections: pruned tokens come back unchanged.", checkpoint)


def check_backbone(config: Reg4PruConfig, backbone: Backbone, checkpoint: str) -> None:
    """
    Raises:
        `ValueError`: naming every field in which the configuration differs from the architecture of the checkpoint.
    """
    differences = [
        f"`{name}` is {getattr(config, name)}, the checkpoint has {backbone.fields[name]}"
        for name in ARCHITECTURE_FIELDS
        if name in backbone.fields
        and getattr(config, name) != backbone.fields[name]
        # The first layers of a deeper backbone are a backbone, too.
        and not (name == "num_hidden_layers" and config.num_hidden_layers < backbone.fields[name])
    ]
    if "rope_parameters" in backbone.fields:
        theta, wanted = config.rope_parameters["rope_theta"], backbone.fields["rope_parameters"]["rope_theta"]
        if theta != wanted:
            differences.append(f"`rope_theta` is {theta}, the checkpoint has {wanted}")
    if differences:
        raise ValueError(f"The configuration does not fit the backbone {checkpoint}: {'; '.join(differences)}.")


def with_dtype(kwargs: dict) -> dict:
    """
    Arguments for loading with `dtype` where they have `torch_dtype`, as it was called before transformers 5.

    Raises:
        `ValueError`: if both are given, and differ.
    """
    if "torch_dtype" not in kwargs:
        return kwargs
    named = {name: value for name, value in kwargs.items() if name != "torch_dtype"}
    if named.setdefault("dtype", kwargs["torch_dtype"]) != kwargs["torch_dtype"]:
        raise ValueError(
            f"`dtype` is {named['dtype']} and `torch_dtype`, its former name, {kwargs['torch_dtype']}: give `dtype`."
        )
    return named


def load_backbone(model: nn.Module, backbone: Backbone, dtype: torch.dtype | str | None = None) -> None:
    """
    Copy embeddings, layers and final norm into a model. A patch kernel of another size is resampled; of more layers
    than the model has the first are taken; a LayerScale that the family lacks is one; a bias that it lacks is zero.

    Args:
        dtype (`torch.dtype` or `str`, *optional*): What the model turns into, as `from_pretrained` takes it: a type,
            its name, or `"auto"` for that of the checkpoint. Default: the model stays as it is.

    Raises:
        `ValueError`: for another `dtype`, or naming a weight that is missing, left over or of another shape.
    """
    wanted_dtype = model.dtype if dtype is None else DTYPES.get(dtype, dtype)
    if dtype == "auto":
        wanted_dtype = next(iter(backbone.weights.values())).dtype
    if wanted_dtype not in DTYPES.values():
        raise ValueError(f"`dtype` is {dtype!r}: it must be 'auto' or one of {', '.join(DTYPES)}.")
    parts = ("embeddings.", "layers.", "layernorm.")
    wanted = {name: weight for name, weight in model.state_dict().items() if name.startswith(parts)}
    depth = model.config.num_hidden_layers
    dropped = {name for name in backbone.weights if name.startswith("layers.") and int(name.split(".")[1]) >= depth}
    if dropped:
        logger.warning("Only the first %d of the %d layers are taken.", depth, backbone.fields["num_hidden_layers"])
    weights = {name: weight for name, weight in backbone.weights.items() if name not in dropped}
    kernel = "embeddings.patch_embeddings.weight"
    weights[kernel] = resample_patch_kernel(weights[kernel], model.config.patch_size)
    for name, weight in wanted.items():
        if name.endswith(".lambda1"):
            weights.setdefault(name, torch.ones_like(weight))
        elif weight.numel() == 0 or (name.endswith(".bias") and not _has_anywhere(backbone, name)):
            weights.setdefault(name, torch.zeros_like(weight))
    left_over, missing = sorted(weights.keys() - wanted.keys()), sorted(wanted.keys() - weights.keys())
    if left_over or missing:
        raise ValueError(
            f"The weights are no plain vision transformer: missing {missing[:3] or 'none'}, unknown "
            f"{left_over[:3] or 'none'}."
        )
    for name, weight in weights.items():
        if weight.shape != wanted[name].shape:
            raise ValueError(f"{name} has shape {tuple(weight.shape)}, needed is {tuple(wanted[name].shape)}.")
    with torch.no_grad():
        for name, weight in weights.items():
            wanted[name].copy_(weight)
    model.to(wanted_dtype)


def _has_anywhere(backbone: Backbone, name: str) -> bool:
    """Whether any layer has the weight: one that a single layer lacks is missing, not absent in the family."""
    part = re.sub(r"^layers\.\d+\.", "", name)
    return any(other == part or other.endswith(f".{part}") for other in backbone.weights)


def resample_patch_kernel(kernel: torch.Tensor, patch_size: int) -> torch.Tensor:
    """
    A patch kernel for patches of another size (FlexiViT, arXiv 2212.08013, Sec. 3.4): the pseudo-inverse of the
    resizing of patches, so that a patch that is enlarged to the new size has the same embedding as before.

    Args:
        kernel (`torch.Tensor` of shape `(hidden_size, channels, patch, patch)`): The kernel.
        patch_size (`int`): Side of the new patches.
    """
    old = kernel.shape[-1]
    if old == patch_size:
        return kernel
    basis = torch.eye(old**2, dtype=torch.float64).view(old**2, 1, old, old)
    resized = F.interpolate(basis, size=(patch_size, patch_size), mode="bilinear", antialias=True, align_corners=False)
    resize = resized.flatten(1).T  # (new * new, old * old): an old patch, flattened, to a new one
    weights = torch.linalg.pinv(resize.T) @ kernel.double().flatten(2).transpose(1, 2)
    return weights.transpose(1, 2).unflatten(2, (patch_size, patch_size)).to(kernel.dtype)


def _timm_config(checkpoint: str, hub: dict) -> dict | None:
    """The configuration of a timm model, which names an `architecture`; `None` for anything else."""
    try:
        path = _find(checkpoint, "config.json", hub)
    except (EntryNotFoundError, FileNotFoundError):
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    return config if "architecture" in config and "model_type" not in config else None


def _timm_weights(checkpoint: str, hub: dict) -> Path:
    try:
        return _find(checkpoint, "model.safetensors", hub)
    except (EntryNotFoundError, FileNotFoundError):
        return _find(checkpoint, "pytorch_model.bin", hub)


def _find(checkpoint: str, name: str, hub: dict) -> Path:
    """A file of a checkpoint, from its folder or from the Hub."""
    folder = Path(checkpoint)
    if folder.is_dir():
        path = folder / (hub.get("subfolder") or "") / name
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {name}.")
        return path
    if folder.is_absolute():
        raise OSError(f"There is no checkpoint at {checkpoint}.")
    return Path(hf_hub_download(checkpoint, name, **hub))


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a file; a file of pickled objects is read as weights only, whatever else it holds is refused."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("model", "state_dict", "teacher"):  # RETFound and MAE; timm's training; DINO
        if isinstance(content.get(key), dict):
            content = content[key]
    return {name: weight for name, weight in content.items() if isinstance(weight, torch.Tensor)}
