"""Fingerprints of weights: results belong to the weights they were measured on."""

import hashlib
import json

import torch
from transformers import BaseImageProcessor

from modeling_reg4pru import Reg4PruForSemanticSegmentation

# Of a configuration, what another version, or a copy on the Hub, writes otherwise and no prediction depends on.
IRRELEVANT = ("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype")


def fingerprint_model(model: Reg4PruForSemanticSegmentation, processor: BaseImageProcessor) -> dict[str, str]:
    """Of the weights as they were loaded, those from the Hub, too, and of what the model does with them."""
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    both = [model.config.to_diff_dict(), processor.to_dict()]
    both = [{name: value for name, value in one.items() if name not in IRRELEVANT} for one in both]
    configuration = hashlib.blake2b(json.dumps(both, sort_keys=True, default=str).encode(), digest_size=16)
    return {"weights": weights.hexdigest(), "configuration": configuration.hexdigest()}
