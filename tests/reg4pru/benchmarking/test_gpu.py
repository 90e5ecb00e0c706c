"""`make gpu` from end to end, on a CPU and tiny; it needs neither data sets nor the package's installation."""

import json
import subprocess
import sys

import pytest
import torch

from reg4pru.benchmarking.gpu import OUT_OF_TIME, GpuArguments, main, plan
from reg4pru.maintenance.render_readme import REPOSITORY

ABSENT = ("datasets", "evaluate", "kornia", "reg4pru")
TINY = ["--model_sizes", "debug", "--image_size", "64", "--tile_size", "32", "--batch_sizes", "2"]
TINY += ["--rounds", "1", "--device", "cpu"]


def start(output_dir, *flags: str) -> subprocess.CompletedProcess:
    """On a machine that has torch and transformers only."""
    absent = "".join(f"sys.modules[{name!r}] = None; " for name in ABSENT)
    code = (
        f"import runpy, sys; {absent}runpy.run_module('scripts.benchmarking.gpu', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, "--output_dir", str(output_dir), *flags]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)


def test_from_end_to_end_and_continued(tmp_path, capsys):
    done = start(tmp_path / "gpu", *TINY, "--max_seconds", "1")
    assert done.returncode == 1, done.stderr
    content = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    assert next(iter(content["benchmarks"])) == "debug", "what matters most comes first"
    assert content["skipped"]["debug-compiled"] == OUT_OF_TIME
    table = (tmp_path / "gpu" / "table.md").read_text()
    assert table in done.stdout
    assert "| debug | 64 px | – | no | 2 |" in table
    assert "## Training step, ViT debug, batch 2" in table
    assert f"- Not measured: debug-compiled, {OUT_OF_TIME}." in table

    measured = (tmp_path / "gpu" / "debug" / "benchmark.json").read_bytes()
    capsys.readouterr()
    assert main(["--output_dir", str(tmp_path / "gpu"), *TINY, "--max_seconds", "1"]) == 1
    assert (tmp_path / "gpu" / "debug" / "benchmark.json").read_bytes() == measured, "it is not measured again"
    assert "| debug | 64 px in 9 tiles | tile | no | 2 |" in capsys.readouterr().out


def test_all_that_is_to_be_measured_is_planned():
    benchmarks = plan(GpuArguments(output_dir="out"))
    assert {(each.model_size, each.allocation, each.compile_mode) for each in benchmarks.values()} == {
        (size, *case)
        for size in ("small", "base")
        for case in ((None, None), ("tile", None), ("image", None), (None, "default"))
    }
    assert all(each.batch_sizes == [1, 8] and each.keep_rates == [1.0, 0.7, 0.5, 0.3] for each in benchmarks.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_begins(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--output_dir", str(tmp_path / "gpu")])
    assert exit_.value.code == 2
    assert "'cuda' cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()
