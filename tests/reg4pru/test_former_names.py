"""
What commit 9db4d4a saved still loads: a run is resumed, a checkpoint, its records and a study are read.

The archive beside this file holds what its commands wrote of a tiny model, trained by `recipe.yaml` on synthetic
images: `run/` as if killed after step 2 of 4, `checkpoint/` with the weights after step 4, evaluated and tuned, and a
study.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.speed_budget import fingerprint_weights
from reg4pru import evaluate, train, tune
from reg4pru.common.data_overlap import read_training_images
from reg4pru.common.former_names import present_name, with_present_names
from reg4pru.common.weight_fingerprints import LATER, fingerprint_configuration
from reg4pru.hub.arguments import PushArguments
from reg4pru.hub.publishing import stage_checkpoint
from reg4pru.study.definition import read_study
from reg4pru.study.evaluation import read_images
from reg4pru.study.run_folder import RunFolder


@pytest.fixture
def saved(tmp_path, monkeypatch) -> Path:
    """The folder of what was saved, which is also the working directory."""
    shutil.unpack_archive(Path(__file__).with_name("saved_by_9db4d4a.zip"), tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "saved")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "saved"


def test_keys_are_renamed_at_any_depth_and_values_are_not():
    content = {"photographs": {"a": "photographs"}, "arms": [{"photograph_size": 8}], 3: None}
    assert with_present_names(content) == {"images": {"a": "photographs"}, "variants": [{"working_size": 8}], 3: None}
    assert present_name("selector=random, photograph_size=8") == "selector=random, working_size=8"
    with pytest.raises(ValueError, match="working_size is given twice"):
        with_present_names({"recipe": {"photograph_size": 8, "working_size": 8}})


def test_a_run_goes_on_to_the_weights_that_it_would_have_had(saved):
    train.main(["recipe.yaml", "--output_dir", "run", "--resume_from_checkpoint", "latest"])
    weights, wanted = (
        load_file(saved / "run/last/model.safetensors"),
        load_file(saved / "checkpoint/model.safetensors"),
    )
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():  # equal on the machine that saved them
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-4)
    state = load_file(saved / "run/checkpoints/step-00000002/model.safetensors")
    assert not torch.allclose(weights["query.weight"], state["query.weight"], atol=1e-4)
    listed = json.loads((saved / "run/last/training_images.json").read_text())["images"]
    assert set(listed) == read_training_images("checkpoint")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--working_size", "48"], "--working_size is 48, was 64"),
        (["--samples_per_image", "1"], "--samples_per_image is 1, was 2"),
        (["--synthetic_counts", "4", "1", "2"], "--synthetic_counts is [4, 1, 2], was [3, 1, 2]"),
    ],
)
def test_a_run_with_other_settings_is_refused(saved, capsys, flags, message):
    with pytest.raises(SystemExit):
        train.main(["recipe.yaml", "--output_dir", "run", "--resume_from_checkpoint", "latest", *flags])
    assert message in capsys.readouterr().err


def test_images_of_the_training_are_known(saved, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--model_name_or_path", "checkpoint", "--output_dir", "out", "--side", "train",
                       "--synthetic_counts", "3", "1", "2", "--working_size", "64"])  # fmt: skip
    assert "checkpoint was trained on 3 of the 3 images" in capsys.readouterr().err


def test_what_was_tuned_is_chosen_from(saved, capsys):
    speed = json.loads((saved / "checkpoint/speed.json").read_text())
    tune.main(["--model_name_or_path", "checkpoint", "--budget_ms", "1e6", "--device", "cpu"])
    assert "1 validation image" in capsys.readouterr().out
    best = max(speed["candidates"], key=lambda row: (row["average_precision"], -row["milliseconds"]))
    assert json.loads((saved / "checkpoint/config.json").read_text())["keep_rates"] == best["keep_rates"]


def test_a_checkpoint_is_pushed_with_its_records(saved):
    arguments = PushArguments(model_name_or_path="checkpoint", hub_model_id="user/name", metrics="metrics.json")
    with pytest.raises(ValueError, match="does not record the weights"):
        stage_checkpoint(arguments, saved / "refused")
    # With the one thing that it lacks its numbers are read.
    metrics = json.loads((saved / "metrics.json").read_text())
    (saved / "metrics.json").write_text(json.dumps(metrics | {"weights": fingerprint_weights(saved / "checkpoint")}))
    stage_checkpoint(arguments, saved / "staged")
    assert read_training_images("staged") == read_training_images("checkpoint")
    card = (saved / "staged/README.md").read_text()
    assert "working_size" in card
    assert "1 validation image" in card


def test_a_study_and_its_runs_are_read(saved):
    study = read_study(saved / "study.yaml")
    assert list(study.variants) == ["dense", "small"]
    assert study.variants["small"]["flags"] == {"working_size": 48}
    folder = RunFolder(saved / "runs", "small", 0)
    folder.check_recipe(study.run_recipe("small", 0))
    places = {(name, rate) for name, rates in folder.results().items() for rate in rates}
    assert places == {(name, rate) for name in study.evaluations for rate in ("1.0", "0.5")}
    assert read_images(folder).keys() == places
    _, data, _ = folder.arguments()
    assert (data.working_size, data.samples_per_image) == (48, 1)


def test_fields_that_came_later_leave_the_fingerprint_as_it_was(tiny_model, monkeypatch):
    """So that folders that were begun before are continued."""
    model, processor = tiny_model(), Reg4PruImageProcessor(tile_overlap=0.25)
    now = fingerprint_configuration(model, processor)
    both = [{name: value for name, value in one.items() if name not in LATER} for one in
            (model.config.to_diff_dict(), processor.to_dict())]  # fmt: skip
    monkeypatch.setattr(type(model.config), "to_diff_dict", lambda config: both[0])
    monkeypatch.setattr(Reg4PruImageProcessor, "to_dict", lambda processor: both[1])
    assert fingerprint_configuration(model, processor) == now
    monkeypatch.undo()
    for fields, overlap in (({"allocation": "image"}, 0.25), ({"blend_share_weight": 2.0}, 0.25), ({}, None)):
        processor.tile_overlap = overlap
        assert fingerprint_configuration(tiny_model(**fields), processor) != now
