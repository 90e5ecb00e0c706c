"""The record of a run, `run.json`: its settings and data, which must be the same when it is resumed."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import datasets
import torch

from ..common.atomic_files import replace_text
from ..common.data_overlap import FILE as IMAGES
from ..common.data_overlap import describe_data, read_training_images
from ..common.former_names import with_present_names
from ..common.provenance import provenance
from .checkpoints import writing
from .command_line import config_fields
from .optimization import fit_warmups

FILE = "run.json"
# What may change when a run is resumed: where files are, what it saves, logs and publishes, and how it reads.
HOUSEKEEPING = {
    "model_name_or_path", "model_revision", "backbone_name_or_path", "output_dir", "overwrite_output_dir",
    "resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit", "logging_steps", "report_to",
    "push_to_hub", "hub_model_id", "hub_private_repo", "overwrite_repo", "dataloader_num_workers",
}  # fmt: skip
# Data that were moved are the same data, which their fingerprint tells; of a stream there is none.
DATA_PLACES = {"dataset", "dataset_revision", "split"}
# What a full state restores, whatever the flags say.
RESTORED = {"learning_rate", "weight_decay", "layer_decay", "selector_learning_rate", "ema_decay"}


def settings_of(num_processes: int, *arguments: object) -> dict:
    """All flags of some dataclasses by name, and `num_processes`, which decides with them what a step learns from."""
    flags = {name: value for part in arguments for name, value in asdict(part).items()}
    return {**flags, "num_processes": num_processes}


def describe_run(
    settings: dict, sides: dict[str, datasets.Dataset | datasets.IterableDataset], device: torch.device, seed: int
) -> dict:
    """`provenance` (command, commit, versions, device), `arguments` (recipe and flags) and `data` of a run."""
    return {"provenance": provenance(device, seed), "arguments": settings, "data": describe_data(sides)}


def used_settings(settings: dict, total_steps: int) -> dict:
    """For `used` in a record: what a run uses in place of what it was asked for."""
    names = "head_warmup_steps", "backbone_warmup_steps"
    fitted = zip(names, fit_warmups(*(settings[name] for name in names), total_steps), strict=True)
    return {name: steps for name, steps in fitted if steps != settings[name]}


def read_record(output_dir: Path) -> dict | None:
    """The record of the run in a folder, or `None`."""
    path = output_dir / FILE
    return with_present_names(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def write_record(output_dir: Path, record: dict) -> None:
    """Write a record, from [`describe_run`]; raises [`TrainingError`] if the disk refuses it."""
    with writing(output_dir, FILE):
        replace_text(output_dir / FILE, json.dumps(record, indent=2) + "\n")


@contextlib.contextmanager
def forgotten_unless(output_dir: Path, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Where a run learns: if it fails before it has begun, its record goes, so that the folder is free for another."""
    try:
        yield
    except BaseException:
        if not has_begun():
            for name in (FILE, "training_log.jsonl"):
                (output_dir / name).unlink(missing_ok=True)
        raise


def check_state(state: Path, began: Path, same_run: bool, settings: dict) -> None:
    """
    A full state restores its optimiser, and schedules count to the last step: a resumed run ends in the weights of an
    uninterrupted one only with the settings that it began with.

    Args:
        state (`Path`): Folder of the full state to resume from.
        began (`Path`): Folder of the run that wrote it. Where that has no record, nothing is compared.
        same_run (`bool`): Whether that run is resumed; otherwise another one starts from its state, and may differ in
            everything that the state does not restore.
        settings (`dict`): Settings of this run, from [`settings_of`].

    Raises:
        `ValueError`: naming every setting that differs; or if a run would start from the state of another one of which
            nobody knows which images it has learned from.
    """
    if not (same_run or settings["streaming"]) and read_training_images(str(state)) is None:
        raise ValueError(
            f"--resume_from_checkpoint is {state}, which does not say which images it has learned from (no "
            f"{IMAGES}): they could not be kept out of a later evaluation. Choose a state that does."
        )
    record = read_record(began)
    if record is None:
        return
    before, now = _flat(record["arguments"]), _flat(settings)
    # A record of an early version lacks the flags that came later.
    compared = {name for name in before.keys() | now.keys() if name in before or name.startswith("config_overrides")}
    if same_run:
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
            f"The full state {state} was trained with other settings: {'; '.join(differences)}. Use those settings, "
            "or start a new run in another --output_dir."
        )


def check_data(output_dir: Path, data: dict) -> None:
    """
    Args:
        output_dir (`Path`): Folder of a run that is resumed.
        data (`dict`): Of its record, from [`describe_run`].

    Raises:
        `ValueError`: if they are not those that it began with.
    """
    record = read_record(output_dir)
    if record is not None and record["data"] != data:
        raise ValueError(
            f"The data are not those that the run in {output_dir} began with: {record['data']}, now {data}."
        )


def collect_trained_on(own: set[str] | None, start: str, revision: str | None, state: str | None) -> set[str] | None:
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
    arguments = {name: None if value == "" else value for name, value in arguments.items()}  # both: not given
    overrides = config_fields(arguments.pop("config_overrides", []))
    return {**arguments, **{f"config_overrides {name}": value for name, value in overrides.items()}}
