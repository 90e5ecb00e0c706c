"""The folder of one run of a study: where it keeps things, and how far it has come."""

import json
from pathlib import Path

import yaml

from ..training.arguments import DataArguments, ModelArguments, TrainArguments, parse_arguments


class RunFolder:
    """
    Where a run keeps things: `recipe.yaml` (all that it was told), `train.log`, `training/` (what the training
    writes), `evaluation.json` (metrics over all pixels), `per_image.csv` (those of every image) and `drift.csv`.

    What was measured is a record of its own: without the weights it still counts, and need not be measured again.
    """

    def __init__(self, runs_dir: Path, variant: str, seed: int):
        self.path = runs_dir / variant / f"seed-{seed}"
        self.recipe = self.path / "recipe.yaml"
        self.log = self.path / "train.log"
        self.training = self.path / "training"
        self.evaluation = self.path / "evaluation.json"
        self.per_image = self.path / "per_image.csv"
        self.drift = self.path / "drift.csv"

    @property
    def checkpoint(self) -> Path:
        """The averaged weights after the last step: no image is used to select among earlier ones."""
        return self.training / "last"

    @property
    def has_weights(self) -> bool:
        return self.checkpoint.is_dir()

    def weights(self) -> Path:
        """
        The folder of the trained weights.

        Raises:
            `ValueError`: where they are not here.
        """
        if not self.has_weights:
            raise ValueError(
                f"The run {self.path} was trained, but its weights are not here, and not all is measured that the "
                "study asks for. Bring them back, or move the folder away, to train it anew."
            )
        return self.checkpoint

    @property
    def is_trained(self) -> bool:
        return (self.training / "train_results.json").is_file()

    def arguments(self) -> tuple[ModelArguments, DataArguments, TrainArguments]:
        """What the run was told, as its training reads it."""
        return parse_arguments([str(self.recipe), "--output_dir", str(self.training)])

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


def _flat(recipe: dict) -> dict:
    """The recipe with the fields of `config_overrides` beside the others, to name a difference exactly."""
    recipe = dict(recipe)
    config = recipe.pop("config_overrides", {})
    return {**recipe, **{f"config {name}": value for name, value in config.items()}}
