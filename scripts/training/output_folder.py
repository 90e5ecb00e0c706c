"""The output folder of a training: whether it can be written to, what in it is of a run, and that one run holds it."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
# The workers of a loader outlive a run that was killed by some seconds, and its lock with them.
PATIENCE_SECONDS = 10
WEIGHTS = ("best", "last")
# The results first: a run whose results are gone is no finished one, wherever the removal is interrupted.
_RECORDS = ("train_results.json", "run.json", "training_log.jsonl")
_OURS = '"model_type": "reg4pru"'


def holds_files(output_dir: Path) -> bool:
    """Whether a folder holds anything."""
    return output_dir.exists() and any(path.name != LOCK for path in output_dir.iterdir())


def is_inside(path: Path, folder: Path) -> bool:
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
            if source and Path(source).exists() and is_inside(Path(source), path):
                raise ValueError(
                    f"--{flag} is {source}, which --overwrite_output_dir would remove with {path}: choose another "
                    "--output_dir."
                )
    for name in WEIGHTS:
        config = output_dir / name / "config.json"
        if config.is_file() and not _is_checkpoint(config.parent):
            raise ValueError(
                f"--output_dir is {output_dir}, whose {name}/ holds a model that this command did not write and would "
                "overwrite: choose another."
            )


def remove_run(output_dir: Path) -> None:
    """Remove what runs have written into a folder; everything else stays."""
    for path in find_run_files(output_dir):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def lock_folder(output_dir: Path, writes: bool) -> Iterator[None]:
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
            f"Another run writes to {output_dir}: wait until it ends, stop it, or choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _is_checkpoint(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and _OURS in config.read_text(errors="replace", encoding="utf-8")
