"""The tracker of `reg4pru train --report_to`, such as TensorBoard or trackio."""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator

from .output_folder import LOCK


def start_tracker(accelerator: Accelerator, name: str, output_dir: Path, settings: dict) -> None:
    """
    Begin to report to a tracker, before anything else is written.

    Args:
        accelerator (`Accelerator`): Made with `log_with=name` and `project_dir=output_dir`.
        name (`str`): As Accelerate calls the tracker.
        output_dir (`Path`): Folder of the run.
        settings (`dict`): What the tracker shows as hyperparameters.

    Raises:
        `ValueError`: if it is not installed, or cannot be started; then nothing of it stays in the folder.
    """
    if not accelerator.log_with:
        raise ValueError(f"--report_to is {name}, which is not installed here.")
    before = set(output_dir.iterdir())
    try:
        accelerator.init_trackers("reg4pru", config=as_hyperparameters(settings))
    # A tracker may fail in any way: no account, no network, a value that it does not take.
    except Exception as error:
        for path in set(output_dir.iterdir()) - before - {output_dir / LOCK}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise ValueError(f"--report_to is {name}, which could not be started: {error}") from error


def as_hyperparameters(settings: dict) -> dict[str, int | float | str | bool]:
    """Settings as every tracker takes them: numbers and words; lists as JSON, and nothing where nothing was given."""
    return {
        name: value if isinstance(value, int | float | str) else json.dumps(value)
        for name, value in settings.items()
        if value is not None
    }
