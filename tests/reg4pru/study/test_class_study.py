"""A study of label maps of five classes from end to end: two variants, one seed, a few steps of a tiny model."""

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from reg4pru.study.evaluation import read_images
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
    "evaluations": [{"selector": "random"}, {"working_size": 64}], "compare": ["soft", "hard"],
    "variants": {
        "soft": {"label": "soft mask", "config": {"train_pruning": "soft"}},
        "hard": {"label": "hard", "config": {"train_pruning": "hard"}},
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A study, and its images."""
    generator = np.random.default_rng(0)
    for side, count in (("train", 4), ("val", 1), ("test", 2)):
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


@pytest.mark.timeout(900)
def test_classes_are_compared_by_mean_iou(folder, run_command):
    arguments = ("small.yaml", "--runs_dir", "runs", "--output_dir", "results", "--cost_rounds", 1)
    done = run_command("study", *arguments)
    assert done.returncode == 0, done.stderr
    measured = json.loads((folder / "runs/hard/seed-0/evaluation.json").read_text())["as trained"]["0.5"]
    assert measured.keys() == {"mean_iou", "pixel_accuracy", "boundary_iou", *(f"iou_{name}" for name in NAMES)}
    with (folder / "results/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2
    (row,) = [
        row for row in rows if (row["variant"], row["evaluation"], row["keep_rate"]) == ("hard", "as trained", "0.5")
    ]
    assert float(row["mean_iou"]) == measured["mean_iou"]
    table = (folder / "results/table.md").read_text()
    assert "## Mean IoU, as trained" in table
    assert "## Change of mean IoU, as trained" in table
    assert "all pixels of the test images that have a label" in table
    assert "## Pixel accuracy against" in (folder / "results/paired.md").read_text()
    assert "mean IoU over all pixels" in (folder / "results/recipes.md").read_text()
    assert "more accurate (mean IoU)" in (folder / "results/race.md").read_text()
    drawn = {path.name for path in (folder / "results").glob("*.png")}
    assert drawn == {"keep_rates.png", "throughput.png", "race.png", "figure1.png", "stages.png"}
    for name in ("table.md", "paired.md", "recipes.md", "race.md"):
        assert "verage precision" not in (folder / "results" / name).read_text()
    hard = read_images(RunFolder(folder / "runs", "hard", 0))["as trained", "0.5"]
    assert [image["name"] for image in hard] == ["test/test0", "test/test1"]
    assert all(0 <= image["iou_sky"] <= 1 for image in hard)
