"""What was learned outlives a measurement that fails, and the best state outlives the limit of states."""

import json

import pytest
from safetensors.torch import load_file

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from reg4pru import finetune, train
from reg4pru.training.validation import ImageMetrics

DATA = ["--working_size", "64", "--synthetic_counts", "4", "2", "1", "--per_device_train_batch_size", "2",
        "--learning_rate", "1e-3", "--ema_decay", "0.5"]  # fmt: skip


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def checkpoint(tiny_model, save_checkpoint):
    return save_checkpoint(tiny_model(masked_attention=False, initializer_range=0.02))


def run(command, checkpoint, folder, *more):
    start = ["--model_name_or_path", str(checkpoint), "--output_dir", str(folder), *DATA, *map(str, more)]
    if command == "train":
        train.main([*start, "--max_train_steps", "2", "--eval_steps", "1",
                    "--head_warmup_steps", "0", "--backbone_warmup_steps", "0"])  # fmt: skip
        return folder / "last"
    finetune.main([*start, "--max_steps", "2", "--use_cpu", "--report_to", "none"])
    return folder


def fail_after(monkeypatch, measured: int):
    """All measurements but the first ones fail."""
    compute, seen = ImageMetrics.compute, []

    def fail(self):
        seen.append(1)
        if len(seen) > measured:
            raise KeyError("eval_ap")
        return compute(self)

    monkeypatch.setattr(ImageMetrics, "compute", fail)


EACH_STEP = ("--eval_strategy", "steps", "--eval_steps", "1")


@pytest.mark.parametrize(
    ("command", "more", "measured"),
    [
        ("train", (), 0),
        pytest.param("train", (), 1, marks=pytest.mark.slow),
        pytest.param("finetune", EACH_STEP, 0, marks=pytest.mark.slow),
        ("finetune", EACH_STEP, 1),
    ],
)
def test_a_measurement_that_fails_while_training_loses_nothing(
    checkpoint, tmp_path, monkeypatch, command, more, measured
):
    whole = run(command, checkpoint, tmp_path / "whole", *more)
    with monkeypatch.context() as patch:
        fail_after(patch, measured)
        with pytest.raises(SystemExit) as ended:
            run(command, checkpoint, tmp_path / "failed", *more)
    said = str(ended.value)
    assert f"The measurement after step {measured + 1} has failed: KeyError: 'eval_ap'" in said
    assert "continue from it with --resume_from_checkpoint latest" in said
    again = run(command, checkpoint, tmp_path / "failed", *more, "--resume_from_checkpoint", "latest")
    files = [(folder / "model.safetensors").read_bytes() for folder in (whole, again)]
    assert files[0] == files[1]
    if command == "train":  # and what could not be measured was measured then
        logs = [(tmp_path / name / "training_log.jsonl").read_text() for name in ("whole", "failed")]
        assert logs[0] == logs[1]


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_the_weights_are_there_when_the_last_measurement_fails(checkpoint, tmp_path, monkeypatch, command):
    whole = run(command, checkpoint, tmp_path / "whole")
    fail_after(monkeypatch, 1 if command == "train" else 0)
    with pytest.raises(SystemExit) as ended:
        run(command, checkpoint, tmp_path / "failed")
    if command == "finetune":
        assert f"the weights are saved in {tmp_path / 'failed'}" in str(ended.value)
        assert "has failed: KeyError: 'eval_ap'. Measure them with `reg4pru evaluate`" in str(ended.value)
    failed = tmp_path / "failed" / whole.relative_to(tmp_path / "whole")
    assert (failed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    Reg4PruForSemanticSegmentation.from_pretrained(failed)
    Reg4PruImageProcessor.from_pretrained(failed)


def test_the_best_state_outlives_the_limit(checkpoint, tmp_path, monkeypatch):
    aps = iter([0.1, 0.9, 0.5, 0.4, 0.3])
    monkeypatch.setattr(ImageMetrics, "compute", lambda self: {"ap": next(aps), "dice": 0.5, "iou": 0.5})
    folder = tmp_path / "out"
    finetune.main(["--model_name_or_path", str(checkpoint), "--output_dir", str(folder), *DATA, "--max_steps", "4",
                   "--ema_decay", "0", "--use_cpu", "--report_to", "none", *EACH_STEP, "--save_strategy", "steps",
                   "--save_steps", "1", "--save_total_limit", "1", "--load_best_model_at_end", "true",
                   "--metric_for_best_model", "ap", "--greater_is_better", "true"])  # fmt: skip
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    states = ("", "checkpoint-2", "checkpoint-4")
    final, best, last = (load_file(folder / name / "model.safetensors") for name in states)
    assert all((final[name] == best[name]).all() for name in final)
    assert not all((final[name] == last[name]).all() for name in final)
    assert json.loads((folder / "train_results.json").read_text())["best_step"] == 2
