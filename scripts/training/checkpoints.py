"""Full-state checkpoints: never half of one, known to be whole when they are read, and the one before otherwise."""

import contextlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import load
from safetensors import SafetensorError

from ..common.atomic_files import replace_text
from ..common.data_overlap import write_training_images
from .interruption import TrainingError, resume_hint

logger = logging.getLogger(__name__)

SEAL = "files.json"  # size and CRC-32 of every other file of a full state; written last


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    progress: dict,
    total_limit: int,
    images: set[str] | None = None,
) -> None:
    """
    Save model, optimiser, schedule, average and random states as `checkpoints/step-<n>`: written beside and renamed.

    Args:
        accelerator (`Accelerator`): Holds what is saved.
        output_dir (`Path`): Folder of the run.
        progress (`dict`): Step and best validation so far.
        total_limit (`int`): How many checkpoints are kept; the oldest go.
        images (`set[str]`, *optional*): Fingerprints of the images that the weights have learned from.

    Raises:
        [`TrainingError`]: if the disk is full or cannot be written to; the states before are still there.
    """
    folder = output_dir / "checkpoints"
    unfinished = folder / "unfinished"
    accelerator.wait_for_everyone()
    with writing(output_dir, f"The full state of step {progress['step']}", unfinished):
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(unfinished))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (unfinished / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
            write_training_images(unfinished, images)
            seal(unfinished)
            finished = folder / f"step-{progress['step']:08d}"
            if finished.exists():
                discard(finished)
            unfinished.rename(finished)
            for old in list_checkpoints(output_dir)[:-total_limit]:
                discard(old)
    accelerator.wait_for_everyone()


@contextlib.contextmanager
def writing(
    output_dir: Path,
    what: str,
    unfinished: Path | None = None,
    states: Callable[[Path], list[Path]] | None = None,
) -> Iterator[None]:
    """
    Turn errors of the disk into a message that says where the run can be resumed.

    Args:
        output_dir (`Path`): Folder of the run.
        what (`str`): What is written, for the message.
        unfinished (`Path`, *optional*): Folder to remove if it could not be completed, to free its space.
        states (`Callable`, *optional*): Lists the full states of a folder; default [`list_checkpoints`].

    Raises:
        [`TrainingError`]
    """
    try:
        yield
    # RuntimeError: torch.save speaks of its writer, not of the disk.
    except (OSError, RuntimeError, SafetensorError) as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            f"{what} could not be written to {output_dir}: {reason}. Is the disk full or read-only? "
            f"{resume_hint((states or list_checkpoints)(output_dir))}"
        ) from error


def replace_files(unfinished: Path, folder: Path) -> None:
    """Move finished files into a folder one by one, over those of the same names: none is missing at any time."""
    folder.mkdir(exist_ok=True)
    for path in unfinished.iterdir():
        os.replace(path, folder / path.name)
    unfinished.rmdir()


def seal(folder: Path) -> None:
    """Note size and checksum of every file of a full state; a folder without the note was not finished."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    noted = {path.relative_to(folder).as_posix(): _checksum(path) for path in files}
    replace_text(folder / SEAL, json.dumps(noted))


def find_damage(folder: Path) -> str | None:
    """What is wrong with the files of a sealed full state, or `None`."""
    noted = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    for name, (size, checksum) in noted.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
        if _checksum(path) != [size, checksum]:
            return f"{name} has changed since it was written"
    return None


def discard(folder: Path) -> None:
    """Delete a full state; killed in between, what is left of it is not taken for one."""
    discarded = folder.with_name("discarded")
    shutil.rmtree(discarded, ignore_errors=True)
    folder.rename(discarded)
    shutil.rmtree(discarded)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Finished checkpoints of `reg4pru train`, oldest first."""
    return sorted((output_dir / "checkpoints").glob("step-*"))


def find_checkpoint(output_dir: Path, wanted: str) -> str | None:
    """
    Folder of the full state that `reg4pru train` resumes from.

    Args:
        output_dir (`Path`): Folder of the run.
        wanted (`str`): A folder, `"latest"`, or empty for none. `"latest"` skips damaged ones with a warning.

    Raises:
        `ValueError`: if there is no such state, none that is whole, or its files hold more than numbers.
    """
    if not wanted:
        return None
    if wanted == "latest":
        found = newest_intact(list_checkpoints(output_dir), output_dir / "checkpoints")
    elif (Path(wanted) / "progress.json").is_file():
        found = newest_intact([Path(wanted)], Path(wanted))
    else:
        raise ValueError(f"{wanted} is not a full state of `reg4pru train`: it has no progress.json.")
    check_pickles(Path(found))
    return found


def list_trainer_checkpoints(output_dir: Path) -> list[Path]:
    """Full states of a `Trainer` that were finished, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if (path / SEAL).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_trainer_checkpoint(output_dir: Path, wanted: str) -> str:
    """
    Folder of the full state that `reg4pru finetune` resumes from.

    Args:
        output_dir (`Path`): Folder of the run.
        wanted (`str`): A folder, or `"latest"`, which passes over states that were not finished or are damaged.

    Raises:
        `ValueError`: if there is no such state, or none that is whole.
    """
    if wanted == "latest":
        return newest_intact(list_trainer_checkpoints(output_dir), output_dir)
    if not (Path(wanted) / SEAL).is_file():
        raise ValueError(f"{wanted} is not a full state of `reg4pru finetune`, or was not finished: it has no {SEAL}.")
    return newest_intact([Path(wanted)], Path(wanted))


def newest_intact(states: list[Path], where: Path) -> str:
    """
    The newest of some full states, oldest first, that is not damaged; those of early versions have no seal to tell by.

    Raises:
        `ValueError`: if there is none.
    """
    if not states:
        raise ValueError(f"{where.parent} has no checkpoint to resume from: nothing in {where}.")
    damages = []
    for state in reversed(states):
        damage = find_damage(state) if (state / SEAL).is_file() else None
        if damage is None:
            if damages:
                logger.warning("%s. Continuing from the state before, %s.", "; ".join(damages), state)
            return str(state)
        damages.append(f"The full state {state} is damaged: {damage}")
    raise ValueError(f"{'; '.join(damages)}. There is no earlier one: start again in another --output_dir.")


def check_steps_left(state: str, step: int, total_steps: int) -> None:
    """Raises `ValueError` if a full state is further than the training that would continue from it."""
    if step > total_steps:
        raise ValueError(
            f"--resume_from_checkpoint is {state}, which is at step {step}: this training ends at step {total_steps}, "
            "and must not end before."
        )


def check_pickles(folder: Path) -> None:
    """
    Refuse states that would run code when they are unpickled. Accelerate reads those of schedule and average without
    `weights_only`, and continues silently where it cannot read the random states. What can be read with `weights_only`
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


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32, which a gigabyte takes less than a second for; it guards against damage, not against malice."""
    checksum = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return [size, checksum]
