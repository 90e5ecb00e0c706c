"""Fingerprints of weights: results belong to the weights they were measured on."""

import hashlib
import json
from pathlib import Path

from transformers import BaseImageProcessor
from transformers.utils import cached_file

from modeling_reg4pru import Reg4PruForSemanticSegmentation, speed_budget
from modeling_reg4pru.speed_budget import fingerprint_weights

# Of a configuration, what another version, or a copy on the Hub, writes otherwise and no prediction depends on.
IRRELEVANT = ("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype")
# Fields that came later, with the value that does what was done before: so what was predicted then can be continued.
LATER = {"blend_share_weight": 0.0, "allocation": "tile", "tile_overlap": 0.25}


def fingerprint_checkpoint(model_name_or_path: str, revision: str | None = None) -> str:
    """
    [`~modeling_reg4pru.speed_budget.fingerprint_weights`] of a checkpoint that was loaded, the same as `speed.json`
    and every other result file have.

    Args:
        model_name_or_path (`str`): A folder written by `save_pretrained`, or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
    """
    if not Path(model_name_or_path).is_dir():  # where the loading has put the files of the Hub
        config = cached_file(model_name_or_path, "config.json", revision=revision or "main")
        return fingerprint_weights(Path(config).parent)
    return fingerprint_weights(model_name_or_path)


def measured_weights(model_name_or_path: str | None, revision: str | None = None) -> str | None:
    """[`fingerprint_checkpoint`] for what is measured with random weights, too: `None` then."""
    return fingerprint_checkpoint(model_name_or_path, revision) if model_name_or_path else None


def fingerprint_configuration(model: Reg4PruForSemanticSegmentation, processor: BaseImageProcessor) -> str:
    """Of what a model does with its weights, as it was loaded."""
    both = [model.config.to_diff_dict(), processor.to_dict()]
    both = [
        {
            name: value
            for name, value in one.items()
            if name not in IRRELEVANT and not (name in LATER and LATER[name] == value)
        }
        for one in both
    ]
    return hashlib.blake2b(json.dumps(both, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def fingerprint_tensors(model: Reg4PruForSemanticSegmentation) -> str:
    """Of the weights in memory: what `predictions.json` had before it had that of the checkpoint's files."""
    return speed_budget.fingerprint_tensors(model.state_dict())
