"""A study from end to end: run, resumed, refused; two variants, one seed, a few steps of a tiny model."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

from datasets_fives import load_fives
from reg4pru.study import evaluation as measuring
from reg4pru.study import runs as study_runs
from reg4pru.study.__main__ import main
from reg4pru.study.definition import read_study
from reg4pru.study.drift import collect_drift, measure_run
from reg4pru.study.results import write_costs_and_figures, write_tables
from reg4pru.study.run_folder import RunFolder
from reg4pru.study.runs import complete_run, complete_runs

pytestmark = pytest.mark.timeout(900)  # a whole study is trained first

RECIPE = {
    "config_overrides": {
        "hidden_size": 32,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 64,
        "patch_size": 8,
        "pruning_layers": [1, 3, 5],
        "masked_attention": False,
    },
    "dataset": "synthetic",
    "working_size": 64,
    "synthetic_counts": [4, 1, 2],
    "per_device_train_batch_size": 2,
    "checkpointing_steps": 1,
    "logging_steps": 1,
    "ema_decay": 0.9,
}
STUDY = {
    "overrides": {"max_train_steps": 3},
    "seeds": [0],
    "keep_rates": [1.0, 0.5],
    "evaluations": [{"selection_pool": "all"}, {"selector": "random"}, {"working_size": 96}],
    "compare": ["soft", "reg4pru"],
    "variants": {
        "soft": {"label": "soft mask", "config": {"routing": False}},
        "reg4pru": {"label": "Reg4Pru", "config": {"routing": True}},
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with `small.yaml`, the finished `runs` and the `results`."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    save_others(folder)
    write_study(folder)
    done = start_study(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def save_others(folder: Path) -> None:
    """Three images as two folders, of which one tests."""
    images = load_fives("synthetic", working_size=96, seed=5, synthetic_counts=(2, 0, 1), cache_dir=folder / "cache")
    for column in ("image", "mask"):
        (folder / "others" / f"{column}s").mkdir(parents=True)
    for count, row in enumerate((*images["train"], *images["test"])):
        row["image"].save(folder / "others" / "images" / f"{count}_dr.png")
        row["mask"].point(lambda value: 255 * value).save(folder / "others" / "masks" / f"{count}_dr.png")
    (folder / "split.yaml").write_text(yaml.safe_dump({"train": ["0_dr", "1_dr"], "test": ["2_dr"]}))


def write_study(folder: Path, **changes) -> None:
    others = {"name": "others", "dataset": str(folder / "others"), "split": str(folder / "split.yaml")}
    content = {"recipe": str(folder / "recipe.yaml"), **STUDY, **changes}
    content["evaluations"] = [*content["evaluations"], others]
    (folder / "small.yaml").write_text(yaml.safe_dump(content))


def start_study(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "reg4pru", "study", "small.yaml", "--output_dir", "results", "--runs_dir", "runs"]
    command += ["--num_parallel", "2", "--cost_rounds", "1"]
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}  # as the tests themselves
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def forbid_training(monkeypatch) -> None:
    def refuse(*arguments, **settings):
        raise AssertionError("a training was started")

    monkeypatch.setattr(study_runs.subprocess, "run", refuse)


def test_tables_and_figures(finished):
    results = finished / "results"
    with (results / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 5 * 2  # variants, evaluations, keep rates
    assert all(0 < float(row["average_precision"]) <= 1 for row in rows)
    unpruned = {row["average_precision"] for row in rows if row["variant"] == "soft" and row["keep_rate"] == "1.0"}
    assert len(unpruned) == 3  # without pruning all evaluations on the same images agree
    pruned = {row["average_precision"] for row in rows if row["variant"] == "soft" and row["keep_rate"] == "0.5"}
    assert len(pruned) == 5
    with (results / "per_image.csv").open() as file:
        images = list(csv.DictReader(file))
    assert len(images) == 2 * 2 * (4 * 2 + 1)  # variants, keep rates, images of four evaluations and of one
    # All pixels of the only image are those of its data (histograms tie some probabilities of a young model).
    single, pooled = (
        [float(row["average_precision"]) for row in table if row["evaluation"] == "others"] for table in (images, rows)
    )
    assert single == pytest.approx(pooled, abs=0.01)
    assert "## clDice against soft mask, at the same keep rate, others" in (results / "paired.md").read_text()
    assert "| Reg4Pru |" in (results / "table.md").read_text()
    assert "1.00×" in (results / "cost.md").read_text()
    assert set(json.loads((results / "provenance.json").read_text())["runs"]) == {"soft/seed-0", "reg4pru/seed-0"}
    record = (finished / "runs" / "soft" / "seed-0" / "training" / "train_results.json").read_text()
    assert str(finished) not in record, "a record tells what was done, not where"
    with (results / "race.csv").open() as file:
        compared = list(csv.DictReader(file))
    assert [(row["variant"], row["keep_rate"]) for row in compared] == [
        (variant, rate) for variant in ("reg4pru", "soft") for rate in ("1.0", "0.5")
    ]
    assert {(row["evaluation"], row["tiles"]) for row in compared} == {("working_size=96", "1")}
    for name in ("figure1", "keep_rates", "drift", "stages", "race"):
        with Image.open(results / f"{name}.png") as figure:
            assert figure.width > 500
    with (results / "drift.csv").open() as file:
        drift = list(csv.DictReader(file))
    assert len(drift) == 2 * 8  # variants, layers
    assert drift[0]["cosine_pruned"] == "nan"  # the first stage removes its tokens after layer 1


def test_a_finished_study_is_not_repeated(copied, monkeypatch):
    study, folder = read_study(copied / "small.yaml"), RunFolder(copied / "runs", "soft", 0)
    forbid_training(monkeypatch)
    monkeypatch.setattr(measuring, "measure", None)
    before = folder.evaluation.stat().st_mtime_ns
    complete_run(study, copied / "runs", "soft", 0)
    assert folder.evaluation.stat().st_mtime_ns == before


def test_only_missing_evaluations_are_made(copied, monkeypatch):
    study, folder = read_study(copied / "small.yaml"), RunFolder(copied / "runs", "soft", 0)
    forbid_training(monkeypatch)
    measured = folder.results()
    lost = measured["selector=random"].pop("0.5")
    measured["as trained"]["0.5"]["dice"] = 0.123  # stands for a result that must not be measured again
    folder.evaluation.write_text(json.dumps(measured))
    complete_run(study, copied / "runs", "soft", 0)
    assert folder.results()["selector=random"]["0.5"] == pytest.approx(lost)
    assert folder.results()["as trained"]["0.5"]["dice"] == 0.123
    # A run measured before images had rows gets them, and whatever else its study has come to want.
    rows = folder.per_image.read_text()
    folder.per_image.unlink()
    complete_run(study, copied / "runs", "soft", 0)
    assert folder.per_image.read_text() == rows


def test_what_was_measured_counts_without_the_weights(copied, monkeypatch, caplog):
    """Records of runs travel in a repository, weights do not."""
    study, runs_dir, results = read_study(copied / "small.yaml"), copied / "runs", copied / "results"
    for variant in study.variants:
        for path in (runs_dir / variant / "seed-0" / "training").iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    (runs_dir / "cost.json").unlink()
    expected, drawn = (results / "drift.csv").read_text(), (results / "figure1.png").read_bytes()
    for path in results.iterdir():
        if path.name != "figure1.png":
            path.unlink()
    with monkeypatch.context() as patch:
        forbid_training(patch)
        for variant in study.variants:
            complete_run(study, runs_dir, variant, 0)
    write_costs_and_figures(study, runs_dir, results, write_tables(study, runs_dir, results), cost_rounds=1)
    assert (results / "drift.csv").read_text() == expected
    written = {path.name for path in results.iterdir()}
    assert {"cost.csv", "drift.png", "race.png", "table.md", "throughput.png"} <= written
    assert (results / "figure1.png").read_bytes() == drawn
    assert not (results / "stages.png").exists()
    assert "no seed has the weights of all variants" in caplog.text
    (runs_dir / "soft" / "seed-0" / "drift.csv").unlink()
    with pytest.raises(ValueError, match="its weights are missing"):
        complete_run(study, runs_dir, "soft", 0)


def test_drift_is_measured_anew_at_another_keep_rate(copied):
    folder = RunFolder(copied / "runs", "soft", 0)
    before = folder.drift.read_text()
    measure_run(folder, 0.5)
    assert folder.drift.read_text() == before
    measure_run(folder, 0.25)
    assert all(line.startswith("0.25,") for line in folder.drift.read_text().splitlines()[1:])


def test_a_finished_run_may_have_been_trained_on_another_machine(copied):
    study, folder = read_study(copied / "small.yaml"), RunFolder(copied / "runs", "soft", 0)
    recipe = study.run_recipe("soft", 0)
    assert recipe.get("mixed_precision") != "bf16"
    folder.recipe.write_text(yaml.safe_dump(recipe | {"mixed_precision": "bf16", "checkpointing_steps": 7}))
    folder.check_recipe(recipe)
    (folder.training / "train_results.json").unlink()
    with pytest.raises(ValueError, match=r"checkpointing_steps was 7, is .*mixed_precision was bf16"):
        folder.check_recipe(recipe)


def test_drift_is_that_of_the_seeds_that_a_variant_has(copied):
    study = read_study(copied / "small.yaml")
    fewer = {name: settings | {"seeds": study.seeds} for name, settings in study.variants.items()}
    more = replace(study, seeds=[*study.seeds, 99], variants=fewer)
    drift = collect_drift(study, copied / "runs")
    assert {row["variant"] for row in drift} == set(study.compare)
    assert str(collect_drift(more, copied / "runs")) == str(drift)  # nan is not equal to itself


def test_changed_settings_are_refused(copied):
    write_study(copied, overrides={"max_train_steps": 4})
    study = read_study(copied / "small.yaml")
    with pytest.raises(ValueError, match="other settings: max_train_steps was 3, is 4"):
        complete_runs(study, copied / "runs", num_parallel=1, num_processes=1)
    study.variants["soft"]["config"]["token_multiple"] = 4
    with pytest.raises(ValueError, match="config token_multiple was unset, is 4"):
        complete_run(study, copied / "runs", "soft", 0)


def test_a_killed_training_goes_on_from_its_checkpoint(copied, monkeypatch):
    """What a kill between the second and the third step leaves behind ends in the same weights."""
    study, folder = read_study(copied / "small.yaml"), RunFolder(copied / "runs", "reg4pru", 0)
    wanted = load_file(folder.checkpoint / "model.safetensors")
    (folder.training / "train_results.json").unlink()
    shutil.rmtree(folder.checkpoint)
    shutil.rmtree(folder.training / "checkpoints" / "step-00000003")
    folder.evaluation.unlink()
    monkeypatch.setenv("HF_HOME", str(copied / "hf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    complete_run(study, copied / "runs", "reg4pru", 0)
    assert "at step 2 of 3" in folder.log.read_text()
    torch.testing.assert_close(load_file(folder.checkpoint / "model.safetensors"), wanted)
    assert set(folder.results()) == set(study.evaluations)


@pytest.mark.slow
def test_a_failing_run_is_reported_and_the_others_go_on(copied):
    failing = {"bad": {"flags": {"dataset": "no/where/at/all"}}, **STUDY["variants"]}
    write_study(copied, variants=failing)
    shutil.rmtree(copied / "results")
    done = start_study(copied)
    assert done.returncode == 1
    assert "bad seed 0 failed" in done.stderr
    assert "no/where/at/all" in done.stderr  # the tail of the log
    assert "| Reg4Pru |" in (copied / "results" / "table.md").read_text()


def test_a_run_in_other_hands_is_left_alone(copied, monkeypatch):
    forbid_training(monkeypatch)
    with FileLock(copied / "runs" / "soft" / "seed-0" / "lock"), pytest.raises(RuntimeError, match="another process"):
        complete_run(read_study(copied / "small.yaml"), copied / "runs", "soft", 0)


def test_an_unknown_variant_is_refused(finished, tmp_path, capsys):
    folders = ["--output_dir", str(tmp_path / "results"), "--runs_dir", str(finished / "runs")]
    with pytest.raises(SystemExit) as stopped:
        main([str(finished / "small.yaml"), *folders, "--only", "hard"])
    assert stopped.value.code == 2
    assert "--only names hard" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
