"""The card of a checkpoint, from beginning to end."""

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries

from modeling_reg4pru.speed_budget import fingerprint_weights
from reg4pru.hub.arguments import PushArguments
from reg4pru.hub.model_card import eval_results_yaml, hub_id, read_checkpoint, render_card
from reg4pru.hub.publishing import stage_checkpoint
from reg4pru.push import main

PROVENANCE = {
    "command": "reg4pru train",
    "commit": "0" * 40,
    "date": "2026-11-22T10:00:00+00:00",
    "device": "NVIDIA H200",
    "seed": 0,
    "python": "3.11.7",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
}


def result(dice: float) -> dict:
    pooled = dict.fromkeys(("average_precision", "auroc", "iou", "precision", "recall", "boundary_iou"), 0.5)
    pooled |= {"dice": dice, "cldice": None, "centerline_recall": 0.75}
    per_image = {name: {"mean": 0.5, "sd": 0.125, "num_images": 3} for name in pooled}
    return {"num_images": 3, "pooled": pooled, "per_image": per_image, "per_condition": {}}


@pytest.fixture
def checkpoint(tiny_model, save_checkpoint, tmp_path):
    """A run's folder: `best`, train_results.json above it, and what was measured."""
    folder = save_checkpoint(tiny_model())
    arguments = {
        "dataset": "user/fives", "dataset_revision": "v1", "model_name_or_path": "", "output_dir": "/home/me/run",
        "backbone_name_or_path": "maker/dinov3", "learning_rate": 1e-4, "seed": 0, "tile_size": None,
    }  # fmt: skip
    results = {
        "provenance": PROVENANCE, "arguments": arguments, "total_steps": 1200, "best_validation_ap": 0.8125,
        "best_step": 900, "train_names": ["train/1_A", "train/2_D"],
    }  # fmt: skip
    settings = {
        "dataset": "user/fives", "dataset_revision": "abc123", "split": "official", "side": "test",
        "field_of_view": True, "threshold": 0.5,
    }  # fmt: skip
    measured = {"1.0": result(0.9), "0.5": result(0.875)}
    weights = fingerprint_weights(folder)
    metrics = {"provenance": PROVENANCE, "settings": settings, "weights": weights, "results": measured}
    dense = {"keep_rate": None, "reactivation_layer": None, "batch_size": 8, "throughput": 100.0, "ratio": 1.0,
             "gflops": 20.0, "peak_memory": 12_000_000}  # fmt: skip
    half = {"keep_rate": 0.5, "reactivation_layer": 4, "throughput": 162.5, "ratio": 1.624, "gflops": 10.0}
    flags = {"model_name_or_path": "run/best", "image_size": 64, "dtype": "bfloat16", "compile_mode": "default"}
    rows = [dense, dense | half]
    benchmark = {"provenance": PROVENANCE, "arguments": flags, "weights": weights, "inference": rows}
    for name, content in (("train_results", results), ("metrics", metrics), ("benchmark", benchmark)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "figure.png").write_bytes(b"figure")
    return folder


PATTERN = (Path(__file__).parent / "model_card_pattern.txt").read_text(encoding="utf-8").rstrip("\n")


def stage(checkpoint, tmp_path, **more):
    arguments = PushArguments(model_name_or_path=str(checkpoint), hub_model_id="me/tiny", **more)
    stage_checkpoint(arguments, tmp_path / "staged")
    return tmp_path / "staged"


def test_the_whole_card(checkpoint, tmp_path):
    files = {name: str(tmp_path / f"{name}.json") for name in ("metrics", "benchmark")}
    folder = stage(checkpoint, tmp_path, **files)
    text = (folder / "README.md").read_text(encoding="utf-8")
    parts = re.split(r"(?m)^(?=## |---$)", PATTERN)
    matched = ""
    for part in parts:  # told apart, so that a failure says where
        assert re.match(matched + part, text, re.DOTALL), f"the card does not have\n{part}\n\nbut\n{text}"
        matched += part
    assert re.fullmatch(PATTERN, text, re.DOTALL)
    assert "/home/me" not in text
    assert metadata_load(folder / "README.md")["pipeline_tag"] == "image-segmentation"
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert {r.metric_value for r in results if r.metric_type == "dice"} == {0.9, 0.875}
    assert (folder / "results" / "figure.png").read_bytes() == b"figure"
    assert {path.name for path in (folder / "results").iterdir()} == {"metrics.json", "benchmark.json", "figure.png"}
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "config.json", "preprocessor_config.json",
                                                       "modeling_reg4pru.py", "train_results.json"}  # fmt: skip


def test_the_newer_results_can_be_read_back(checkpoint, tmp_path):
    folder = stage(checkpoint, tmp_path, metrics=str(tmp_path / "metrics.json"))
    entries = parse_eval_result_entries(yaml.safe_load((folder / ".eval_results" / "fives.yaml").read_text()))
    assert [entry.value for entry in entries] == [0.9, 0.875]
    assert {entry.dataset_id for entry in entries} == {"user/fives"}
    assert {entry.dataset_revision for entry in entries} == {"abc123"}
    assert "keep rate 0.5 per stage" in entries[1].notes
    assert eval_results_yaml(json.loads((tmp_path / "metrics.json").read_text()), "a/b").count("id: a/b") == 2


def test_what_was_not_measured_is_said(checkpoint, tmp_path):
    (tmp_path / "train_results.json").unlink()
    card = (stage(checkpoint, tmp_path) / "README.md").read_text()
    assert "This checkpoint was not evaluated." in card
    assert "The speed of this checkpoint was not measured." in card
    assert "How it was trained was not recorded." in card
    assert "The images that it was trained on were not recorded." in card
    assert "FIVES" not in card
    assert "CC BY" not in card
    assert "model-index" not in card
    assert "license: apache-2.0" in card


CLINIC = ["patient-7", "patient-9"]
LIKE_FIVES = ["test/1_A", "test/2_D"]
FROM_A_COPY = r"FIVES .*licence \[CC BY 4.0\].* read from a local copy"
FROM_THE_HUB = r"FIVES .*licence \[CC BY 4.0\].* read from \[`user/eyes`\]"
THE_USERS = ("The user's own images. .* licence were not", "the user's own images")
ON_THE_HUB = (r"Images of \[`user/eyes`\]\(https://huggingface.co/datasets/user/eyes\)", "user/eyes")


@pytest.mark.parametrize(
    ("source", "names", "data", "measured", "cited"),
    [
        ("clinic", CLINIC, *THE_USERS, False),
        ("clinic", LIKE_FIVES, *THE_USERS, False),
        ("archive", LIKE_FIVES, FROM_A_COPY, "FIVES", True),
        ("elsewhere", LIKE_FIVES, FROM_A_COPY, "FIVES", True),
        ("user/eyes", CLINIC, *ON_THE_HUB, False),
        ("user/eyes", LIKE_FIVES, FROM_THE_HUB, "FIVES", True),
    ],
)
def test_only_what_is_fives_is_called_so(checkpoint, tmp_path, monkeypatch, source, names, data, measured, cited):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clinic" / "train" / "images").mkdir(parents=True)
    (tmp_path / "archive" / "test" / "Original").mkdir(parents=True)
    train, metrics = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train_results", "metrics"))
    train["arguments"] |= {"dataset": source, "dataset_revision": None}
    train["train_names"] = [f"{name}#{tile}-0" for name in names for tile in range(3)]
    metrics["settings"] |= {"dataset": source, "dataset_revision": None}
    metrics["images"] = dict.fromkeys(names, "fingerprint")
    card = render_card(*read_checkpoint(checkpoint), "me/tiny", train_results=train, metrics=metrics)
    text = str(card)
    assert re.search(rf"## Data\n\n{data}.* 2 of them were trained on", text)
    assert {result.dataset_name for result in card.data.eval_results} == {measured}
    assert ("jin2022fives" in text) == ("CC BY" in text) == ("FIVES" in text) == ("Data: FIVES" in text) == cited
    assert ModelCard(text).data.to_dict() == card.data.to_dict()


def test_what_was_measured_elsewhere_is_not_called_what_was_trained_on(checkpoint, tmp_path):
    train, metrics = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train_results", "metrics"))
    metrics["settings"]["dataset"] = "/data/our_clinic"
    metrics["images"] = dict.fromkeys(CLINIC, "fingerprint")
    text = str(render_card(*read_checkpoint(checkpoint), "me/tiny", train_results=train, metrics=metrics))
    assert "the test set of the user's own images, inside" in text
    assert "## Data\n\nFIVES (Jin et al." in text
    metrics["settings"]["dataset"] = "synthetic"
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    staged = stage(checkpoint, tmp_path, metrics=str(tmp_path / "metrics.json"), hub_dataset_id="user/fives")
    assert "the test set of synthetic images, inside" in (staged / "README.md").read_text(encoding="utf-8")
    assert not (staged / ".eval_results").exists(), "these are no results on user/fives"


def test_what_was_tuned_goes_along_and_is_shown(checkpoint, speed, tmp_path):
    speed["weights"] = fingerprint_weights(checkpoint)
    (checkpoint / "speed.json").write_text(json.dumps(speed))
    folder = stage(checkpoint, tmp_path)
    assert json.loads((folder / "speed.json").read_text()) == speed | {"weights": fingerprint_weights(folder)}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "model.set_speed_budget(milliseconds=62)" in card, "a budget that one of the rows meets"
    rows = [line for line in card.splitlines() if "| L−2 |" in line]
    assert rows == [
        "| 61.2 | 1.50× | 1.0 / 0.7 / 0.5 | L−2 | all | image | 0.875 | 0.750 | – |",
        "| 40 | 2.25× | 0.5 | L−2 | all | image | 0.800 | 0.750 | – |",
    ]
    assert "Slow & Steady, 2 threads, float32" in card


def test_what_was_tuned_with_other_weights_is_refused(checkpoint, speed, tiny_model, tmp_path):
    speed["weights"] = fingerprint_weights(checkpoint)
    (checkpoint / "speed.json").write_text(json.dumps(speed))
    tiny_model(initializer_range=0.1).save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"speed.json was measured with other weights .* --overwrite measures anew"):
        stage(checkpoint, tmp_path)
    assert not (tmp_path / "staged").exists()


def test_synthetic_data_and_local_starts_are_no_hub_ids(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "old").mkdir(parents=True)
    results = json.loads((tmp_path / "train_results.json").read_text())
    results["arguments"] |= {"dataset": "synthetic", "backbone_name_or_path": "", "model_name_or_path": "runs/old"}
    card = str(render_card(*read_checkpoint(checkpoint), "me/tiny", train_results=results))
    assert "no patient's data" in card
    assert "from a local checkpoint" in card
    assert "datasets:" not in card
    assert "base_model" not in card
    assert "jin2022fives" not in card
    assert [hub_id(name) for name in ("user/fives", "runs/old", "synthetic", "../a/b", None)] == [
        "user/fives", None, None, None, None,
    ]  # fmt: skip


def test_bad_input_is_refused(checkpoint, tmp_path, capsys):
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["--hub_model_id", "me/tiny", "--output_dir", str(tmp_path / "out"), *map(str, arguments)])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "it has to contain config.json" in refused("--model_name_or_path", tmp_path / "nothing")
    (tmp_path / "broken.json").write_text("{")
    assert "broken.json cannot be read" in refused(
        "--model_name_or_path", checkpoint, "--metrics", tmp_path / "broken.json"
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "is not empty" in refused("--model_name_or_path", checkpoint)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
