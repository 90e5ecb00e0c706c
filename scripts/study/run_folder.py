"""The folder of one run of a study: its files, and how far it has progressed."""

import json
from pathlib import Path

import yaml

from modeling_reg4pru.speed_budget import fingerprint_weights

from ..common.atomic_files import replace_text
from ..common.former_names import with_present_names
from ..training.arguments import DataArguments, ModelArguments, TrainArguments
from ..training.command_line import parse_arguments

# What follows the machine: whether its processor has bfloat16, and how often it may have to stop.
OF_THE_MACHINE = {"mixed_precision", "checkpointing_steps", "checkpoints_total_limit"}


class RunFolder:
    """
    The files of a run: `recipe.yaml` (all settings), `train.log`, `training/` (output of the training),
    `evaluation.json` (metrics over all pixels), `per_image.csv` (those of every image), `drift.csv`, and
    `measured_weights.json` (the fingerprint of the weights that these were measured with).

    What was measured counts without the weights, and is not measured again.
    """

    def __init__(self, runs_dir: Path, variant: str, seed: int):
        self.path = runs_dir / variant / f"seed-{seed}"
        self.recipe = self.path / "recipe.yaml"
        self.log = self.path / "train.log"
        self.training = self.path / "training"
        self.evaluation = self.path / "evaluation.json"
        self.per_image = self.path / "per_image.csv"
        self.drift = self.path / "drift.csv"
        self.measured_weights = self.path / "measured_weights.json"

    @property
    def checkpoint(self) -> Path:
        """The averaged weights after the last step; no validation images are used to select earlier ones."""
        return self.training / "last"

    @property
    def has_weights(self) -> bool:
        return self.checkpoint.is_dir()

    def weights(self) -> Path:
        """
        The folder of the trained weights.

        Raises:
            `ValueError`: if they are missing.
        """
        if not self.has_weights:
            raise ValueError(
                f"The run {self.path} is trained, but its weights are missing, and not all evaluations are recorded. "
                "Restore the weights, or move the folder away to train the run again."
            )
        return self.checkpoint

    def check_measured(self, limit: int | None = None) -> None:
        """
        Note the fingerprint of the weights, and the `limit` of the study, before anything is measured. Records of
        early versions have none; they are kept as they are, and [`~reg4pru.study.runs.complete_runs`] names them in a
        warning.

        Raises:
            `ValueError`: if other weights or another number of images were measured.
        """
        known = (
            json.loads(self.measured_weights.read_text(encoding="utf-8")) if self.measured_weights.is_file() else {}
        )
        remedy = f"or move {', '.join(self._records())} away to measure again."
        if known and known.get("limit") != limit:
            counts = ["all images" if count is None else f"{count} images" for count in (known.get("limit"), limit)]
            raise ValueError(f"{self.path} was measured on {counts[0]}, not {counts[1]}. Change `limit`, {remedy}")
        if not self.has_weights:
            return
        weights = fingerprint_weights(self.checkpoint)
        if known and known["weights"] != weights:
            raise ValueError(
                f"{self.path} was measured with other weights (fingerprint {known['weights']}) than {self.checkpoint} "
                f"has now ({weights}). Restore these, {remedy}"
            )
        if not known and not self.is_unproven:
            limited = {} if limit is None else {"limit": limit}
            replace_text(self.measured_weights, json.dumps({"weights": weights, **limited}) + "\n")

    @property
    def is_unproven(self) -> bool:
        """Whether it was measured by an early version, which did not record the fingerprint of the weights."""
        return (self.evaluation.is_file() or self.drift.is_file()) and not self.measured_weights.is_file()

    def _records(self) -> list[str]:
        measured = (self.measured_weights, self.evaluation, self.per_image, self.drift)
        return [path.name for path in measured if path.is_file()]

    def remove_measurements(self) -> None:
        """Before the run is trained anew."""
        for name in self._records():
            (self.path / name).unlink()

    @property
    def is_trained(self) -> bool:
        return (self.training / "train_results.json").is_file()

    def arguments(self) -> tuple[ModelArguments, DataArguments, TrainArguments]:
        """The settings of the run, as its training parses them."""
        return parse_arguments([str(self.recipe), "--output_dir", str(self.training)])

    def progress(self) -> str:
        """Progress of an active run: the step of its training, or `"measuring"`."""
        log = self.training / "training_log.jsonl"
        if self.is_trained:
            return "measuring"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        return f"step {json.loads(lines[-1])['step']}" if lines else "starting"

    def check_recipe(self, wanted: dict) -> None:
        """
        Raises `ValueError` if the run was started with another recipe; that of a finished run may differ in
        [`OF_THE_MACHINE`].
        """
        if not self.recipe.is_file():
            return
        recorded, wanted = (
            _flat(with_present_names(yaml.safe_load(self.recipe.read_text(encoding="utf-8")))),
            _flat(wanted),
        )
        names = recorded.keys() | wanted.keys()
        if self.is_trained:
            names -= OF_THE_MACHINE
        differences = [
            f"{name} was {recorded.get(name, 'unset')}, is {wanted.get(name, 'unset')}"
            for name in sorted(names)
            if recorded.get(name, "unset") != wanted.get(name, "unset")
        ]
        if differences:
            raise ValueError(
                f"{self.path} was started with other settings: {'; '.join(differences)}. Move or delete it to train "
                "the run again, or choose another --runs_dir."
            )

    def results(self) -> dict[str, dict[str, dict[str, float]]]:
        """Pooled metrics measured so far, by evaluation and keep rate."""
        return (
            with_present_names(json.loads(self.evaluation.read_text(encoding="utf-8")))
            if self.evaluation.is_file()
            else {}
        )


def _flat(recipe: dict) -> dict:
    """The recipe with the fields of `config_overrides` beside the others, so that differences can be named exactly."""
    recipe = dict(recipe)
    config = recipe.pop("config_overrides", {})
    return {**recipe, **{f"config {name}": value for name, value in config.items()}}
