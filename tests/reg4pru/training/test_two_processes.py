"""Two processes that train together end where one ends with the same batches, and only one of them writes."""

import json

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load

from reg4pru.training import output_folder, setup

from ...variants import VARIANTS
from .processes import Runs

pytestmark = pytest.mark.timeout(600)
# What the recipes do: begin dense, then a rate of its own for every step, and a dense pass to learn from.
SCHEDULE = ("--dense_fraction", 0.3, "--keep_rate_range", 0.3, 1.0, "--distillation")
PLAIN = ("--ema_decay", 0, "--keep_rate_warmup", 0)
WITHOUT_STATES = {"train": ("--checkpointing_steps", 1000), "finetune": ("--save_strategy", "no")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def apart(runs, command, one, other):
    """Mean distance of weights. Where a gradient is zero but for rounding, AdamW still takes a step of full length."""
    one, other = (load(runs.weights(command, name)) for name in (one, other))
    return torch.cat([(one[name] - weight).abs().flatten() for name, weight in other.items()]).mean().item()


def train_both(runs, command, name, *more, config=None):
    """With two processes of two images a step, with one of four, and with one of two, which is another thing."""
    more = (*WITHOUT_STATES[command], *more)
    assert runs.complete(command, f"one-{name}", "--per_device_train_batch_size", 4, *more, config=config) == 0
    assert runs.complete_pair(command, f"two-{name}", *more, config=config) == [0, 0], runs.said(f"two-{name}")


NAMES = ("dense", "soft", "reg4pru", "hard", "learned_query", "half_routed", "default")
SLOW = {variant: pytest.mark.slow for variant in NAMES if variant != "default"}


@pytest.mark.parametrize("variant", [pytest.param(variant, marks=SLOW.get(variant, ())) for variant in NAMES])
def test_weights_are_those_of_one_process(runs, variant):
    schedule = SCHEDULE if variant == "default" else ()
    more = (*PLAIN, *schedule, "--max_train_steps", 6)
    train_both(runs, "train", variant, *more, config=VARIANTS[variant])
    assert runs.complete("train", f"small-{variant}", *more, config=VARIANTS[variant]) == 0
    distance, other = (apart(runs, "train", f"one-{variant}", f"{name}-{variant}") for name in ("two", "small"))
    print(f"{variant}: {distance:.1e} apart; half of the batch: {other:.1e}")
    assert distance < 1e-5
    assert distance < other / 20
    one, two = (runs.folder / f"{processes}-{variant}" for processes in ("one", "two"))
    # The log tells of the losses of the writing process only.
    logs = [list(map(json.loads, (run / "training_log.jsonl").read_text().splitlines())) for run in (one, two)]
    assert [line["step"] for line in logs[1]] == [line["step"] for line in logs[0]]
    aps = [[line["validation_ap"] for line in log if "validation_ap" in line] for log in logs]
    assert aps[1] == pytest.approx(aps[0], abs=1e-2)
    assert json.loads((two / "train_results.json").read_text())["total_steps"] == 6


@pytest.mark.slow
def test_layers_that_are_computed_again_and_a_selector_that_learns_nothing(runs):
    """Gradient checkpointing in processes that wait for every gradient, where the selector gets none."""
    more = (*PLAIN, "--gradient_checkpointing", "--max_train_steps", 4)
    train_both(runs, "train", "again", *more, config=VARIANTS["dense"])
    assert apart(runs, "train", "one-again", "two-again") < 1e-5


@pytest.mark.slow
def test_finetune_in_two_processes(runs):
    even = ("--synthetic_counts", 8, 2, 1)  # Trainer ends an epoch with a batch of what is left
    train_both(runs, "finetune", "finetune", *even, *PLAIN, "--max_steps", 6, config=VARIANTS["reg4pru"])
    assert apart(runs, "finetune", "one-finetune", "two-finetune") < 1e-5


@pytest.mark.slow
def test_fsdp_shards_and_saves_whole_weights(runs):
    """On a CPU, where Accelerate 1.15 leaves FSDP out, the type of the processes is set by hand."""
    more = (*PLAIN, "--max_train_steps", 6, "--mixed_precision", "no", "--checkpointing_steps")
    assert runs.complete("train", "unsharded", "--per_device_train_batch_size", 4, *more, 1000) == 0
    sharded = {"use_cpu": True, "shards": True}
    assert runs.complete_pair("train", "sharded", *more, 4, **sharded) == [0, 0], runs.said("sharded")
    assert list((runs.folder / "sharded/checkpoints/step-00000004").rglob("*.distcp"))
    assert apart(runs, "train", "unsharded", "sharded") < 1e-5
    assert not list((runs.folder / "sharded/last").glob("_fsdp*")), "the code that is saved is ours"
    whole = runs.weights("train", "sharded")
    for path in (runs.folder / "sharded").glob("*/model.safetensors"):
        path.unlink()
    again = (*more, 4, "--resume_from_checkpoint", "latest")
    assert runs.complete_pair("train", "sharded", *again, **sharded) == [0, 0], runs.said("sharded")
    assert runs.weights("train", "sharded") == whole
    assert runs.complete_pair("train", "averaged", **sharded) == [2, 2]
    assert "under FSDP there is no weight average; add --ema_decay 0" in runs.said("averaged")


def test_fsdp_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for"):
        setup.check_processes(1)


@pytest.mark.parametrize(
    ("command", "allocation"),
    [
        ("train", "tile"),
        pytest.param("finetune", "tile", marks=pytest.mark.slow),
        pytest.param("train", "image", marks=pytest.mark.slow),
        pytest.param("finetune", "image", marks=pytest.mark.slow),
    ],
)
def test_metrics_are_exact_where_the_last_batch_is_uneven(runs, command, allocation):
    """Three images to validate: the second process has one, and is given another to fill its batch up."""
    frozen = ("--learning_rate", 1e-30, "--weight_decay", 0, "--synthetic_counts", 6, 3, 1)
    more = (*frozen, *PLAIN, "--max_steps" if command == "finetune" else "--max_train_steps", 2)
    if command == "finetune":
        more += ("--per_device_eval_batch_size", 2)
    if allocation == "image":  # of nine tiles each
        more += ("--working_size", 64, "--random_crop", "true")
    name = f"uneven-{command}-{allocation}"
    train_both(runs, command, name, *more, config={"allocation": allocation, "keep_rates": 0.5})
    results = [
        json.loads((runs.folder / f"{processes}-{name}/train_results.json").read_text())
        for processes in ("one", "two")
    ]
    assert results[0]["best_validation_ap"] == results[1]["best_validation_ap"] > 0


def test_processes_that_do_not_know_of_each_other_are_refused(runs):
    """What `torchrun` starts on a machine without a GPU, and without ACCELERATE_USE_CPU."""
    assert runs.complete_pair("train", "alone", use_cpu=False) == [2, 2]
    assert "2 processes were started (WORLD_SIZE), but this one would train with 1" in runs.said("alone")
    assert "set ACCELERATE_USE_CPU=true" in runs.said("alone")
    assert not (runs.folder / "alone").exists()


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_folder_that_another_run_writes_to_is_left_alone(runs, command):
    folder = runs.folder / f"held-{command}"
    folder.mkdir()
    with FileLock(folder / output_folder.LOCK):
        assert runs.complete(command, folder.name, prepare=_be_impatient) != 0
    assert f"Another run writes to {folder}" in runs.said(folder.name)
    assert [path.name for path in folder.iterdir()] == [output_folder.LOCK]


def _be_impatient():
    output_folder.PATIENCE_SECONDS = 0.1


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_place_that_cannot_be_written_to_is_refused(runs, command):
    """Where a file is, nobody can make a folder, not even root."""
    (runs.folder / "file").touch()
    name = f"file/run-{command}"
    assert runs.complete(command, name) != 0
    assert f"--output_dir is {runs.folder / name}: {runs.folder / 'file'} cannot be written to" in runs.said(
        f"run-{command}"
    )
