"""Number formats: what is trained are float32 weights, whatever the checkpoint was saved in."""

import pytest
import torch
from safetensors.torch import load_file

from reg4pru import finetune, train


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_checkpoint_in_bfloat16_is_trained_in_float32_and_it_is_said(
    tiny_model, save_checkpoint, tmp_path, caplog, command
):
    start = save_checkpoint(tiny_model(masked_attention=False).bfloat16())
    shared = ["--model_name_or_path", str(start), "--output_dir", str(tmp_path / "out"), "--working_size", "64",
              "--synthetic_counts", "2", "1", "1", "--per_device_train_batch_size", "2", "--ema_decay", "0",
              "--learning_rate", "1e-5"]  # fmt: skip
    if command == "train":
        train.main([*shared, "--max_train_steps", "1", "--head_warmup_steps", "0", "--backbone_warmup_steps", "0"])
    else:
        finetune.main([*shared, "--max_steps", "1", "--use_cpu", "--report_to", "none"])
    folder = tmp_path / "out" / ("last" if command == "train" else "")
    before, after = (load_file(path / "model.safetensors") for path in (start, folder))
    assert {weight.dtype for weight in before.values()} == {torch.bfloat16}
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    weight = "layers.0.mlp.up_proj.weight"
    changed = (before[weight].float() != after[weight]).float().mean()
    assert changed > 0.9, "in bfloat16 most steps of 1e-5 are too small"
    assert f"{start} is saved in bfloat16; its weights are trained, and saved, in float32" in caplog.text
