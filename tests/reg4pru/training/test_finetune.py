"""Fine-tuning with Trainer: as good as `reg4pru train`, exact resume, and what is saved."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from datasets_fives import load_fives
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from reg4pru import finetune as finetune_trainer
from reg4pru import train
from reg4pru.training.arguments import PruningScheduleArguments
from reg4pru.training.callbacks import PruningScheduleCallback
from reg4pru.training.validation import ImageMetrics, ImageTiles, tile_predictions


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def checkpoint(tiny_model, save_checkpoint):
    return save_checkpoint(tiny_model(masked_attention=False, initializer_range=0.02))


DATA = ["--working_size", "64", "--synthetic_counts", "8", "3", "2"]


def finetune(checkpoint, output_dir, *more):
    fixed = ["--use_cpu", "--per_device_train_batch_size", "2", "--learning_rate", "1e-3", "--report_to", "none"]
    command = [
        "--model_name_or_path",
        str(checkpoint),
        "--output_dir",
        str(output_dir),
        *DATA,
        *fixed,
        *map(str, more),
    ]
    finetune_trainer.main(command)
    return load_file(output_dir / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_resuming_changes_nothing_and_checkpoints_hold_the_target(checkpoint, tmp_path, capsys):
    more = ("--max_steps", "6", "--save_steps", "3", "--keep_rate_warmup", "0.9", "--samples_per_image", "1")
    whole = finetune(checkpoint, tmp_path / "whole", *more)
    first = tmp_path / "whole" / "checkpoint-3"
    assert json.loads((first / "config.json").read_text())["keep_rates"] == [0.7] * 3
    # As if killed after step 3: the rest is gone.
    for path in (tmp_path / "whole").iterdir():
        if path.name != first.name:
            path.rename(tmp_path / f"old-{path.name}")
    again = finetune(checkpoint, tmp_path / "whole", *more, "--resume_from_checkpoint", "latest")
    assert same(again, whole)
    assert not same(again, load_file(first / "model.safetensors"))
    results = json.loads((tmp_path / "whole" / "train_results.json").read_text())
    assert results["total_steps"] == 6
    assert len(results["train_names"]) == 8
    assert 0 < results["validation"]["ap"] <= 1
    with pytest.raises(SystemExit):
        finetune(checkpoint, tmp_path / "whole", *more)
    assert "is not empty" in capsys.readouterr().err


DEFAULT_RECIPE = ["--distillation", "--keep_rate_range", "0.3", "1.0", "--selector_learning_rate", "1e-2",
                  "--config_overrides", "selector=foreground_mlp", "train_pruning=hard", "routing=false",
                  "drift_correction=true"]  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [["--keep_rate_warmup", "0.4"], pytest.param(DEFAULT_RECIPE, marks=pytest.mark.slow)],
    ids=["one-pass", "default-recipe"],
)
def test_ends_in_the_weights_of_train(checkpoint, tmp_path, more):
    """Over several epochs, with dense start, warm-up, routing, accumulated batches and the weight average."""
    shared = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--learning_rate", "3e-3",
              "--ema_decay", "0.9", "--head_warmup_steps", "2", "--backbone_warmup_steps", "5", "--layer_decay", "0.9",
              "--dense_fraction", "0.2", *more]  # fmt: skip
    finetune(checkpoint, tmp_path / "trainer", "--max_steps", "10", "--weight_decay", "0.05", *shared)
    train.main(["--model_name_or_path", str(checkpoint), "--output_dir", str(tmp_path / "accelerate"), *DATA,
                "--max_train_steps", "10", "--eval_steps", "4", *shared])  # fmt: skip
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("trainer", "accelerate/last")]
    assert same(*weights)
    assert not same(weights[0], load_file(checkpoint / "model.safetensors"))

    # And Trainer reports of the model that it saved what validation finds.
    model = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "trainer").eval()
    processor = Reg4PruImageProcessor.from_pretrained(tmp_path / "trainer")
    rows = load_fives("synthetic", working_size=64, synthetic_counts=(8, 3, 2))["validation"]
    metrics = ImageMetrics()
    for tile in ImageTiles(rows, processor):
        with torch.no_grad():
            probability = tile_predictions(model(tile["pixel_values"][None]).logits, tile["labels"][None])
        metrics.update(probability, tile["labels"][None], tile["patch_offsets"][None])
    reported = json.loads((tmp_path / "trainer" / "train_results.json").read_text())["validation"]
    assert reported == pytest.approx(metrics.compute(), abs=1e-6)


def test_the_schedule_warms_up_and_gives_the_target_back(tiny_model):
    model = tiny_model()
    schedule = PruningScheduleCallback(PruningScheduleArguments(keep_rate_warmup=0.5, dense_fraction=0.2))
    state, control = TrainerState(max_steps=10), TrainerControl()
    schedule.on_train_begin(None, state, control, model=model)
    seen = []
    for step in range(10):
        state.global_step = step
        schedule.on_step_begin(SimpleNamespace(seed=0), state, control, model=model)
        seen.append((model.config.keep_rates, model.attn_mask_probs[0].item()))
        schedule.on_step_end(None, state, control, model=model)
        assert list(model.config.keep_rates) == [0.7] * 3
    assert [rates is None for rates, _ in seen] == [True] * 2 + [False] * 8
    rates = [rates[0] for rates, _ in seen[2:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert rates[-1] == 0.7
    assert (seen[0][1], seen[-1][1]) == (1.0, 0.0)


def test_accumulated_batches_give_the_mean_gradient(checkpoint, tmp_path, monkeypatch):
    """`Trainer` scales the loss by 1 / n unless the model claims to; two halves of a batch must weigh a half each."""
    norms = {}
    for name, batch, accumulate in (("whole", 4, 1), ("halves", 2, 2)):
        finetune(checkpoint, tmp_path / name, "--max_steps", "1", "--per_device_train_batch_size", batch,
                 "--gradient_accumulation_steps", accumulate, "--logging_steps", "1", "--ema_decay", "0",
                 "--dense_fraction", "1", "--save_strategy", "steps", "--save_steps", "1")  # fmt: skip
        log = json.loads((tmp_path / name / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
        norms[name] = log[0]["grad_norm"]
    assert norms["halves"] == pytest.approx(norms["whole"], rel=0.35), "not twice as large"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hub_token", "secret"], "would be written to training_args.bin"),
        (["--push_to_hub"], "--push_to_hub needs --hub_model_id"),
        (["--streaming"], "--streaming is for reg4pru train"),
        (["--dataloader_persistent_workers", "--dataloader_num_workers", "1"], "repeat the augmentations"),
        (["--resume_from_checkpoint", "latest"], "no checkpoint to resume from"),
        (
            [
                "--eval_strategy",
                "steps",
                "--eval_steps",
                "0.5",
                "--load_best_model_at_end",
                "--save_strategy",
                "epoch",
            ],
            "load_best_model_at_end requires the save and eval strategy to match",
        ),
        (["--learning_rate", "0"], "--learning_rate is 0.0: it must be above 0"),
        (["--selector_learning_rate", "-1"], "--selector_learning_rate is -1.0: it must be above 0"),
        (["--layer_decay", "0"], "--layer_decay is 0.0: it must lie in (0, 1]"),
        (["--ema_decay", "2"], "--ema_decay is 2.0: it must lie in [0, 1]"),
        (["--dense_fraction", "7"], "--dense_fraction is 7.0: it must lie in [0, 1]"),
        (["--keep_rate_range", "0.5"], "--keep_rate_range is [0.5]: it must be two rates"),
        (["--keep_rate_range", "0.9", "1.7"], "--keep_rate_range is [0.9, 1.7]: it must be two rates"),
        (["--samples_per_image", "0"], "--samples_per_image is 0: it must be at least 1"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size is 0: it must be at least 1"),
        (["--random_crop", "--tile_size", "64"], "--random_crop or --tile_size, not both"),
    ],
)
def test_bad_flags_are_refused(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        finetune(tmp_path / "nothing", tmp_path / "out", "--max_steps", "1", *flags)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "secret" not in said.replace("--hub_token would", "")
    assert not (tmp_path / "out").exists()


def test_a_field_that_there_is_not_is_refused_in_a_line(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        finetune(checkpoint, tmp_path / "out", "--max_steps", "1", "--config_overrides", "keep_rats=0.5")
    assert stopped.value.code == 2
    assert "config_overrides has ['keep_rats'], which are not fields" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_image_size_is_written_into_the_processor(checkpoint, tmp_path):
    finetune(checkpoint, tmp_path / "out", "--max_steps", "1", "--config_overrides", "image_size=32")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["image_size"] == 32
    written = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (written["size"], written["working_size"]) == ({"height": 32, "width": 32}, 32)


def test_an_incomplete_last_batch_is_dropped_in_training_only(checkpoint, tmp_path):
    """3 validation images in batches of 2; the training does not reach its own last batch in one step."""
    measured = []
    for drop in ("false", "true"):
        folder = tmp_path / drop
        finetune(checkpoint, folder, "--max_steps", "1", "--per_device_eval_batch_size", "2",
                 "--eval_strategy", "steps", "--eval_steps", "1", "--dataloader_drop_last", drop)  # fmt: skip
        measured.append(json.loads((folder / "train_results.json").read_text())["validation"])
    assert measured[0] == measured[1]
