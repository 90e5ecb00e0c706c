"""`reg4pru evaluate`, as a user runs it, and the model as a predictor to measure."""

import csv
import json
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from datasets_fives import load_vessels
from datasets_fives.field_of_view import field_of_view
from datasets_fives.metrics import METRICS, VesselMetrics, measure
from datasets_fives.splits import SAMPLE_SPLIT
from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.speed_budget import fingerprint_weights
from modeling_reg4pru.tiled_inference import predict_image
from reg4pru import evaluate
from reg4pru.common.data_overlap import image_fingerprints, read_training_images, write_training_images
from reg4pru.hub.arguments import PushArguments
from reg4pru.hub.publishing import stage_checkpoint
from reg4pru.inference.evaluation_data import load_images
from reg4pru.inference.predictors import predictor, predictors
from reg4pru.reporting.evaluation import results_table, write_results


def measured_at(model, processor, images, keep_rates, seed=0, **settings):
    return measure(predictors(model, processor, keep_rates, seed=seed), images, **settings)


@pytest.fixture
def processor() -> Reg4PruImageProcessor:
    return Reg4PruImageProcessor(size={"height": 64, "width": 64})


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """Runs the command with arguments that it must refuse, and returns what it says."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["reg4pru evaluate", *map(str, arguments)])
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(
            "reg4pru.inference.binary_evaluation.measure", lambda *_, **__: pytest.fail("work has begun")
        )
        with pytest.raises(SystemExit) as stopped:
            evaluate.main()
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return run


def test_what_is_undefined_is_no_number_in_the_table():
    vessels, nothing = np.eye(8), np.zeros((8, 8))
    metrics = VesselMetrics()
    for name, mask in (("a", vessels), ("healthy", nothing), ("b", vessels)):
        metrics.update(name, None, mask, mask > 0)
    table = results_table({"1.0": metrics})
    row = next(line for line in table.split("Per image")[1].splitlines() if line.startswith("| 1.0"))
    assert row.split("|")[4].strip() == "1.000 ± 0.000", "Dice of the two with vessels"
    assert "At 1.0 undefined in some images, which are left out of the mean: AP 1, AUROC 1, Dice 1, IoU 1" in table
    empty = VesselMetrics()
    empty.update("healthy", None, nothing, nothing > 0)
    (row,) = (line for line in results_table({"1.0": empty}).splitlines() if line.startswith("| 1.0"))
    assert row.split("|")[4].strip() == row.split("|")[-2].strip() == "–"
    assert "nan" not in row


def test_end_to_end(tiny_model, save_checkpoint, run_command, fails, tmp_path):
    arguments = (
        *("--model_name_or_path", save_checkpoint(tiny_model()), "--working_size", 128, "--limit", 2),
        *("--synthetic_counts", 1, 0, 3, "--keep_rates", 1.0, 0.5, "--output_dir", tmp_path / "out"),
    )

    finished = run_command("evaluate", *arguments)

    assert finished.returncode == 0, finished.stderr
    assert "| 0.5 " in finished.stdout
    assert "centre-line recall" in finished.stdout
    assert (tmp_path / "out/table.md").read_text().strip() == finished.stdout.strip()

    content = json.loads((tmp_path / "out/metrics.json").read_text(), parse_constant=pytest.fail)
    assert list(content["results"]) == ["1.0", "0.5"]
    assert content["provenance"]["seed"] == 0
    assert content["settings"]["field_of_view"] is True
    assert content["weights"] == fingerprint_weights(tmp_path / "checkpoint")
    with (tmp_path / "out/per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["keep_rate"], row["name"]) for row in rows] == [
        (rate, name) for rate in ("1.0", "0.5") for name in ("synthetic/2_D", "synthetic/4_N")
    ]
    for rate, result in content["results"].items():
        assert result["num_images"] == 2
        assert sorted(result["per_condition"]) == ["D", "N"]
        for metric in METRICS:
            values = [float(row[metric]) for row in rows if row["keep_rate"] == rate]
            assert np.mean(values) == pytest.approx(result["per_image"][metric]["mean"], nan_ok=True)
    assert content["results"]["1.0"]["pooled"] != content["results"]["0.5"]["pooled"]

    figure = np.asarray(Image.open(tmp_path / "out/figure.png"))
    assert figure.shape[1] > 1500
    assert len(np.unique(figure.reshape(-1, figure.shape[-1]), axis=0)) > 100

    assert "not empty" in fails(*arguments)
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == content


@pytest.mark.parametrize("inside_field_of_view", [True, False])
def test_equals_the_metrics_of_the_prediction(tiny_model, processor, images, inside_field_of_view):
    model = tiny_model()

    measured = measured_at(model, processor, images, [0.5], inside_field_of_view=inside_field_of_view, threshold=0.4)

    expected = VesselMetrics(threshold=0.4)
    for row in images:
        inside = field_of_view(np.asarray(row["image"])) if inside_field_of_view else None
        probability = predict_image(model, processor, row["image"], 0.5).probabilities[1].numpy()
        expected.update(row["name"], "ADGN"[row["condition"]], probability, np.asarray(row["mask"]), inside)
    assert measured["0.5"].rows == expected.rows
    assert measured["0.5"].compute() == expected.compute()


def test_field_of_view_matters(tiny_model, processor, images):
    model = tiny_model()
    inside = measured_at(model, processor, images, [1.0])
    whole = measured_at(model, processor, images, [1.0], inside_field_of_view=False)

    # There are no vessels outside, so the frame can only add false alarms.
    assert inside["1.0"].compute()["pooled"]["precision"] > whole["1.0"].compute()["pooled"]["precision"]


def test_keep_rate_one_is_the_dense_model(tiny_model, processor, images):
    model = tiny_model()
    dense = tiny_model(pruning_layers=[], keep_rates=[])
    dense.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("selectors.")})

    unpruned, expected = (measured_at(m, processor, images, [1.0]) for m in (model, dense))

    assert unpruned["1.0"].rows == expected["1.0"].rows


def test_what_is_outside_the_field_of_view_can_be_skipped(tiny_model, processor, images):
    model = tiny_model(allocation="image")
    skipping = predictors(model, processor, [1.0, 0.5], skip_outside=True)
    for name, predict in skipping.items():
        image = images[0]["image"]
        inside = field_of_view(np.asarray(image))
        assert 0.5 < inside.mean() < 0.9
        wanted = predict_image(model, processor, image, float(name), pixel_mask=inside).probabilities[1]
        np.testing.assert_array_equal(predict(image, 0), wanted)
        assert (predict(image, 0) != predictor(model, processor, float(name))(image, 0)).any()


def test_random_selection_does_not_depend_on_what_else_is_measured(tiny_model, processor, images):
    model = tiny_model(selector="random", train_pruning="none")

    alone = measured_at(model, processor, images, [0.5])
    among = measured_at(model, processor, images, [0.7, 0.5])
    other = measured_at(model, processor, images, [0.5], seed=9)

    assert alone["0.5"].rows == among["0.5"].rows
    assert alone["0.5"].rows != other["0.5"].rows


def test_a_figure_that_fails_costs_no_results(tiny_model, save_checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def fail(*_, **__):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("reg4pru.inference.binary_evaluation.draw_figures", fail)
    flags = ["--model_name_or_path", save_checkpoint(tiny_model()), "--synthetic_counts", 1, 0, 1]
    flags = [*flags, "--working_size", 64, "--keep_rates", 1.0, "--output_dir", tmp_path / "out"]
    assert evaluate.main([*map(str, flags)]) == 1
    assert json.loads((tmp_path / "out/metrics.json").read_text())["results"]["1.0"]["num_images"] == 1

    for name in ("figure.png", "classes.png"):  # of an earlier evaluation, with other weights
        (tmp_path / "out" / name).write_bytes(b"old")
    assert evaluate.main([*map(str, flags), "--overwrite_output_dir"]) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"metrics.json", "per_image.csv", "table.md"}

    monkeypatch.setattr("reg4pru.reporting.evaluation.replace_text", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(SystemExit, match=r"Measured, but .* could not be written to: full"):
        evaluate.main([*map(str, flags), "--overwrite_output_dir"])
    assert capsys.readouterr().out.count("| 1.0") >= 2, "the table is shown all the same"


def test_overrides_reach_the_model(tiny_model, save_checkpoint, monkeypatch, tmp_path):
    seen = {}

    def stop(model, *_, **settings):
        seen["skips"] = settings["skip_outside"]
        seen["pool"], seen["allocation"] = model.config.selection_pool, model.config.allocation
        seen["selectors"] = [type(s).__name__ for s in model.selectors]
        raise KeyboardInterrupt

    monkeypatch.setattr("reg4pru.inference.binary_evaluation.predictors", stop)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    arguments = (
        f"--model_name_or_path {save_checkpoint(tiny_model())} --output_dir {tmp_path / 'out'} --working_size 64"
    )
    arguments += " --synthetic_counts 1 0 1 --selection_pool all --allocation image --selector random"
    arguments += " --skip_outside"
    monkeypatch.setattr(sys, "argv", ["reg4pru evaluate", *arguments.split()])
    with pytest.raises(KeyboardInterrupt):
        evaluate.main()

    assert seen == {"skips": True, "pool": "all", "allocation": "image", "selectors": ["RandomSelector"] * 3}


def test_named_split_from_a_file(tiny_model, save_checkpoint, fives_dir, tmp_path, monkeypatch):
    split = tmp_path / "split.yaml"
    split.write_text("train: [test/2_A]\ntest: [test/39_A]\n")
    names = {}
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for wanted in ("sample", str(split)):
        arguments = evaluate.EvaluationArguments(
            model_name_or_path="unused",
            output_dir="unused",
            dataset=str(fives_dir),
            split=wanted,
            working_size=64,
        )
        names[wanted] = load_images(arguments, "test")["name"][:]

    assert names == {"sample": SAMPLE_SPLIT["test"], str(split): ["test/39_A"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep_rates", "0.7", "1.5"], "1.5"),
        (["--keep_rates", "0"], "0.0"),
        (["--keep_rates", "0.7", "0.7"], "twice"),
        (["--threshold", "1"], "threshold is 1.0"),
        (["--limit", "0"], "--limit is 0"),
        (["--batch_size", "0"], "--batch_size is 0"),
        (["--selector", "best"], "invalid choice: 'best'"),
        (["--model_name_or_path", "./missing"], "./missing"),
        (["--dataset", "./missing"], "missing"),
        (["--split", "missing.yaml"], "missing.yaml"),
        (["--side", "validation"], "no side 'validation'"),
        (["--synthetic_counts", "1", "0", "0"], "no side 'test'"),
        (["--device", "nowhere"], "nowhere"),
    ],
)
def test_errors_before_any_work(tiny_model, save_checkpoint, fails, tmp_path, arguments, message):
    folder = save_checkpoint(tiny_model())
    common = ["--model_name_or_path", folder, "--output_dir", tmp_path / "out", "--working_size", 64]

    said = fails(*common, "--synthetic_counts", 1, 0, 1, *arguments)

    assert message in said
    assert not (tmp_path / "out").exists()


def test_images_of_the_training_are_refused(tiny_model, save_checkpoint, fails, tmp_path, monkeypatch, caplog):
    """Whatever their size, their name and the side that they are on here."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    checkpoint = save_checkpoint(tiny_model())
    trained = load_vessels("synthetic", working_size=96, synthetic_counts=(4, 0, 2), fingerprints=True)["train"]
    write_training_images(checkpoint, image_fingerprints(trained))
    common = ["--model_name_or_path", checkpoint, "--working_size", 64, "--output_dir"]

    said = fails(*common, tmp_path / "out", "--synthetic_counts", 3, 0, 3)
    assert "was trained on 1 of the 3 images to measure: synthetic/4_N. Give the split, seed and side" in said
    assert not (tmp_path / "out").exists()

    monkeypatch.undo()
    common += [tmp_path / "out", "--keep_rates", 1.0, "--synthetic_counts"]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    evaluate.main([*map(str, common), "4", "0", "2"])
    assert json.loads((tmp_path / "out/metrics.json").read_text())["trained_on"] == []
    evaluate.main([*map(str, common), "3", "0", "3", "--allow_training_images", "--overwrite_output_dir"])
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    assert content["trained_on"] == ["synthetic/4_N"]
    assert set(content["images"]) == {"synthetic/4_N", "synthetic/5_A", "synthetic/6_D"}
    assert content["data"]["images"] == {"test": 3}

    pushed = {
        "model_name_or_path": str(checkpoint),
        "hub_model_id": "me/tiny",
        "metrics": str(tmp_path / "out/metrics.json"),
    }
    with pytest.raises(ValueError, match="was trained on 1 of the 3 images"):
        stage_checkpoint(PushArguments(**pushed), tmp_path / "staged")
    stage_checkpoint(PushArguments(**pushed, allow_training_images=True), tmp_path / "staged")
    assert "**1 of them were trained on.**" in (tmp_path / "staged/README.md").read_text()
    assert read_training_images(str(tmp_path / "staged")) == image_fingerprints(trained)


def test_no_images_is_an_error(tiny_model, processor, images):
    with pytest.raises(ValueError, match="no images"):
        measured_at(tiny_model(), processor, images.select([]), [0.5])


def test_undefined_metrics_become_null(tmp_path):
    metrics = VesselMetrics()
    metrics.update("empty", "N", np.zeros((32, 32)), np.zeros((32, 32), dtype=bool))

    write_results(tmp_path, {"1.0": metrics}, table="")

    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert content["results"]["1.0"]["pooled"]["dice"] is None
    assert "nan" in (tmp_path / "per_image.csv").read_text()
