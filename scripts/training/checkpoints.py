"""Full-state checkpoints: written beside and renamed, so that a killed run never leaves half of one."""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import load


def save_checkpoint(accelerator: Accelerator, output_dir: Path, progress: dict, total_limit: int) -> None:
    """
    Save model, optimiser, schedule, average and random states as `checkpoints/step-<n>`.

    Args:
        accelerator (`Accelerator`): Holds what is saved.
        output_dir (`Path`): Folder of the run.
        progress (`dict`): Step and best validation so far.
        total_limit (`int`): How many checkpoints are kept; the oldest go.
    """
    folder = output_dir / "checkpoints"
    unfinished = folder / "unfinished"
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (unfinished / "progress.json").write_text(json.dumps(progress))
        finished = folder / f"step-{progress['step']:08d}"
        shutil.rmtree(finished, ignore_errors=True)
        unfinished.rename(finished)
        for old in list_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted((output_dir / "checkpoints").glob("step-*"))


def find_checkpoint(output_dir: Path, wanted: str) -> str | None:
    """
    Folder of the checkpoint to resume from.

    Args:
        output_dir (`Path`): Folder of the run.
        wanted (`str`): A folder, `"latest"`, or empty for none.

    Raises:
        `ValueError`: if there is no such checkpoint, or its states hold more than numbers.
    """
    if not wanted:
        return None
    if wanted == "latest":
        found = list_checkpoints(output_dir)
        if not found:
            raise ValueError(
                f"{output_dir} has no checkpoint to resume from: nothing in {output_dir / 'checkpoints'}."
            )
        wanted = str(found[-1])
    if not (Path(wanted) / "progress.json").is_file():
        raise ValueError(f"{wanted} is no full state of `reg4pru train`: it has no progress.json.")
    check_states(Path(wanted))
    return wanted


def check_states(folder: Path) -> None:
    """
    Refuse states that would run code when they are unpickled. Accelerate reads those of schedule and average without
    `weights_only`, and goes on silently where it cannot read the random states. What can be read with `weights_only`
    names nothing but numbers and containers, and reading it again any other way calls nothing else.

    Args:
        folder (`Path`): A checkpoint.

    Raises:
        `ValueError`: naming the file.
    """
    for path in sorted([*folder.glob("*.pkl"), *folder.glob("*.bin")]):
        try:
            load(path, map_location="cpu", weights_only=True)
        # Damaged files make unpickling stumble in any way; what they hold may be anything.
        except Exception as error:
            raise ValueError(
                f"{path} is damaged, or holds more than numbers, and could run code: resume only from a state that "
                "your own training wrote."
            ) from error
