"""One run of a study: train it once, in a process of its own, then evaluate it; what is finished is not repeated."""

import contextlib
import json
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
from transformers import BaseImageProcessor

from datasets_fives.evaluation import measure
from datasets_fives.metrics import METRICS
from modeling_reg4pru import Reg4PruForSemanticSegmentation

from ..inference.keep_rates import predictors, rate_name
from ..inference.loading import load_checkpoint, select_at_random
from ..training.arguments import parse_arguments
from ..training.checkpoints import list_checkpoints
from ..training.data import load_data
from .plan import AS_TRAINED, Study

logger = logging.getLogger(__name__)

LOG_TAIL = 15


class RunFolder:
    """
    Where a run keeps things: `recipe.yaml` (all that it was told), `train.log`, `training/` (what the training writes)
    and `evaluation.json`.
    """

    def __init__(self, runs_dir: Path, arm: str, seed: int):
        self.path = runs_dir.absolute() / arm / f"seed-{seed}"
        self.recipe = self.path / "recipe.yaml"
        self.log = self.path / "train.log"
        self.training = self.path / "training"
        self.evaluation = self.path / "evaluation.json"

    @property
    def checkpoint(self) -> Path:
        """The averaged weights after the last step: no photograph is used to select among earlier ones."""
        return self.training / "last"

    @property
    def is_trained(self) -> bool:
        return (self.training / "train_results.json").is_file()

    def stands(self) -> str:
        """Where a running run stands: the step of its training, or that it is being measured."""
        log = self.training / "training_log.jsonl"
        if self.is_trained:
            return "measuring"
        lines = log.read_text().splitlines() if log.is_file() else []
        return f"step {json.loads(lines[-1])['step']}" if lines else "starting"

    def check_recipe(self, wanted: dict) -> None:
        """Raises `ValueError` if the run was begun with another recipe."""
        if not self.recipe.is_file():
            return
        recorded, wanted = (_flat(recipe) for recipe in (yaml.safe_load(self.recipe.read_text()), wanted))
        differences = [
            f"{name} was {recorded.get(name, 'unset')}, is {wanted.get(name, 'unset')}"
            for name in sorted(recorded.keys() | wanted.keys())
            if recorded.get(name, "unset") != wanted.get(name, "unset")
        ]
        if differences:
            raise ValueError(
                f"{self.path} was begun with other settings: {'; '.join(differences)}. Move it away or delete it, to "
                "train anew, or choose another --runs_dir."
            )

    def results(self) -> dict[str, dict[str, dict[str, float]]]:
        """Pooled metrics by evaluation and keep rate, as far as they have been measured."""
        return json.loads(self.evaluation.read_text()) if self.evaluation.is_file() else {}


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


def complete_run(study: Study, runs_dir: Path, arm: str, seed: int, num_processes: int = 1) -> None:
    """
    Bring a run to its end, from wherever it stands.

    Raises:
        `ValueError`: if the run was begun with another recipe.
        `RuntimeError`: if another process is at it, or the training fails; then the message ends in the tail of its
            log.
    """
    folder, recipe = RunFolder(runs_dir, arm, seed), study.run_recipe(arm, seed)
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.path / "lock", blocking=False):
            folder.check_recipe(recipe)
            if not folder.is_trained:
                _train(folder, recipe, num_processes)
            _evaluate(study, folder)
    except Timeout as error:
        raise RuntimeError(f"another process is working on {folder.path}; wait for its end.") from error


def _train(folder: RunFolder, recipe: dict, num_processes: int) -> None:
    folder.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
    folder.evaluation.unlink(missing_ok=True)
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


def _evaluate(study: Study, folder: RunFolder) -> None:
    """Measure what is missing, evaluation by evaluation, on the test photographs."""
    results = folder.results()
    photographs = None
    for name, settings in study.evaluations.items():
        done = results.setdefault(name, {})
        # Without pruning nothing that an evaluation changes has an effect.
        if name != AS_TRAINED:
            done.update({rate: row for rate, row in results[AS_TRAINED].items() if float(rate) == 1})
        missing = [rate for rate in study.keep_rates if rate_name(rate) not in done]
        if not missing:
            continue
        model, processor = load_evaluated(folder, settings)
        if photographs is None:
            _, data_arguments, arguments = parse_arguments([str(folder.recipe), "--output_dir", str(folder.training)])
            photographs = load_data(data_arguments, arguments.seed)["test"]
        measured = measure(predictors(model, processor, missing, batch_size=16), photographs)
        for rate, metrics in measured.items():
            pooled = metrics.compute()["pooled"]
            done[rate] = {metric: pooled[metric] for metric in METRICS}
        unfinished = folder.evaluation.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(results, indent=2) + "\n")
        unfinished.rename(folder.evaluation)


def load_evaluated(folder: RunFolder, settings: dict) -> tuple[Reg4PruForSemanticSegmentation, BaseImageProcessor]:
    """The trained model of a run and its image processor, changed as an evaluation wants it."""
    model, processor = load_checkpoint(str(folder.checkpoint))
    for name, value in settings.items():
        if name == "selector":
            select_at_random(model)
        else:
            setattr(model.config, name, value)
    return model, processor


def _flat(recipe: dict) -> dict:
    """The recipe with the fields of `config_overrides` beside the others, to name a difference exactly."""
    recipe = dict(recipe)
    config = recipe.pop("config_overrides", {})
    return {**recipe, **{f"config {name}": value for name, value in config.items()}}
