"""End to end with classes of one's own: a folder of label maps to the Hub, trained, measured, predicted and pushed."""

import csv
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from datasets_fives import class_names, load_segmentation
from datasets_fives.metrics import ClassMetrics
from reg4pru import evaluate, predict, prepare, push, train

NAMES = ["sky", "road", "tree", "car", "fence"]
COLOURS = [(70, 130, 180), (90, 90, 90), (20, 120, 30), (200, 20, 40), (240, 200, 60)]
RECIPE = {
    "config_overrides": {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8,
        "image_size": 32, "num_upscale_blocks": 1, "num_blocks": 1, "train_num_points": 64, "masked_attention": False,
    },
    "working_size": 48, "max_train_steps": 6, "eval_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 3e-3,
    "head_warmup_steps": 0, "backbone_warmup_steps": 0, "ema_decay": 0.5, "augment_turns": False,
}  # fmt: skip


def make_folder(folder: Path, names: list[str], colours: list, ignored: int, palette: bool = False) -> None:
    """Images of coloured squares and their label maps, ten of 48 x 40 pixels."""
    generator = np.random.default_rng(0)
    for side, count in (("train", 6), ("val", 2), ("test", 2)):
        for kind in ("images", "labels"):
            (folder / kind / side).mkdir(parents=True)
        for number in range(count):
            labels = np.kron(generator.integers(0, len(names) + 1, (5, 6)), np.ones((8, 8), int))
            known = labels < len(names)
            pixels = np.array([*colours, (0, 0, 0)])[labels] + generator.normal(0, 8, (*labels.shape, 3))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / "images" / side / f"{side}{number}.png")
            label_map = Image.fromarray(np.where(known, labels, ignored).astype(np.uint8))
            if palette:
                label_map.putpalette(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8).tobytes())
            label_map.save(folder / "labels" / side / f"{side}{number}.png")
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(names))))


OWNER = f"""
import json
from pathlib import Path
import numpy as np
from PIL import Image
{inspect.getsource(make_folder)}
from reg4pru import evaluate, predict, prepare, push, train
make_folder(Path("streets"), {NAMES!r}, {COLOURS!r}, 11)
prepare.main(["--dataset", "streets", "--ignore_value", "11", "--output_dir", "prepared", "--push_to_hub",
              "--hub_dataset_id", "tester/streets", "--hub_private_repo"])
json.dump({RECIPE!r}, open("recipe.yaml", "w"))
train.main(["recipe.yaml", "--dataset", "tester/streets", "--output_dir", "run", "--push_to_hub",
            "--hub_model_id", "tester/segmenter", "--hub_private_repo"])
common = ["--model_name_or_path", "tester/segmenter", "--dataset", "tester/streets", "--keep_rates", "1.0", "0.5"]
assert evaluate.main([*common, "--output_dir", "measured"]) == 0
assert predict.main([*common, "--output_dir", "predicted", "--push_to_hub", "--hub_dataset_id", "tester/predicted",
                     "--hub_private_repo"]) == 0
push.main(["--model_name_or_path", "run/best", "--metrics", "measured/metrics.json", "--hub_model_id",
           "tester/segmenter", "--space", "tester/demo", "--hub_private_repo"])
"""

STRANGER = f"""
import json, re
import numpy as np
from datasets import load_dataset
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSemanticSegmentation, pipeline
rows = load_dataset("tester/streets", split="test")
predicted = {{(row["name"], row["keep_rate"]): row for row in load_dataset("tester/predicted", split="train")}}
assert rows.features["classes"].feature.names == {NAMES!r}
model = AutoModelForSemanticSegmentation.from_pretrained("tester/segmenter", trust_remote_code=True)
assert list(model.config.id2label.values()) == {NAMES!r}
assert type(model).__module__.startswith("transformers_modules."), "the code of the repository"
model.set_keep_rates(0.5)
segmenter = pipeline("image-segmentation", model=model, image_processor="tester/segmenter", trust_remote_code=True)
area = {{name: np.zeros(3, dtype=np.int64) for name in {NAMES!r}}}
for row in rows:
    labels, written = np.asarray(row["mask"]), predicted[row["name"], "0.5"]
    found = {{one["label"]: np.asarray(one["mask"]) for one in segmenter(row["image"])}}
    for index, name in enumerate({NAMES!r}):
        mask = found.get(name, np.zeros(labels.shape)) > 0
        assert np.array_equal(mask, np.asarray(written["mask"]) == index), name
        assert written[f"pixels_{{name}}"] == mask.sum()
        counts = mask & (labels == index), mask & (labels < 255), labels == index
        area[name] += [int(part.sum()) for part in counts]
measured = json.load(open(hf_hub_download("tester/segmenter", "results/metrics.json")))["results"]["0.5"]
for name, (both, found, true) in area.items():
    union = found + true - both
    assert measured["per_class"][name]["iou"] == (both / union if union else None), name
card = open(hf_hub_download("tester/segmenter", "README.md")).read()
assert f"| 0.5 | {{measured['mean_iou']:.3f}} |" in card
assert "5 classes (sky, road, tree, car, fence)" in card
"""


@pytest.mark.hub
@pytest.mark.timeout(1800)
def test_a_folder_of_five_classes_all_the_way(hub, run_client, tmp_path):
    run_client(OWNER, home=tmp_path / "owner", block_modules=(), timeout=900)
    run_client(STRANGER, home=tmp_path / "stranger", timeout=300)
    files = hub.repo("tester/segmenter").files()
    assert {"README.md", "modeling_reg4pru.py", "results/classes.png", ".eval_results/streets.yaml"} <= files.keys()
    assert "- semantic-segmentation" in hub.repo("tester/predicted", "dataset").files()["README.md"].decode()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    AcceleratorState._reset_state(True)
    yield tmp_path
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("names", [NAMES[:4], ["ground", "polyp"]], ids=["palette", "two classes"])
def test_a_folder_all_the_way_on_this_machine(here, names):
    make_folder(here / "folder", names, COLOURS, 255, palette=len(names) > 2)
    prepare.main(["--dataset", "folder", "--output_dir", "prepared"])
    rows = load_segmentation("prepared")["test"]
    assert class_names(rows) == names
    (here / "recipe.yaml").write_text(json.dumps(RECIPE))
    train.main(["recipe.yaml", "--dataset", "prepared", "--output_dir", "run"])
    common = ["--model_name_or_path", "run/best", "--dataset", "prepared", "--keep_rates", "1.0", "0.5"]
    assert evaluate.main([*common, "--output_dir", "measured"]) == 0
    AcceleratorState._reset_state(True)
    assert predict.main([*common, "--output_dir", "predicted"]) == 0
    push.main(["--model_name_or_path", "run/best", "--metrics", "measured/metrics.json", "--hub_model_id", "me/small",
               "--output_dir", "staged"])  # fmt: skip

    measured = json.loads((here / "measured/metrics.json").read_text())["results"]["0.5"]
    with (here / "predicted/predictions.csv").open(newline="") as file:
        written = {row["file"]: row for row in csv.DictReader(file) if row["keep_rate"] == "0.5"}
    metrics = ClassMetrics(names)
    for row in rows:
        found = np.asarray(Image.open(here / "predicted" / written[row["name"]]["mask"]))
        found = found if len(names) > 2 else found // 255
        assert [int(written[row["name"]][f"pixels_{name}"]) for name in names] == np.bincount(
            found.ravel(), minlength=len(names)
        ).tolist()
        metrics.update(found, np.asarray(row["mask"]))
    of_classes, card = metrics.compute()["per_class"], (here / "staged/README.md").read_text()
    if len(names) > 2:
        assert measured["mean_iou"] == metrics.compute()["mean_iou"]
        assert "Segments images into 4 classes" in card
    else:
        assert measured["pooled"]["iou"] == pytest.approx(of_classes["polyp"]["iou"])
        assert "Segments polyps in images" in card
