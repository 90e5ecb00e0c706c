"""Results that are published beside a checkpoint: only those that were measured with its weights."""

import json
from pathlib import Path

from modeling_reg4pru import Reg4PruConfig
from modeling_reg4pru.speed_budget import fingerprint_weights

from .transfer import copy_files


def check_measured(flag: str, path: str, content: dict, checkpoint: Path) -> None:
    """
    Args:
        flag (`str`): `"metrics"` for a file of `reg4pru evaluate`, `"benchmark"` for one of `reg4pru benchmark`.
        path (`str`): The file.
        content (`dict`): What it holds.
        checkpoint (`Path`): The checkpoint that it is to be published with.

    Raises:
        `ValueError`: if it is no such file, or nothing shows that its numbers are those of this checkpoint.
    """
    command, results = {"metrics": ("evaluate", "results"), "benchmark": ("benchmark", "inference")}[flag]
    again = f"To measure this checkpoint: reg4pru {command} --model_name_or_path {checkpoint} --output_dir NEW_FOLDER"
    if not isinstance(content, dict) or results not in content:
        raise ValueError(f"--{flag} is {path}, which was not written by reg4pru {command}. {again}")
    settings = content.get("settings") or content.get("arguments") or {}
    measured, weights = content.get("weights"), fingerprint_weights(checkpoint)
    if flag == "benchmark" and not settings.get("model_name_or_path"):
        raise ValueError(
            f"--{flag} is {path}, measured with random weights: these numbers belong to no checkpoint. {again}"
        )
    if not isinstance(measured, str):  # an early benchmark.json has the number of the weights here
        raise ValueError(
            f"--{flag} is {path}, which does not record the weights that were measured, as early versions did not: "
            f"nothing shows that its numbers are those of {checkpoint}. {again}"
        )
    if measured != weights:
        raise ValueError(
            f"--{flag} is {path}, measured with other weights than those of {checkpoint}: with "
            f"{settings.get('model_name_or_path')} of fingerprint {measured}, and here it is {weights}. {again}"
        )
    if settings.get("selector"):
        raise ValueError(
            f"--{flag} is {path}, measured with --selector {settings['selector']}: these numbers are those of a "
            f"control, not of the model. {again}"
        )
    config = Reg4PruConfig.from_pretrained(checkpoint)
    for name, own in (("selection_pool", config.selection_pool), ("allocation", config.allocation)):
        if settings.get(name) not in (None, own):
            raise ValueError(
                f"--{flag} is {path}, measured with --{name} {settings[name]}, but {checkpoint} is configured for "
                f"{own!r}. {again}"
            )


def stage_measured(path: Path, content: dict, folder: Path) -> None:
    """
    Copy a result file into `results` of the folder that is pushed. It names the weights there: saved anew, the files
    of the same weights may differ.

    Args:
        path (`Path`): The file.
        content (`dict`): What it holds; `weights` is set to the fingerprint of what is pushed.
        folder (`Path`): The folder that is pushed, with the weights.
    """
    copy_files([path], folder / "results")
    weights = fingerprint_weights(folder)
    if content["weights"] != weights:
        content["weights"] = weights
        raw = json.loads(path.read_text(encoding="utf-8")) | {"weights": weights}
        (folder / "results" / path.name).write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
