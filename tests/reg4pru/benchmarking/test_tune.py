"""`reg4pru tune`, as a user runs it: what it writes, what it goes on with, what it refuses."""

import json
import sys

import datasets
import pytest
import torch

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.speed_budget import fingerprint_weights
from reg4pru import tune
from reg4pru.benchmarking import engines, quality, tuned_settings
from reg4pru.benchmarking.tuned_settings import Setting

IMAGES = ("--synthetic_counts", 1, 2, 0, "--working_size", 96)  # of four tiles each
FEW = ("--keep_rates", 1.0, 0.5, "--rounds", 1, "--min_seconds", 0.001, "--device", "cpu", "--num_threads", 1)
FEW += ("--engines", "float32")
ALL = ("--reactivation_layers", -1, "--selection_pools", "active", "all")


@pytest.fixture
def run_tune(monkeypatch, tmp_path):
    def run(*arguments: object) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(sys, "argv", ["reg4pru tune"])
        tune.main([str(argument) for argument in arguments])

    return run


@pytest.fixture
def refused(run_tune, capsys):
    """What the command says before it ends with the status of a wrong call."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            run_tune(*arguments)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture
def checkpoint(tiny_model, save_checkpoint):
    return save_checkpoint(tiny_model(pruning_layers=[1, 2]))


def test_end_to_end(checkpoint, run_command, run_tune, refused):
    finished = run_command("tune", "--model_name_or_path", checkpoint, *IMAGES, *FEW, *ALL)
    assert finished.returncode == 0, finished.stderr
    speed = json.loads((checkpoint / "speed.json").read_text(), parse_constant=pytest.fail)
    assert (checkpoint / "speed.md").read_text().strip() == finished.stdout.strip()
    assert (checkpoint / "speed.png").stat().st_size > 10_000
    assert not (checkpoint / "speed.json.unfinished").exists()
    assert speed["machine"]["num_threads"] == 1
    assert speed["data"]["images"] == {"validation": 2}
    assert speed["provenance"]["command"].startswith("reg4pru tune")

    rows = speed["candidates"]
    assert rows[0]["keep_rates"] == [1.0, 1.0]
    assert rows[0]["ratio"] == 1
    assert (speed["frame_size"], speed["tiles_per_image"]) == ([96, 96], 4)
    names = ("reactivation_layer", "selection_pool", "allocation")
    assert {tuple(row[name] for name in names) for row in rows if row["keep_rates"] == [0.5, 0.5]} == {
        (layer, pool, allocation) for layer in (4, 5) for pool in ("active", "all") for allocation in ("tile", "image")
    }
    assert len(rows) == 9
    assert {(row["tile_overlap"], row["tiles"], row["engine"]) for row in rows} == {(14, 4, "float32")}
    front = [row for row in rows if row["on_front"]]
    for row in rows:  # nothing that was measured lies above the front
        assert any(
            other["milliseconds"] <= row["milliseconds"] and other["average_precision"] >= row["average_precision"]
            for other in front
        )

    said = refused("--model_name_or_path", checkpoint, *IMAGES, *FEW)
    assert "speed.json, speed.md, speed.png: choose a setting with --budget_ms" in said

    before = json.loads((checkpoint / "config.json").read_text())
    fastest = min(row["milliseconds"] for row in rows)
    said = refused("--model_name_or_path", checkpoint, "--budget_ms", fastest / 2)
    assert f"the fastest that was measured takes {fastest:.1f}" in said
    assert json.loads((checkpoint / "config.json").read_text()) == before
    run_tune("--model_name_or_path", checkpoint, "--budget_ms", 1e6)
    best = max(rows, key=lambda row: (row["average_precision"], -row["milliseconds"]))
    chosen = {name: best[name] for name in ("keep_rates", *names)}
    assert json.loads((checkpoint / "config.json").read_text()) == before | chosen
    assert json.loads((checkpoint / "preprocessor_config.json").read_text())["tile_overlap"] is None
    assert Reg4PruForSemanticSegmentation.from_pretrained(checkpoint).config.keep_rates == best["keep_rates"]


def test_times_of_other_weights_are_refused(save_checkpoint, speed, tiny_model, run_tune, refused):
    checkpoint = save_checkpoint(tiny_model())
    speed["weights"] = fingerprint_weights(checkpoint)
    (checkpoint / "speed.json").write_text(json.dumps(speed))
    budget = ("--model_name_or_path", checkpoint, "--device", "cpu", "--budget_ms", 1e6)
    run_tune(*budget)
    chosen = (checkpoint / "config.json").read_text()
    trained = tiny_model(initializer_range=0.1)
    trained.save_pretrained(checkpoint)  # as training does it: speed.json stays
    (checkpoint / "config.json").write_text(chosen)
    said = refused(*budget)
    assert "speed.json was measured with other weights than it holds now" in said
    assert "--overwrite measures anew" in said
    assert (checkpoint / "config.json").read_text() == chosen


def test_an_interrupted_measurement_continues(checkpoint, run_tune, refused, monkeypatch):
    arguments = ("--model_name_or_path", checkpoint, *IMAGES, *FEW, *ALL)
    measure, calls = quality.measure, []

    def measure_three(*given, **settings):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(*given, **settings)

    monkeypatch.setattr(quality, "measure", measure_three)
    with pytest.raises(KeyboardInterrupt):
        run_tune(*arguments)
    unfinished = json.loads((checkpoint / "speed.json.unfinished").read_text())
    assert len(unfinished["qualities"]) == 3
    assert not (checkpoint / "speed.json").exists()
    assert "holds measurements of other weights, images" in refused(*arguments, "--limit", 1)

    run_tune(*arguments)
    rows = json.loads((checkpoint / "speed.json").read_text())["candidates"]
    assert len(calls) == 4 + len(rows) - 3
    for *setting, scores in unfinished["qualities"]:
        row = next(row for row in rows if [row[name] for name in Setting._fields] == setting)
        assert row["average_precision"] == scores["average_precision"]


def test_overlaps_and_engines(checkpoint, run_tune, monkeypatch):
    monkeypatch.setattr(tuned_settings, "why_not", lambda *_: None)
    monkeypatch.setattr(engines, "build_engine", lambda engine, logits, *_: logits)
    asked = ("--tile_overlaps", 0.6, 0.61, "--engines", "bfloat16", "onnx")
    run_tune("--model_name_or_path", checkpoint, *IMAGES, *FEW[:-2], *asked)
    speed = json.loads((checkpoint / "speed.json").read_text())
    known = {"float32": ("tile", "image"), "bfloat16": ("tile", "image"), "onnx": ("tile",)}
    assert [(row["engine"], row["tile_overlap"], row["tiles"], row["allocation"]) for row in speed["candidates"]] == [
        (engine, overlap, tiles, allocation)
        for engine, allocations in known.items()
        for overlap, tiles in ((14, 4), (38, 9))
        for allocation in (allocations[0], *allocations)  # the first unpruned
    ]
    assert "| tiles | engine |" in (checkpoint / "speed.md").read_text()

    # What a checkpoint cannot be configured to be may be as accurate as it will.
    for row in speed["candidates"]:
        row["average_precision"] = 0.5 + 0.1 * (row["tiles"] == 9) + 0.2 * (row["engine"] != "float32")
    (checkpoint / "speed.json").write_text(json.dumps(speed))
    model = Reg4PruForSemanticSegmentation.from_pretrained(checkpoint)
    assert (model.set_speed_budget(1e6)["engine"], model.set_speed_budget(1e6)["tiles"]) == ("float32", 4)
    assert model.to(torch.bfloat16).set_speed_budget(1e6)["engine"] == "bfloat16"
    run_tune("--model_name_or_path", checkpoint, "--device", "cpu", "--budget_ms", 1e6)
    assert Reg4PruImageProcessor.from_pretrained(checkpoint).tile_overlap == 38
    model = Reg4PruForSemanticSegmentation.from_pretrained(checkpoint)
    assert (model.set_speed_budget(1e6)["engine"], model.set_speed_budget(1e6)["tiles"]) == ("float32", 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--keep_rates", 0.5), "--keep_rates is [0.5]: it must contain 1.0"),
        (("--keep_rates", 1.0, 2.0), "2.0"),
        (("--rounds", 0), "--rounds is 0"),
        (("--budget_ms", -1), "--budget_ms is -1.0"),
        (("--reactivation_layers", 1), "`reactivation_layer`"),
        (("--selection_pools", "some"), "`selection_pool` is 'some'"),
        (("--allocations", "some"), "`allocation` is 'some'"),
        (("--tile_overlaps", 1.0), "--tile_overlaps is [1.0]"),
        (("--engines", "some"), "--engines has some"),
        (("--engines", "onnx", "--dtype", "bfloat16"), "--engines has onnx: it needs --dtype float32"),
        (("--synthetic_counts", 2, 0, 2), "no side 'validation'"),
    ],
)
def test_bad_arguments(checkpoint, refused, monkeypatch, arguments, message):
    monkeypatch.setattr(quality, "measure", lambda *_, **__: pytest.fail("work has begun"))
    assert message in refused("--model_name_or_path", checkpoint, *IMAGES, *arguments)


def test_no_folder_and_no_stages(tiny_model, save_checkpoint, refused):
    assert "hf download" in refused("--model_name_or_path", "user/name")
    dense = save_checkpoint(tiny_model(pruning_layers=[]))
    assert "no pruning stages" in refused("--model_name_or_path", dense, *IMAGES)


def test_more_than_two_classes_are_tuned_by_mean_iou(
    street_model, street_images, save_checkpoint, run_tune, monkeypatch, refused
):
    folder = save_checkpoint(street_model)
    images = street_images
    monkeypatch.setattr("reg4pru.inference.evaluation_data.load_sides", lambda *_: {"validation": images})
    run_tune("--model_name_or_path", folder, *FEW)
    speed = json.loads((folder / "speed.json").read_text(), parse_constant=pytest.fail)
    for row in speed["candidates"]:
        assert {"mean_iou", "pixel_accuracy", "boundary_iou"} < row.keys()
        assert "average_precision" not in row
    assert "| mean IoU | pixel accuracy | boundary IoU |" in (folder / "speed.md").read_text()
    best = max(speed["candidates"], key=lambda row: (row["mean_iou"], -row["milliseconds"]))
    model = Reg4PruForSemanticSegmentation.from_pretrained(folder)
    assert model.set_speed_budget(milliseconds=1e6) == best
    monkeypatch.setattr(
        "reg4pru.inference.evaluation_data.load_sides", lambda *_: {"validation": images.remove_columns("classes")}
    )
    assert "other classes" in refused("--model_name_or_path", folder, *FEW, "--overwrite")
