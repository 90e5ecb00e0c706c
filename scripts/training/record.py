"""What a run is, written down when it begins, in `run.json`; one that goes on must be the same."""

import json
from pathlib import Path

import datasets
import torch

from ..provenance import provenance
from ..training_photographs import describe_data
from ..whole_files import replace_text
from .checkpoints import writing

FILE = "run.json"


def describe_run(
    arguments: dict, sides: dict[str, datasets.Dataset | datasets.IterableDataset], device: torch.device, seed: int
) -> dict:
    """`provenance` (command, commit, versions, device), `arguments` (recipe and flags) and `data` of a run."""
    return {"provenance": provenance(device, seed), "arguments": arguments, "data": describe_data(sides)}


def begin_record(output_dir: Path, record: dict, goes_on: bool, writes: bool) -> None:
    """
    Args:
        output_dir (`Path`): Folder of the run.
        record (`dict`): From [`describe_run`].
        goes_on (`bool`): Whether the run was begun before.
        writes (`bool`): Whether this process is the one that writes.

    Raises:
        `ValueError`: if a run that goes on has other data than it began with.
        [`TrainingError`]: if the file could not be written.
    """
    path = output_dir / FILE
    if goes_on and path.is_file():
        began, now = json.loads(path.read_text())["data"], record["data"]
        if began != now:
            raise ValueError(f"The data are not those that the run in {output_dir} began with: {began}, now {now}.")
    if writes:
        with writing(output_dir, FILE):
            replace_text(path, json.dumps(record, indent=2) + "\n")
