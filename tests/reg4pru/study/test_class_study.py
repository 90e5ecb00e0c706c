"""A study of label maps of five classes: two variants, one seed, a few steps of a tiny model, in this process."""

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from reg4pru import train
from reg4pru.study import evaluation, runs
from reg4pru.study.definition import read_study
from reg4pru.study.evaluation import load_evaluated, read_images
from reg4pru.study.results import write_costs_and_figures, write_tables
from reg4pru.study.run_folder import RunFolder

NAMES = ["sky", "road", "tree", "car", "fence"]
RECIPE = {
    "config_overrides": {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
        "patch_size": 8, "num_upscale_blocks": 1, "num_blocks": 1, "num_queries": 6, "masked_attention": False,
        "pruning_layers": [0, 1], "reactivation_layer": 2, "routing": False, "train_num_points": 64,
    },
    "dataset": "streets", "working_size": 48, "per_device_train_batch_size": 2, "ema_decay": 0.5,
    "head_warmup_steps": 0, "backbone_warmup_steps": 0, "learning_rate": 1e-3, "augment_turns": False,
}  # fmt: skip
STUDY = {
    "recipe": "recipe.yaml", "overrides": {"max_train_steps": 2}, "seeds": [0], "keep_rates": [1.0, 0.5],
    "evaluations": [{"context_grid": 2}, {"working_size": 64}, {"selector": "random"}], "limit": 2,
    "compare": ["soft", "random"],
    "variants": {
        "soft": {"label": "soft mask", "config": {"train_pruning": "soft"}},
        "random": {"label": "random tokens", "config": {"selector": "random", "train_pruning": "hard"}},
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A study, and its images."""
    generator = np.random.default_rng(0)
    for side, count in (("train", 4), ("val", 1), ("test", 3)):
        for kind in ("images", "labels"):
            (tmp_path / "streets" / kind / side).mkdir(parents=True)
        for number in range(count):
            labels = np.kron(generator.integers(0, 5, (5, 6)), np.ones((8, 8))).astype(np.uint8)
            pixels = Image.fromarray(labels * 50).convert("RGB")
            pixels.save(tmp_path / "streets" / "images" / side / f"{side}{number}.png")
            Image.fromarray(labels).save(tmp_path / "streets" / "labels" / side / f"{side}{number}.png")
    (tmp_path / "streets" / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path


def test_classes_are_compared_by_mean_iou(folder, monkeypatch):
    def train_here(run: RunFolder, recipe: dict, num_processes: int) -> None:
        run.recipe.write_text(yaml.safe_dump(recipe))
        train.main([str(run.recipe), "--output_dir", str(run.training)])

    evaluated = []

    def load_noted(run: RunFolder, settings: dict):
        model, processor = load_evaluated(run, settings)
        evaluated.append((model.config.selector, settings, model.config.context_grid))
        return model, processor

    monkeypatch.setattr(runs, "_train", train_here)
    monkeypatch.setattr(evaluation, "load_evaluated", load_noted)
    monkeypatch.chdir(folder)
    study, runs_dir, results = read_study(folder / "small.yaml"), folder / "runs", folder / "results"
    for variant in study.variants:
        runs.complete_run(study, runs_dir, variant, 0)
    write_costs_and_figures(study, runs_dir, results, write_tables(study, runs_dir, results), cost_rounds=1)

    measured = RunFolder(runs_dir, "random", 0).results()
    of_rate = measured["as trained"]["0.5"]
    assert of_rate.keys() == {"mean_iou", "pixel_accuracy", "boundary_iou", *(f"iou_{name}" for name in NAMES)}
    assert measured["selector=random"] == measured["as trained"], "tokens were drawn as it is"
    others = ({"context_grid": 2}, {"working_size": 64})
    assert [settings for name, settings, _ in evaluated if name == "mlp"] == [{}, *others, {"selector": "random"}]
    assert [settings for name, settings, _ in evaluated if name == "random"] == [{}, *others]
    assert all(grid == settings.get("context_grid", 0) for _, settings, grid in evaluated)
    with (results / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 2
    place = ("random", "as trained", "0.5")
    (row,) = [row for row in rows if (row["variant"], row["evaluation"], row["keep_rate"]) == place]
    assert float(row["mean_iou"]) == of_rate["mean_iou"]
    table = (results / "table.md").read_text()
    assert "## Mean IoU, as trained" in table
    assert "## Change of mean IoU, context_grid=2" in table
    assert "all pixels of 2 test images, spread evenly, that have a label" in table
    assert "## Pixel accuracy against" in (results / "paired.md").read_text()
    assert "mean IoU over all pixels" in (results / "recipes.md").read_text()
    assert "more accurate (mean IoU)" in (results / "race.md").read_text()
    drawn = {path.name for path in results.glob("*.png")}
    assert drawn == {
        "drift.png",
        "keep_rates.png",
        "throughput.png",
        "race.png",
        "race_boundary_iou.png",
        "figure1.png",
        "stages.png",
    }
    for name in ("table.md", "paired.md", "recipes.md", "race.md"):
        assert "verage precision" not in (results / name).read_text()
    images = read_images(RunFolder(runs_dir, "random", 0))["as trained", "0.5"]
    assert [image["name"] for image in images] == ["test/test0", "test/test2"]
    assert all(0 <= image["iou_sky"] <= 1 for image in images)

    with (results / "drift.csv").open(newline="") as file:
        drift = list(csv.DictReader(file))
    assert [row["layer"] for row in drift] == list("0123") * 2
    assert all(0 <= float(row[name]) <= 1 for row in drift for name in ("mean_iou", "mean_iou_unpruned"))
    study.limit = 1
    with pytest.raises(ValueError, match=r"was measured on 2 images, not 1 images. Change `limit`, or move"):
        runs.complete_run(study, runs_dir, "soft", 0)
