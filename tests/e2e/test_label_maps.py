"""End to end with classes of one's own: a folder of label maps to the Hub, trained, measured, predicted and pushed."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = ["sky", "road", "tree", "car", "fence"]
# Names, the value of what is ignored, and whether label maps are palettes.
FOLDERS = {
    "streets": (NAMES, 11, False),
    "palettes": (NAMES[:4], 255, True),
    "polyps": (["ground", "polyp"], 255, False),
}
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
json.dump({RECIPE!r}, open("recipe.yaml", "w"))
private = ["--hub_private_repo"]
for name, (names, ignored, palette) in {FOLDERS!r}.items():
    make_folder(Path(name), names, {COLOURS!r}, ignored, palette)
    data, model, out = f"tester/{{name}}", f"tester/{{name}}-model", Path(f"{{name}}-out")
    prepare.main(["--dataset", name, *(["--ignore_value", "11"] if ignored == 11 else []), "--output_dir",
                  f"{{out}}/data", "--push_to_hub", "--hub_dataset_id", data, *private])
    train.main(["recipe.yaml", "--dataset", data, "--output_dir", f"{{out}}/run", "--push_to_hub", "--hub_model_id",
                model, *private])
    common = ["--model_name_or_path", model, "--dataset", data, "--keep_rates", "1.0", "0.5"]
    assert evaluate.main([*common, "--output_dir", f"{{out}}/measured"]) == 0
    assert predict.main([*common, "--output_dir", f"{{out}}/predicted", "--push_to_hub", "--hub_dataset_id",
                         f"{{data}}-predicted", *private]) == 0
    push.main(["--model_name_or_path", f"{{out}}/run/best", "--metrics", f"{{out}}/measured/metrics.json",
               "--hub_model_id", model, *(["--space", "tester/demo"] if name == "streets" else []), *private])
"""

STRANGER = f"""
import json
import numpy as np
from datasets import load_dataset
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSemanticSegmentation, pipeline
says = {{"streets": "5 classes (sky, road, tree, car, fence)", "palettes": "Segments images into 4 classes",
         "polyps": "Segments polyps in images"}}
for folder, (names, _, _) in {FOLDERS!r}.items():
    data, repository, is_binary = f"tester/{{folder}}", f"tester/{{folder}}-model", len(names) == 2
    rows = load_dataset(data, split="test")
    predicted = {{(row["name"], row["keep_rate"]): row for row in load_dataset(f"{{data}}-predicted", split="train")}}
    assert rows.features["classes"].feature.names == names
    model = AutoModelForSemanticSegmentation.from_pretrained(repository, trust_remote_code=True)
    assert list(model.config.id2label.values()) == names
    assert type(model).__module__.startswith("transformers_modules."), "the code of the repository"
    model.set_keep_rates(0.5)
    segmenter = pipeline("image-segmentation", model=model, image_processor=repository, trust_remote_code=True)
    area = {{name: np.zeros(3, dtype=np.int64) for name in names}}
    for row in rows:
        labels, written = np.asarray(row["mask"]), predicted[row["name"], "0.5"]
        found = {{one["label"]: np.asarray(one["mask"]) for one in segmenter(row["image"])}}
        for index, name in enumerate(names):
            mask = found.get(name, np.zeros(labels.shape)) > 0
            assert np.array_equal(mask, np.asarray(written["mask"]) == (255 * index if is_binary else index)), name
            assert written[f"pixels_{{name}}"] == mask.sum()
            counts = mask & (labels == index), mask & (labels < 255), labels == index
            area[name] += [int(part.sum()) for part in counts]
    measured = json.load(open(hf_hub_download(repository, "results/metrics.json")))["results"]["0.5"]
    unions = {{name: found + true - both for name, (both, found, true) in area.items()}}
    iou = {{name: area[name][0] / union if union else None for name, union in unions.items()}}
    card = open(hf_hub_download(repository, "README.md")).read()
    assert says[folder] in card
    if is_binary:
        assert abs(measured["pooled"]["iou"] - iou[names[1]]) < 1e-9
    else:
        assert {{name: values["iou"] for name, values in measured["per_class"].items()}} == iou
        assert f"| 0.5 | {{measured['mean_iou']:.3f}} |" in card
"""


@pytest.mark.hub
@pytest.mark.timeout(1800)
def test_folders_all_the_way(hub, run_client, tmp_path):
    """Five classes; four in the indices of palettes; two that are no vessels."""
    run_client(OWNER, home=tmp_path / "owner", block_modules=(), timeout=900)
    run_client(STRANGER, home=tmp_path / "stranger", timeout=300)
    files = hub.repo("tester/streets-model").files()
    assert {"README.md", "modeling_reg4pru.py", "results/classes.png", ".eval_results/streets.yaml"} <= files.keys()
    assert "- semantic-segmentation" in hub.repo("tester/streets-predicted", "dataset").files()["README.md"].decode()
