"""Selectors and drift corrections apart from the model they belong to: a few MB that are put on it again."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file

from .backbone_loading import HUB_ARGUMENTS, PRUNING_WEIGHTS
from .configuration_reg4pru import Reg4PruConfig
from .modeling_reg4pru import Reg4PruForSemanticSegmentation
from .speed_budget import fingerprint_tensors

# Not `adapter_config.json`, by which transformers knows an adapter of PEFT.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "pruning_adapter.json", "pruning_adapter.safetensors"
# Fields of the configuration that say how tokens are pruned.
PRUNING_FIELDS = (
    "pruning_layers", "keep_rates", "selector", "train_pruning", "selection_pool", "blend_share_weight", "allocation",
    "reactivation_layer", "drift_correction", "context_grid", "routing", "token_multiple",
)  # fmt: skip


def add_pruning(base: Reg4PruForSemanticSegmentation, seed: int = 0, **fields) -> Reg4PruForSemanticSegmentation:
    """
    The same model with new, untrained selectors and drift corrections; those that it had are left out. Unpruned it
    predicts what `base` predicts, to the bit.

    Args:
        base ([`Reg4PruForSemanticSegmentation`]): The model. It is not changed.
        seed (`int`, *optional*, defaults to 0): Of the initial weights of what is new.
        fields: Of [`Reg4PruConfig`], those that differ, such as `pruning_layers`.

    Raises:
        `ValueError`: for fields that do not fit the model.
    """
    known = {name: value for name, value in base.config.to_dict().items() if name in Reg4PruConfig.default_fields()}
    config = Reg4PruConfig.from_dict({**known, **fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Reg4PruForSemanticSegmentation(config)
    model.load_state_dict(_other_weights(base), strict=False)
    return model.to(base.device, base.dtype).eval()


def save_pruning_adapter(model: Reg4PruForSemanticSegmentation, folder: str | os.PathLike, base_model: str) -> None:
    """
    Write selectors, drift corrections and the fields that they belong to.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): With both.
        folder (`str` or `os.PathLike`): Where to; it is made.
        base_model (`str`): Hub id or folder of the model without them, for whoever reads the file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if _prunes(name)}
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    fields = {name: getattr(model.config, name) for name in PRUNING_FIELDS}
    content = {"base_model": base_model, "base_weights": fingerprint_without_pruning(model), "config": fields}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_pruning_adapter(
    base_model: str, adapter: str | os.PathLike, *, dtype: torch.dtype = torch.float32, **hub
) -> Reg4PruForSemanticSegmentation:
    """
    A model with the selectors and drift corrections that were fitted for it.

    Args:
        base_model (`str`): Hub id or folder of the EoMT or Reg4Pru model.
        adapter (`str` or `os.PathLike`): Hub id or folder of what [`save_pruning_adapter`] wrote.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Of all weights.
        hub: What `from_pretrained` takes to find files (`token`, `cache_dir`, ...); it holds for both.

    Returns:
        [`Reg4PruForSemanticSegmentation`]: in evaluation mode.

    Raises:
        `ValueError`: if the adapter was fitted to other weights than those of `base_model`.
        `OSError`: if one of them is not there.
    """
    unknown = sorted(set(hub) - set(HUB_ARGUMENTS))
    if unknown:
        raise ValueError(f"load_pruning_adapter got {', '.join(unknown)}; known are {', '.join(HUB_ARGUMENTS)}.")
    found = {name: cached_file(str(adapter), name, **hub) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    content = json.loads(Path(found[ADAPTER_CONFIG]).read_text(encoding="utf-8"))
    base = Reg4PruForSemanticSegmentation.from_pretrained(base_model, dtype=torch.float32, **hub)
    weights = fingerprint_without_pruning(base)
    if weights != content["base_weights"]:
        raise ValueError(
            f"{adapter} was fitted to {content['base_model']}, whose weights have the fingerprint "
            f"{content['base_weights']}, but {base_model} has {weights}: it fits those weights only."
        )
    model = add_pruning(base, **content["config"])
    missing, unexpected = model.load_state_dict(load_file(found[ADAPTER_WEIGHTS]), strict=False)
    wrong = [*(name for name in missing if _prunes(name)), *unexpected]
    if wrong:
        raise ValueError(
            f"{adapter} does not hold what its {ADAPTER_CONFIG} says: {wrong[0]} is missing or unexpected."
        )
    return model.to(dtype)


def fingerprint_without_pruning(model: Reg4PruForSemanticSegmentation) -> str:
    """Fingerprint of all weights of a model but those of selectors and drift corrections."""
    return fingerprint_tensors(_other_weights(model))


def _prunes(name: str) -> bool:
    return name.startswith(PRUNING_WEIGHTS)


def _other_weights(model: Reg4PruForSemanticSegmentation) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not _prunes(name)}


__all__ = ["add_pruning", "fingerprint_without_pruning", "load_pruning_adapter", "save_pruning_adapter"]
