"""The benchmark from end to end at a tiny size, and how it measures."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.policy_attention import policy_attention
from reg4pru.benchmark import main
from reg4pru.benchmarking.arguments import BenchmarkArguments, check_benchmark
from reg4pru.benchmarking.baselines import (
    dense_model,
    explicit_policy_attention,
    model_config,
    use_explicit_attention,
    variant,
    variant_config,
)
from reg4pru.benchmarking.flops import forward_flops, token_counts
from reg4pru.benchmarking.timing import (
    interleaved_rounds,
    peak_memory,
    peak_of_allocations,
    summary,
    time_shares,
)
from reg4pru.benchmarking.training_steps import typical_windows

CPU = torch.device("cpu")
TINY = ("--model_size", "debug", "--image_size", 64, "--min_seconds", 0.01, "--device", "cpu")


def test_from_end_to_end(run_command, tmp_path, capsys):
    folder = tmp_path / "results"
    flags = (*TINY, "--batch_sizes", 1, 2, "--keep_rates", 1.0, 0.5, "--rounds", 2)
    flags += ("--train", "--train_rounds", 2, "--profile", "--output_dir", folder)
    done = run_command("benchmark", *flags)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "benchmark.json").read_text())
    assert results["complete"]
    assert results["weights"] is None, "random weights, of no checkpoint"
    assert results["num_parameters"] > 1000
    assert results["provenance"]["versions"]["torch"] == torch.__version__
    assert (folder / "benchmark.png").stat().st_size > 10_000
    assert (folder / "table.md").read_text().strip() in done.stdout
    assert "aten::addmm" in (folder / "profile_batch2_keep0.5_l5.txt").read_text()

    for batch_size in (1, 2):
        rows = [row for row in results["inference"] if row["batch_size"] == batch_size]
        assert [(row["keep_rate"], row["reactivation_layer"]) for row in rows] == [
            (None, None), (1.0, 4), (0.5, 4), (1.0, 5), (0.5, 5)
        ]  # fmt: skip
        dense = rows[0]
        for row in rows:
            assert len(row["seconds"]) == 2
            ratios = [other / own for own, other in zip(row["seconds"], dense["seconds"], strict=True)]
            assert row["ratio"] == pytest.approx(statistics.median(ratios))
            assert row["throughput"] == pytest.approx(batch_size / statistics.median(row["seconds"]))
            assert row["flops_limit"] == pytest.approx(dense["gflops"] / row["gflops"])
            assert row["peak_memory"] > 0
        assert all(0 < row["between_layers_share"] < 1 for row in rows[1:])
        assert all(sum(row["time_shares"].values()) == pytest.approx(1) for row in rows[1:])
        assert dense["gflops"] == rows[1]["gflops"] > rows[2]["gflops"] > rows[4]["gflops"]
        assert dense["token_counts"] == rows[1]["token_counts"]

    variants = {row["name"]: row for row in results["training"]}
    assert len(variants) == 7
    dense = variants["dense"]
    for name, measured in variants.items():
        assert len(measured["seconds"]) == 2
        assert measured["memory_ratio"] == pytest.approx(measured["peak_memory"] / dense["peak_memory"])
        assert len(measured["windows"]) == (2 if "routing" in name else 0)
    assert results["policy_attention"]["output_difference"] < 1e-5

    before = (folder / "benchmark.json").read_bytes()
    with pytest.raises(SystemExit):
        main([*map(str, flags)])
    assert "--overwrite_output_dir" in capsys.readouterr().err
    assert (folder / "benchmark.json").read_bytes() == before


@pytest.mark.parametrize("allocation", ["tile", "image"])
def test_an_image_is_measured_with_all_its_tiles(allocation, tmp_path, monkeypatch):
    called, forward = [], Reg4PruForSemanticSegmentation.forward

    def noting(model, pixel_values, patch_offsets):
        called.append((len(pixel_values), patch_offsets[-1].tolist(), model.config.allocation))
        return forward(model, pixel_values, patch_offsets=patch_offsets)

    monkeypatch.setattr(Reg4PruForSemanticSegmentation, "forward", noting)
    flags = ("--model_size", "debug", "--image_size", 96, "--tile_size", 64, "--min_seconds", 0.01, "--device", "cpu",
             "--keep_rates", 0.5, "--reactivation_layers", -1, "--batch_sizes", 2, "--rounds", 1)  # fmt: skip
    assert main([*map(str, flags), "--allocation", allocation, "--output_dir", str(tmp_path / "out")]) == 0
    assert {str(call) for call in called} == {str((8, [0, 32, 32, 64, 96, 96, 96, 96, 14], allocation))}
    results = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert results["tiles_per_image"] == 4
    dense, pruned = results["inference"]
    unpruned = variant_config(model_config("debug", 64), keep_rates=1.0)
    assert dense["gflops"] == pytest.approx(8 * sum(forward_flops(unpruned, (8, 8)).values()) / 1e9)
    assert pruned["throughput"] == pytest.approx(2 / pruned["latency"])


def test_an_interruption_leaves_what_was_measured(tmp_path):
    path = tmp_path / "results" / "benchmark.json"
    command = [sys.executable, "-m", "reg4pru", "benchmark", *TINY, "--rounds", 100_000, "--output_dir", path.parent]
    command += ["--keep_rates", 0.5, "--reactivation_layers", -1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # Tests that a shell has put into the background ignore SIGINT, and would hand that on.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=heed
    )
    try:
        until = time.monotonic() + 600
        while not (path.exists() and json.loads(path.read_text())["inference"]):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    results = json.loads(path.read_text())
    assert not results["complete"]
    dense, pruned = results["inference"]
    assert len(dense["seconds"]) >= 1
    assert pruned["ratio"] > 0
    assert "| reg4pru | 1 | 0.5 | L−1 |" in shown
    assert (path.parent / "benchmark.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rounds": 0}, "--rounds is 0"),
        ({"batch_sizes": [1, 0]}, "--batch_sizes is"),
        ({"split": "sample"}, "--split is sample: it needs --engines"),
        ({"engines": ["all"], "train": True}, "--train is True: it is not for --engines"),
        ({"engines": ["int4"]}, "--engines has int4: give all, or some of float32"),
        ({"engines": ["all"], "batch_sizes": [1, 2]}, "engines are compared at one"),
    ],
)
def test_bad_arguments(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        check_benchmark(BenchmarkArguments(output_dir=str(tmp_path / "new"), **flags))
    check_benchmark(BenchmarkArguments(output_dir=str(tmp_path / "new"), device="cpu"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--num_threads", "-1"], "--num_threads is -1"),
        (["--model_size", "debug", "--image_size", "33"], "multiples of the patch size"),
        (["--device", "abacus"], "The device 'abacus' cannot be used"),
        (["--model_name_or_path", "nowhere"], "No checkpoint could be loaded from 'nowhere'"),
        (["--model_size", "debug", "--reactivation_layers", "0"], "reactivation_layer"),
        (["--model_size", "debug", "--keep_rates", "1.5"], "keep rates contain 1.5"),
        (["--model_size", "huge"], "--model-size: invalid choice: 'huge' (choose from"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--compile_mode", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_command_names_what_is_wrong_before_it_measures(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        main(["--output_dir", str(tmp_path / "new"), *flags])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_rounds_are_interleaved():
    order = []
    calls = [partial(order.append, "a"), partial(order.append, "b")]
    for number, seconds in enumerate(interleaved_rounds(calls, CPU, 3), start=1):
        assert len(seconds) == 2
        assert order == ["a", "a", "b", "b"] + ["a", "b"] * number  # two calls each warm up


def test_short_calls_are_repeated_within_a_round():
    calls = []
    next(interleaved_rounds([partial(calls.append, 0), partial(time.sleep, 0.1)], CPU, 1, min_seconds=0.05))
    assert len(calls) > 100


def test_ratios_are_taken_within_their_rounds():
    """The machine was ten times slower in the last round: that must not matter."""
    result = summary([1.0, 1.1, 10.0], [2.0, 2.2, 20.0], batch_size=4)
    assert result["ratio"] == pytest.approx(2.0)
    assert result["latency"] == 1.1
    assert result["throughput"] == pytest.approx(4 / 1.1)
    assert result["latency_quartiles"] == pytest.approx([1.05, 5.55])


def test_peak_memory():
    def call():
        first = torch.zeros(1_000_000)
        second = first + 1
        del first
        return second.sum() + torch.zeros(500_000).sum()

    kept = torch.zeros(3_000_000)  # what was there before does not count
    assert peak_memory(call, CPU) == pytest.approx(8_000_000, rel=0.01)
    assert kept.sum() == 0
    assert peak_of_allocations([]) == 0
    records = [(10, 110), (20, 130), (-30, 100)]
    assert peak_of_allocations([{"Bytes": size, "Total Allocated": total} for size, total in records]) == 30


def test_where_the_time_goes(tiny_model, pixel_values):
    """A part that dawdles shows where it belongs."""
    model = tiny_model(
        pruning_layers=[1], reactivation_layer=4, train_pruning="hard", routing=False, drift_correction=True
    )
    modules = {
        "embeddings": model.embeddings.patch_embeddings,
        "full_layers": model.layers[5].mlp,
        "pruned_layers": model.layers[3].attention,
        "selectors": model.selectors[0],
        "corrections": model.drift_corrections[0].fc1,
        "heads": model.mask_head,
    }
    for name, module in modules.items():
        dawdle = module.register_forward_hook(lambda *_: time.sleep(0.5))
        shares = time_shares(model, lambda: model(pixel_values, keep_rates=0.5), CPU, repeats=1)
        dawdle.remove()
        assert shares[name] > 0.5
        assert sum(shares.values()) == pytest.approx(1)
    assert not model.layers[0]._forward_hooks


def test_variants_share_weights_and_nothing_else(tiny_model, pixel_values):
    model = tiny_model()
    other = variant(model, keep_rates=0.3, reactivation_layer=5)
    assert other.layers[0].mlp.up_proj.weight is model.layers[0].mlp.up_proj.weight
    assert list(model(pixel_values).token_counts.tolist()) == token_counts(model.config, 64)
    assert list(other(pixel_values).token_counts.tolist()) == token_counts(other.config, 64)
    assert model.config.keep_rates == 0.7
    with pytest.raises(StrictDataclassClassValidationError, match="reactivation_layer"):
        variant(model, reactivation_layer=1)


@pytest.mark.parametrize("drift_correction", [False, True])
def test_dense_model_has_the_same_weights(tiny_model, pixel_values, drift_correction):
    model = tiny_model(num_queries=4, num_labels=3, train_pruning="hard", drift_correction=drift_correction)
    wanted = dense_model(model, 64)(pixel_values)
    outputs = model(pixel_values, keep_rates=1.0)
    torch.testing.assert_close(outputs.masks_queries_logits, wanted.masks_queries_logits)
    torch.testing.assert_close(outputs.class_queries_logits[:, :, :0], wanted.class_queries_logits[:, :, :0])


@torch.no_grad()
def test_explicit_policy_equals_the_extra_channel(tiny_model, pixel_values):
    query, key, value = torch.randn(3, 2, 4, 20, 16)
    policy = (torch.rand(2, 20) < 0.5).float()
    module = tiny_model().layers[0].attention
    module.scaling = 0.25

    def kernel(module, query, key, value, mask, scaling, **kwargs):
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
        return output.transpose(1, 2), None

    wanted, _ = policy_attention(kernel, module, query, key, value, policy)
    torch.testing.assert_close(explicit_policy_attention(query, key, value, policy, 0.25).transpose(1, 2), wanted)

    model = tiny_model(routing=False, masked_attention=False).train()
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(model(pixel_values, labels=torch.ones(3, 64, 64, dtype=torch.long)).loss)
        use_explicit_attention(model).train()
    torch.testing.assert_close(*losses)


def test_typical_windows(tiny_config):
    config = tiny_config(num_hidden_layers=12)
    windows = typical_windows(config, 100)
    lengths = [end - start for start, end in windows]
    assert lengths == sorted(lengths)
    assert statistics.mean(lengths) == pytest.approx(3.5, abs=0.1)  # l ~ U{2..6}, n ~ U{l+1..10}
    assert {tuple(window) for window in windows} <= {
        (start, end) for start in range(2, 7) for end in range(start + 1, 11)
    }
    assert len(typical_windows(config, 1)) == 1
    assert typical_windows(tiny_config(routing_window=[1, 3]), 2) == [[1, 3], [1, 3]]
