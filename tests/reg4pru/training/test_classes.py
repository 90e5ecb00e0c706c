"""Training on label maps of more than two classes: what follows from their names, and what is refused."""

import json

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from reg4pru import finetune, train
from reg4pru.training.arguments import ModelArguments
from reg4pru.training.setup import BINARY, build_model

NAMES = ["sky", "road", "tree", "car", "fence"]
CONFIG = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8, "num_upscale_blocks": 1, "num_blocks": 1, "num_queries": 6, "train_num_points": 64,
    "pruning_layers": [0, 1], "reactivation_layer": 2, "token_multiple": 2, "routing": False,
}  # fmt: skip
FLAGS = ["--per_device_train_batch_size", "2", "--learning_rate", "1e-3", "--head_warmup_steps", "0",
         "--backbone_warmup_steps", "0", "--working_size", "48", "--augment_turns", "false"]  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh_start(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def streets(tmp_path):
    """A folder of four images to train on and two to validate on, 48 x 40 px, whose colours tell the classes."""
    generator, folder = np.random.default_rng(0), tmp_path / "streets"
    for side, count in (("train", 4), ("val", 2), ("test", 1)):
        for kind in ("images", "labels"):
            (folder / kind / side).mkdir(parents=True)
        for number in range(count):
            labels = np.kron(generator.integers(0, 6, (5, 6)), np.ones((8, 8))).astype(np.uint8)
            labels[labels == 5] = 255
            Image.fromarray(labels % 255 * 50).convert("RGB").save(folder / "images" / side / f"{side}{number}.png")
            Image.fromarray(labels).save(folder / "labels" / side / f"{side}{number}.png")
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    return folder


def run_train(folder, streets, *more, config=CONFIG):
    overrides = [f"{field}={json.dumps(value)}" for field, value in config.items()]
    AcceleratorState._reset_state(True)
    words = ["--output_dir", folder, "--dataset", streets, *FLAGS, *more, "--config_overrides", *overrides]
    train.main([str(word) for word in words])


def test_all_follows_from_the_names_of_the_classes(streets, tmp_path):
    folder = tmp_path / "run"
    run_train(folder, streets, "--max_train_steps", 4, "--eval_steps", 2, "--random_crop", "--logging_steps", 1)
    model = Reg4PruForSemanticSegmentation.from_pretrained(folder / "best")
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.class_predictor.out_features == 6
    assert Reg4PruImageProcessor.from_pretrained(folder / "best").num_labels == 5
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["validation_mean_iou"] for line in log if "validation_mean_iou" in line}
    results = json.loads((folder / "train_results.json").read_text())
    assert measured.keys() == {2, 4}
    assert results["best_validation_mean_iou"] == max(measured.values()) == measured[results["best_step"]]
    assert "best_validation_ap" not in results
    assert any("loss_cross_entropy" in line for line in log)


def test_a_run_that_was_stopped_knows_its_best_state(streets, tmp_path):
    folder = tmp_path / "run"
    steps = ("--max_train_steps", 4, "--eval_steps", 2, "--checkpointing_steps", 2)
    run_train(folder, streets, *steps)
    whole = {name: (folder / name / "model.safetensors").read_bytes() for name in ("best", "last")}
    progress = json.loads((folder / "checkpoints" / "step-00000002" / "progress.json").read_text())
    assert progress["best_mean_iou"] > 0
    (folder / "train_results.json").unlink()
    state = folder / "checkpoints" / "step-00000002"
    run_train(folder, streets, *steps, "--resume_from_checkpoint", state)
    assert {name: (folder / name / "model.safetensors").read_bytes() for name in whole} == whole


@pytest.mark.parametrize("names", [NAMES, BINARY], ids=["five", "two"])
def test_new_models_have_the_queries_that_their_classes_need(tmp_path, names):
    config = {name: value for name, value in CONFIG.items() if name != "num_queries"}
    overrides = [f"{field}={json.dumps(value)}" for field, value in config.items()]
    model = build_model(ModelArguments(config_overrides=overrides), names)
    assert model.config.num_queries == (1 if names is BINARY else 100)
    assert model.config.is_binary == (names is BINARY)
    stated = build_model(ModelArguments(config_overrides=[*overrides, f"num_labels={len(names)}"]), names)
    assert stated.config.id2label == dict(enumerate(names)), "a number that agrees takes no name away"
    model.save_pretrained(tmp_path)
    renamed = build_model(ModelArguments(model_name_or_path=str(tmp_path)), [name.upper() for name in names])
    assert renamed.config.id2label == {label: name.upper() for label, name in enumerate(names)}
    if names is BINARY:  # masks that name no classes take no name away either
        renamed.save_pretrained(tmp_path)
        assert build_model(ModelArguments(model_name_or_path=str(tmp_path)), BINARY).config.id2label[1] == "VESSEL"


def save_start(folder, **more):
    model = Reg4PruForSemanticSegmentation(Reg4PruConfig(**{**CONFIG, "train_pruning": "hard", **more}))
    model.save_pretrained(folder)
    Reg4PruImageProcessor(size={"height": 32, "width": 32}, working_size=48).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("start", "queries"),
    [({"id2label": {0: "a", 1: "b", 2: "c"}, "num_queries": 7}, 7), ({"num_queries": 1}, 100)],
    ids=["three", "two"],
)
def test_a_checkpoint_of_other_classes_gets_a_new_head_if_that_is_wanted(streets, tmp_path, capsys, start, queries):
    checkpoint, folder = save_start(tmp_path / "start", **start), tmp_path / "run"
    flags = ("--model_name_or_path", checkpoint, "--max_train_steps", 1, "--learning_rate", 1e-30)
    with pytest.raises(SystemExit):
        run_train(folder, streets, *flags, config={"keep_rates": 0.5})
    said = capsys.readouterr().err
    assert f"The model has {len(start.get('id2label', '12'))} classes (" in said
    assert "the data set 5 (sky, road, tree, car, fence)" in said
    assert "--ignore_mismatched_sizes" in said
    assert not folder.exists()

    run_train(folder, streets, *flags, "--ignore_mismatched_sizes", config={"keep_rates": 0.5})
    weights, before = load_file(folder / "last" / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert weights["class_predictor.weight"].shape == (6, 16)
    assert weights["query.weight"].shape == (queries, 16)
    assert weights["criterion.empty_weight"].tolist() == pytest.approx([1.0] * 5 + [0.1])
    kept = [name for name in before if name.startswith(("layers.", "mask_head.", "selectors."))]
    assert kept
    assert all((weights[name] - before[name]).abs().max() < 1e-12 for name in kept)


def test_fine_tuning_chooses_by_mean_iou(streets, tmp_path, capsys):
    checkpoint = save_start(tmp_path / "start", id2label=dict(enumerate(NAMES)))

    def start(name, metric):
        words = ["--model_name_or_path", checkpoint, "--dataset", streets, "--output_dir", tmp_path / name,
                 "--use_cpu", "--report_to", "none", "--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 1,
                 "--save_steps", 1, "--load_best_model_at_end", "--metric_for_best_model", metric, "--ema_decay", 0,
                 "--random_crop", *FLAGS]  # fmt: skip
        finetune.main([str(word) for word in words])

    with pytest.raises(SystemExit):
        start("refused", "ap")
    assert "of 5 classes loss, mean_iou, pixel_accuracy, boundary_iou are measured" in capsys.readouterr().err
    start("run", "mean_iou")
    results = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert results["validation"].keys() == {"mean_iou", "pixel_accuracy", "boundary_iou"}
    assert results["best_validation_mean_iou"] == pytest.approx(results["validation"]["mean_iou"])
