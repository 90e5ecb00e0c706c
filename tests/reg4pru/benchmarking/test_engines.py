"""Engines compute what the model computes, and `reg4pru benchmark --engines` measures them."""

import json

import datasets
import pytest
import torch

from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.speed_budget import fingerprint_weights
from reg4pru import benchmark
from reg4pru.benchmarking import engines
from reg4pru.benchmarking.arguments import BenchmarkArguments
from reg4pru.benchmarking.baselines import dense_model, variant
from reg4pru.benchmarking.engine_comparison import EngineComparison, with_ratios
from reg4pru.benchmarking.engines import Logits, build_engine, why_not
from reg4pru.benchmarking.quality import measure_quality
from reg4pru.benchmarking.report import engine_table
from reg4pru.inference.predictors import predictor

from ...variants import VARIANTS

CPU = torch.device("cpu")


# As EoMT on DINOv2 has it, with a table of positions for other images than those of 64 pixels, and with all that the
# default recipe adds.
LEARNED = {"positions": "learned", "position_grid": [5, 5], "key_bias": True, **VARIANTS["default"]}


def test_classes_are_compared_by_mean_iou(street_model, street_images, tmp_path):
    arguments = BenchmarkArguments(
        output_dir=str(tmp_path), engines=["float32"], keep_rates=[1.0, 0.5], rounds=1, min_seconds=0.001
    )
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64})
    comparison = EngineComparison(arguments, street_model, processor, street_images.select(range(1)))
    table = comparison.run()
    rows = json.loads((tmp_path / "engines.json").read_text(), parse_constant=pytest.fail)["rows"]
    dense, other, unpruned, pruned = (row["mean_iou"] for row in rows)
    assert dense == pytest.approx(unpruned, abs=1e-4)
    assert other is None
    assert pruned != unpruned
    assert unpruned == pytest.approx(
        measure_quality(street_model, processor, comparison.images, 1.0, batch_size=1, seed=0)["mean_iou"], abs=0.02
    )
    assert "| mean IoU | change by engine | pixel accuracy | boundary IoU |" in table
    assert "Fastest engine that loses no more than 0.005 of mean IoU" in table


@torch.no_grad()
@pytest.mark.parametrize("classes", [{}, {"num_labels": 4, "num_queries": 6}], ids=["binary", "four_classes"])
def test_the_dense_model_of_learned_positions(tiny_model, pixel_values, classes):
    learned = tiny_model(**LEARNED, **classes)
    dense = dense_model(learned, 64)
    assert type(dense).__name__ == "EomtForUniversalSegmentation"
    wanted = learned(pixel_values, keep_rates=1.0)
    torch.testing.assert_close(dense(pixel_values).masks_queries_logits, wanted.masks_queries_logits)
    torch.testing.assert_close(Logits(dense)(pixel_values), wanted.logits)
    assert dense.attn_mask_probs.tolist() == [0, 0], "the model itself is as it was"


@torch.no_grad()
def test_torch_engines(tiny_model, pixel_values, tmp_path):
    logits = Logits(tiny_model())
    wanted = logits(pixel_values)
    assert build_engine("float32", logits, (64, 64), tmp_path, CPU) is logits
    half = build_engine("bfloat16", logits, (64, 64), tmp_path, CPU)(pixel_values)
    assert half.dtype == torch.float32
    difference = (half - wanted).abs().mean()
    assert 0 < difference < 0.2 * wanted.abs().mean()
    assert next(logits.parameters()).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's exporter, of torch's own pytree
@torch.no_grad()
def test_onnx_engines(tiny_model, pixel_values, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    # The exporter itself folds weights that are smaller.
    logits = Logits(tiny_model(hidden_size=384, initializer_range=0.05))
    wanted = logits(pixel_values)
    onnx = build_engine("onnx", logits, (64, 64), tmp_path, CPU)
    torch.testing.assert_close(onnx(pixel_values), wanted, atol=1e-4, rtol=1e-4)
    (tmp_path / "int8").mkdir()
    int8 = build_engine("onnx_int8", logits, (64, 64), tmp_path / "int8", CPU)(pixel_values)
    difference = (int8 - wanted).abs().mean()
    assert 1e-4 < difference < 0.5 * wanted.abs().mean()
    assert torch.isfinite(int8).all()

    # What is left in float is a product of two activations, as attention is: also the heads' weights are quantised.
    import onnx

    graph = onnx.load(tmp_path / "int8" / "int8.onnx").graph
    weights = {weight.name for weight in graph.initializer}
    for node in graph.node:
        if weights.issuperset(node.input):
            weights.update(node.output)
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert products
    assert not [node.name for node in products if weights.intersection(node.input)]


def test_what_does_not_work_here_is_said(monkeypatch):
    assert why_not("float32", CPU) is None
    assert "ONNX Runtime is measured on the CPU only" in why_not("onnx", torch.device("cuda"))
    monkeypatch.setattr(engines, "fast_dtype", lambda device: "float32")
    assert "no instructions for bfloat16" in why_not("bfloat16", CPU)
    monkeypatch.setattr(engines, "fast_dtype", lambda device: "bfloat16")
    assert why_not("bfloat16", CPU) is None
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    assert "C++ compiler" in why_not("compile", CPU)


def test_from_end_to_end(tiny_model, save_checkpoint, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(engines, "fast_dtype", lambda device: "float32")
    model = tiny_model()
    folder = tmp_path / "out"
    arguments = [
        *("--model_name_or_path", save_checkpoint(model), "--synthetic_counts", 1, 0, 2, "--working_size", 64),
        *("--engines", "float32", "bfloat16", "--keep_rates", 1.0, 0.5, "--rounds", 1, "--min_seconds", 0.001),
        *("--device", "cpu", "--output_dir", folder),
    ]
    arguments = [str(argument) for argument in arguments]
    benchmark.main(arguments)

    results = json.loads((folder / "engines.json").read_text(), parse_constant=pytest.fail)
    assert (folder / "table.md").read_text() == capsys.readouterr().out
    assert results["weights"] == fingerprint_weights(tmp_path / "checkpoint")
    assert list(results["skipped"]) == ["bfloat16"]
    rows = results["rows"]
    assert [(row["model"], row["keep_rate"], row["engine"]) for row in rows] == [
        ("EomtDinov3ForUniversalSegmentation", None, "float32"),
        ("EomtForUniversalSegmentation", None, "float32"),
        ("reg4pru", 1.0, "float32"),
        ("reg4pru", 0.5, "float32"),
    ]
    dense, other, unpruned, pruned = (row["average_precision"] for row in rows)
    assert dense == pytest.approx(unpruned, abs=1e-6)
    assert other is None
    assert pruned != unpruned
    assert all(row["change"] == 0 for row in rows if row["trained"])
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert "is not empty" in capsys.readouterr().err


def test_tiles_that_share_a_budget_are_not_measured_tile_by_tile_unsaid(
    tiny_model, save_checkpoint, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    checkpoint = save_checkpoint(tiny_model(allocation="image"))
    monkeypatch.setattr(
        EngineComparison, "run", lambda comparison: pytest.fail(f"measures by {comparison.model.config.allocation}")
    )
    flags = ["--model_name_or_path", checkpoint, "--synthetic_counts", 1, 0, 1, "--working_size", 64, "--engines",
             "float32", "--device", "cpu", "--output_dir", tmp_path / "out"]  # fmt: skip
    with pytest.raises(SystemExit):
        benchmark.main([*map(str, flags)])
    assert "(`allocation` is 'image'), but exports and engines have a fixed number" in capsys.readouterr().err
    with pytest.raises(pytest.fail.Exception, match="measures by tile"):
        benchmark.main([*map(str, flags), "--allocation", "tile"])
    with pytest.raises(SystemExit):
        benchmark.main(["--output_dir", str(tmp_path / "out"), "--allocation", "tile"])
    assert "--allocation is tile: it needs --tile_size or --engines" in capsys.readouterr().err


def test_an_engine_stands_in_for_the_model(tiny_model, images):
    model = variant(tiny_model(), keep_rates=0.5)
    processor = Reg4PruImageProcessor(size={"height": 64, "width": 64})
    stand_in = engines.EngineModel(Logits(model), CPU, model.config.id2label)
    image = images[0]["image"]
    wanted = predictor(model, processor, "config")(image, 0)
    assert (predictor(stand_in, processor, "config")(image, 0) == wanted).all()


def test_the_table_says_what_is_fastest_and_as_accurate():
    def row(rate, engine, precision):
        return {"model": "reg4pru", "keep_rate": rate, "engine": engine, "trained": True,
                "average_precision": precision, "dice": 0.5, "cldice": None}  # fmt: skip

    rows = [row(0.5, "float32", 0.9), row(0.5, "onnx", 0.898), row(0.5, "onnx_int8", 0.8), row(0.3, "float32", 0.85)]
    timed = with_ratios(rows, [[4.0], [2.0], [1.0], [3.0]], 1)
    assert [row["ratio"] for row in timed] == [1, 2, 4, pytest.approx(4 / 3)]
    assert [row["change"] for row in timed] == [0, pytest.approx(-0.002), pytest.approx(-0.1), 0]
    results = {
        "rows": timed, "image_size": 64, "settings": {"batch_size": 1}, "skipped": {"compile": "no compiler"},
        "provenance": {"date": "2026-11-22", "device": "a CPU"},
    }  # fmt: skip
    table = engine_table(results)
    assert "- keep rate 0.5: onnx, 2.00 × (AP 0.898)\n- keep rate 0.3: float32, 1.33 × (AP 0.850)" in table
    assert "Not measured: compile, no compiler." in table
