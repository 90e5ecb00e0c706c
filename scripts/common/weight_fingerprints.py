"""Fingerprints of weights: results belong to the weights they were measured on."""

import hashlib
import json
from pathlib import Path

import torch
from transformers import BaseImageProcessor

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.speed_budget import SPEED_FILE


def fingerprint_weights(folder: Path) -> str:
    """Of the bytes of all weight files of a checkpoint."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def check_tuned_weights(folder: Path, speed: dict) -> None:
    """
    Args:
        folder (`Path`): The checkpoint.
        speed (`dict`): Its `speed.json`.

    Raises:
        `ValueError`: if the checkpoint holds other weights than those that were measured.
    """
    if speed.get("weights") != fingerprint_weights(folder):
        raise ValueError(
            f"--model_name_or_path is {folder}: its {SPEED_FILE} was measured with other weights than it holds now. "
            f"`reg4pru tune` with --overwrite measures anew; or remove {SPEED_FILE}."
        )


# Of a configuration, what another version, or a copy on the Hub, writes otherwise and no prediction depends on.
IRRELEVANT = ("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype")


def fingerprints(model: Reg4PruForSemanticSegmentation, processor: BaseImageProcessor) -> dict[str, str]:
    """Of the weights as they were loaded, those from the Hub, too, and of what the model does with them."""
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    both = [model.config.to_diff_dict(), processor.to_dict()]
    both = [{name: value for name, value in one.items() if name not in IRRELEVANT} for one in both]
    configuration = hashlib.blake2b(json.dumps(both, sort_keys=True, default=str).encode(), digest_size=16)
    return {"weights": weights.hexdigest(), "configuration": configuration.hexdigest()}
