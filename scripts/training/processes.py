"""The processes of a training: that they know of each other, that no other run writes into their folder, their end."""

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from filelock import FileLock, Timeout

LOCK = ".lock"
# The workers of a loader outlive a run that was killed by some seconds, and its lock with them.
PATIENCE_SECONDS = 10


def check_processes(num_processes: int) -> None:
    """
    Raises:
        `ValueError`: if more processes were started than belong together: each would train alone, in one folder; or
            if FSDP was asked for where Accelerate, which knows it on accelerators only, would leave it out unsaid.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > num_processes:
        raise ValueError(
            f"{started} processes were started (WORLD_SIZE), but this one would train with {num_processes}: without a "
            "GPU set ACCELERATE_USE_CPU=true; with GPUs start as many processes as there are."
        )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and PartialState().device.type == "cpu":
        raise ValueError("FSDP was asked for (ACCELERATE_USE_FSDP), but Accelerate shards on GPUs and the like only.")


def is_begun(output_dir: Path) -> bool:
    """Whether a folder holds anything."""
    return output_dir.exists() and any(path.name != LOCK for path in output_dir.iterdir())


def check_writable(output_dir: Path) -> None:
    """
    Refuse a folder that cannot be written to, without leaving anything there.

    Raises:
        `ValueError`
    """
    place = output_dir.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"--output_dir is {output_dir}: {place} cannot be written to: {error.strerror}.") from error


@contextlib.contextmanager
def sole_run(output_dir: Path, writes: bool) -> Iterator[None]:
    """
    Hold the folder of a run while it writes there.

    Args:
        output_dir (`Path`): The folder; made if it is not there.
        writes (`bool`): Whether this process is the one of the run that writes; the others hold nothing.

    Raises:
        `ValueError`: if another run holds it.
    """
    if not writes:
        yield
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir / LOCK, timeout=PATIENCE_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"Another run writes to {output_dir}: wait for its end, end it, or choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def leave_processes(accelerator: Accelerator) -> None:
    """
    End a training. The wrapped model must go before the process group does: with gloo, freeing it afterwards waits for
    the group's thread while holding Python's lock, which that thread waits for, and one process in three hangs for
    ever. Call it where no variable holds the prepared model, optimiser or loaders any more.

    Args:
        accelerator (`Accelerator`): It lets go of everything that it has prepared.
    """
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
