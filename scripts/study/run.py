"""One run of a study: train it once, in a process of its own, then evaluate it; what is finished is not repeated."""

import contextlib
import logging
import multiprocessing.connection
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import yaml
from filelock import FileLock, Timeout

from ..training.checkpoints import list_checkpoints
from .definition import Study
from .drift import measure_run as measure_drift
from .evaluation import evaluate_run
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

LOG_TAIL = 15


def end_with_parent() -> None:
    """
    Let this process of a study, and the training that it has started, end when the study does, even if it is killed:
    nobody would wait for them, and the next study would find the folder in use. The training saves a full state.
    """

    def watch(parent: int) -> None:
        multiprocessing.connection.wait([parent])
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        os._exit(1)

    sentinel = multiprocessing.parent_process().sentinel
    threading.Thread(target=watch, args=(sentinel,), daemon=True).start()


def complete_run(study: Study, runs_dir: Path, variant: str, seed: int, num_processes: int = 1) -> None:
    """
    Bring a run to its end, from wherever it stands.

    Raises:
        `ValueError`: if the run was begun with another recipe.
        `RuntimeError`: if another process is at it, or the training fails; then the message ends in the tail of its
            log.
    """
    folder, recipe = RunFolder(runs_dir, variant, seed), study.run_recipe(variant, seed)
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.path / "lock", blocking=False):
            folder.check_recipe(recipe)
            if not folder.is_trained:
                _train(folder, recipe, num_processes)
            evaluate_run(study, folder)
            if variant in study.compare:
                measure_drift(folder, study.shown_rate)
    except Timeout as error:
        raise RuntimeError(f"another process is working on {folder.path}; wait for its end.") from error


def _train(folder: RunFolder, recipe: dict, num_processes: int) -> None:
    folder.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
    for measured in (folder.evaluation, folder.per_image, folder.drift):
        measured.unlink(missing_ok=True)
    resumes = bool(list_checkpoints(folder.training))
    command = [sys.executable, "-m"]
    if num_processes > 1:
        command += ["accelerate.commands.launch", "--num_processes", str(num_processes), "-m"]
    command += ["reg4pru", "train", str(folder.recipe), "--output_dir", str(folder.training)]
    # Without a checkpoint there is nothing to lose in the folder of an interrupted run.
    command += ["--resume_from_checkpoint", "latest"] if resumes else ["--overwrite_output_dir", "true"]
    with folder.log.open("a" if resumes else "w") as log:
        finished = subprocess.run(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TQDM_DISABLE": "1"},
            check=False,
        )
    if finished.returncode or not folder.is_trained:
        tail = "\n".join(folder.log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
        raise RuntimeError(f"the training ended with exit code {finished.returncode}; {folder.log} ends in\n{tail}")
