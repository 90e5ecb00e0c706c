"""The runs of a study: each is trained in a process of its own, then evaluated; what is finished is not repeated."""

import contextlib
import logging
import multiprocessing.connection
import os
import subprocess
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import psutil
import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from datasets_fives.features import list_some

from ..common.devices import warn_of_emulation
from ..training.checkpoints import list_checkpoints
from .definition import Study
from .drift import measure_run as measure_drift
from .evaluation import evaluate_run
from .run_folder import RunFolder

logger = logging.getLogger("study")
LOG_TAIL = 15
POLL_SECONDS = 2.0


def complete_runs(study: Study, runs_dir: Path, num_parallel: int, num_processes: int) -> int:
    """
    Finish all runs. A run that fails is reported, and the others continue.

    Returns:
        `int`: number of runs that failed.

    Raises:
        `ValueError`: if a run was started with other settings than the study has now; before any run starts.
    """
    runs = study.runs()
    unproven, trains_in_bf16 = [], False
    for variant, seed in runs:
        folder, recipe = RunFolder(runs_dir, variant, seed), study.run_recipe(variant, seed)
        folder.check_recipe(recipe)
        if folder.is_unproven:
            unproven.append(str(folder.path))
        trains_in_bf16 |= not folder.is_trained and recipe.get("mixed_precision") == "bf16"
    if unproven:
        logger.warning(
            "Measured by an early version, which did not record with which weights: %s. These numbers are taken as "
            "they are; move the records away to measure again.",
            list_some(unproven),
        )
    if trains_in_bf16:
        warn_of_emulation("bf16")
    num_failed = 0
    # Processes, not threads: random selection draws from torch's global generator.
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(num_parallel, mp_context=spawn, initializer=end_with_parent) as pool,
        tqdm(total=len(runs), desc=study.name, unit="run") as bar,
    ):
        futures = {
            pool.submit(complete_run, study, runs_dir, variant, seed, num_processes): (variant, seed)
            for variant, seed in runs
        }
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                variant, seed = futures[future]
                bar.update()
                if future.exception() is not None:
                    num_failed += 1
                    bar.write(f"{variant} seed {seed} failed: {future.exception()}", file=sys.stderr)
            active = [futures[future] for future in pending if future.running()]
            folders = {variant: RunFolder(runs_dir, variant, seed) for variant, seed in active}
            # The pool counts the next run as running, too, but it has no recipe yet.
            states = [f"{name}: {folder.progress()}" for name, folder in folders.items() if folder.recipe.is_file()]
            bar.set_postfix_str(", ".join(states))
    return num_failed


def end_with_parent() -> None:
    """
    End this worker process and the training that it started when the study ends, even if that is killed. Otherwise
    they would run on, and the next study would find the folder locked. The training saves its full state first.
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
    Do what is left of a run: training, evaluations and, for compared variants, drift.

    Raises:
        `ValueError`: if the run was started with another recipe, or measured with other weights than it has.
        `RuntimeError`: if another process works on it, or the training fails; the message then ends with the last
            lines of its log.
    """
    folder, recipe = RunFolder(runs_dir, variant, seed), study.run_recipe(variant, seed)
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.path / "lock", blocking=False):
            folder.check_recipe(recipe)
            if not folder.is_trained:
                _train(folder, recipe, num_processes)
            folder.check_measured(study.limit)
            evaluate_run(study, folder)
            if variant in study.compare:
                measure_drift(folder, study.shown_rate)
    except Timeout as error:
        raise RuntimeError(f"another process is working on {folder.path}; wait until it ends.") from error


def _train(folder: RunFolder, recipe: dict, num_processes: int) -> None:
    folder.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    folder.remove_measurements()
    resumes = bool(list_checkpoints(folder.training))
    command = [sys.executable, "-m"]
    if num_processes > 1:
        command += ["accelerate.commands.launch", "--num_processes", str(num_processes), "-m"]
    command += ["reg4pru", "train", str(folder.recipe), "--output_dir", str(folder.training)]
    # Without a checkpoint, the folder of an interrupted run contains nothing that could be lost.
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
        tail = "\n".join(folder.log.read_text(errors="replace", encoding="utf-8").splitlines()[-LOG_TAIL:])
        raise RuntimeError(f"the training ended with exit code {finished.returncode}; {folder.log} ends in\n{tail}")
