"""What a run is, written down when it begins, in `run.json`; one that goes on must be the same."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import datasets
import torch

from ..common.atomic_files import replace_text
from ..common.data_overlap import FILE as IMAGES
from ..common.data_overlap import describe_data, read_training_images
from ..common.provenance import provenance
from .arguments import config_fields
from .checkpoints import writing

FILE = "run.json"
# What a run may be told anew when it goes on: where things lie, what it saves, logs and publishes, and how it reads.
HOUSEKEEPING = {
    "model_name_or_path", "model_revision", "backbone_name_or_path", "output_dir", "overwrite_output_dir",
    "resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit", "logging_steps", "report_to",
    "push_to_hub", "hub_model_id", "hub_private_repo", "overwrite_repo", "dataloader_num_workers",
}  # fmt: skip
# Data that were moved are the same data, which their fingerprint tells; of a stream there is none.
DATA_PLACES = {"dataset", "dataset_revision", "split"}
# What a full state brings along, whatever the flags say.
RESTORED = {"learning_rate", "weight_decay", "layer_decay", "selector_learning_rate", "ema_decay"}


def settings_of(num_processes: int, *told: object) -> dict:
    """All flags of some dataclasses by name, and `num_processes`, which decides with them what a step learns from."""
    flags = {name: value for part in told for name, value in asdict(part).items()}
    return {**flags, "num_processes": num_processes}


def describe_run(
    settings: dict, sides: dict[str, datasets.Dataset | datasets.IterableDataset], device: torch.device, seed: int
) -> dict:
    """`provenance` (command, commit, versions, device), `arguments` (recipe and flags) and `data` of a run."""
    return {"provenance": provenance(device, seed), "arguments": settings, "data": describe_data(sides)}


def check_state(state: Path, began: Path, goes_on: bool, settings: dict) -> None:
    """
    A full state restores its optimiser, and schedules count to the last step: a run that goes on ends in the weights
    of one that was never interrupted only with the settings that it began with.

    Args:
        state (`Path`): Folder of the full state to resume from.
        began (`Path`): Folder of the run that wrote it. Where that has no record, nothing is compared.
        goes_on (`bool`): Whether that run goes on; otherwise another one starts from its state, and may differ in all
            that the state does not bring along.
        settings (`dict`): What this run is told, from [`settings_of`].

    Raises:
        `ValueError`: naming every setting that differs; or if a run would start from the state of another one of which
            nobody knows which images it has learned from.
    """
    if not (goes_on or settings["streaming"]) and read_training_images(str(state)) is None:
        raise ValueError(
            f"--resume_from_checkpoint is {state}, which does not say which images it has learned from (no "
            f"{IMAGES}): nobody could keep them out of a measurement later. Take a state that says so."
        )
    if not (began / FILE).is_file():
        return
    before, now = _flat(json.loads((began / FILE).read_text())["arguments"]), _flat(settings)
    # A record of an early version lacks the flags that came later.
    compared = {name for name in before.keys() | now.keys() if name in before or name.startswith("config_overrides")}
    if goes_on:
        compared -= HOUSEKEEPING if settings["streaming"] else HOUSEKEEPING | DATA_PLACES
    else:
        compared &= RESTORED
    differences = [
        f"--{name} is {now.get(name, 'not given')}, was {before.get(name, 'not given')}"
        for name in sorted(compared)
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise ValueError(
            f"The full state {state} was trained with other settings: {'; '.join(differences)}. Give those that were, "
            "or start anew in another --output_dir."
        )


def check_data(output_dir: Path, data: dict) -> None:
    """
    Args:
        output_dir (`Path`): Folder of a run that goes on.
        data (`dict`): Of its record, from [`describe_run`].

    Raises:
        `ValueError`: if they are not those that it began with.
    """
    path = output_dir / FILE
    began = json.loads(path.read_text())["data"] if path.is_file() else data
    if began != data:
        raise ValueError(f"The data are not those that the run in {output_dir} began with: {began}, now {data}.")


def write_record(output_dir: Path, record: dict) -> None:
    """Write a record, from [`describe_run`]; raises [`TrainingError`] if the disk refuses it."""
    with writing(output_dir, FILE):
        replace_text(output_dir / FILE, json.dumps(record, indent=2) + "\n")


def learned_from(own: set[str] | None, start: str, revision: str | None, state: str | None) -> set[str] | None:
    """
    Fingerprints of all images that the weights of a run learn from, or have before it.

    Args:
        own (`set[str]`, *optional*): Those of its data; `None` for a stream, of which nobody knows.
        start (`str`): Checkpoint that it starts from; may be empty.
        revision (`str`, *optional*): Branch, tag or commit of that.
        state (`str`, *optional*): Full state that it resumes from, maybe that of another run.
    """
    if own is None:
        return None
    for checkpoint, its_revision in ((start, revision), (state, None)):
        if checkpoint:
            own = own | (read_training_images(checkpoint, its_revision) or set())
    return own


def _flat(arguments: dict) -> dict:
    """Settings with the fields of `config_overrides` beside the others, to name a difference exactly."""
    arguments = dict(arguments)
    overrides = config_fields(arguments.pop("config_overrides", []))
    return {**arguments, **{f"config_overrides {name}": value for name, value in overrides.items()}}


WEIGHTS = ("best", "last")
# The results first: a run whose results are gone is no finished one, wherever the removal is interrupted.
_RECORDS = ("train_results.json", "run.json", "training_log.jsonl")
_OURS = '"model_type": "reg4pru"'


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or something in it, as it is written or where links lead."""
    places = ((path.absolute(), folder.absolute()), (path.resolve(), folder.resolve()))
    return any(place in (inner, *inner.parents) for inner, place in places)


def find_run_files(output_dir: Path) -> list[Path]:
    """Files and folders that runs have written into a folder, in the order in which they can go."""
    names = [*_RECORDS, *(f"{name}.tmp" for name in _RECORDS), *(f"{name}.unfinished" for name in WEIGHTS)]
    states = output_dir / "checkpoints"
    found = [
        *(output_dir / name for name in names),
        *sorted(states.glob("step-[0-9]*")),
        *(states / name for name in ("unfinished", "discarded")),
        *(output_dir / name for name in WEIGHTS if _is_checkpoint(output_dir / name)),
    ]
    return [path for path in found if path.exists()]


def check_overwriting(output_dir: Path, sources: dict[str, str]) -> None:
    """
    Refuse to remove what a run needs, or what no run has written.

    Args:
        output_dir (`Path`): Folder of the run.
        sources (`dict[str, str]`): By flag, what the run starts from and learns from: a path, or something else.

    Raises:
        `ValueError`: naming the flag and the path.
    """
    for path in find_run_files(output_dir):
        for flag, source in sources.items():
            if source and Path(source).exists() and lies_in(Path(source), path):
                raise ValueError(
                    f"--{flag} is {source}, which --overwrite_output_dir would remove with {path}: choose another "
                    "--output_dir."
                )
    for name in WEIGHTS:
        config = output_dir / name / "config.json"
        if config.is_file() and not _is_checkpoint(config.parent):
            raise ValueError(
                f"--output_dir is {output_dir}, whose {name}/ holds a model that is none of ours, and the weights "
                "would be written there: choose another."
            )


def remove_run(output_dir: Path) -> None:
    """Remove what runs have written into a folder; everything else stays."""
    for path in find_run_files(output_dir):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_checkpoint(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and _OURS in config.read_text(errors="replace")
