"""Every field of `TrainingArguments`: obeyed, refused, or without effect here by nature; nothing is passed over."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from reg4pru import finetune
from reg4pru.training.arguments import FinetuneArguments
from reg4pru.training.optimization import make_optimizer
from reg4pru.training.trainer import Reg4PruTrainer, _count_steps
from reg4pru.training.trainer_arguments import (
    NO_EFFECT,
    OBEYED,
    REFUSED,
    check_training_arguments,
    render_table,
)
from reg4pru.training.validation import LABEL_NAMES

NOT_IN_5_17 = {"activation_checkpointing", "activation_checkpointing_kwargs"}
# A value that is not the default, for every refused field.
OTHER = {
    "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}, "warmup_steps": 3, "optim": "sgd",
    "optim_args": "a=1", "optim_target_modules": "all-linear", "label_smoothing_factor": 0.1, "bf16_full_eval": True,
    "fp16_full_eval": True, "torch_compile": True, "torch_compile_backend": "eager",
    "torch_compile_mode": "max-autotune", "use_liger_kernel": True, "liger_kernel_config": {"rope": True},
    "neftune_noise_alpha": 5.0, "auto_find_batch_size": True, "include_num_input_tokens_seen": "all",
    "prediction_loss_only": True, "eval_use_gather_object": True, "include_for_metrics": ["inputs"],
    "save_only_model": True, "save_on_each_node": True, "enable_jit_checkpoint": True, "hub_token": "secret",
    "hub_strategy": "end", "hub_always_push": True, "hub_revision": "dev", "ignore_data_skip": True,
    "full_determinism": True, "data_seed": 0, "accelerator_config": {"split_batches": True},
    "parallelism_config": object(), "dataloader_persistent_workers": True, "dataloader_in_order": False,
    "label_names": ["mask"], "train_sampling_strategy": "group_by_length", "fsdp": True,
    "deepspeed": {"zero_optimization": {"stage": 2}}, "do_predict": True,
}  # fmt: skip


def test_every_field_of_the_installed_version_is_known():
    """A new version of transformers fails here until somebody has looked at its new fields."""
    installed = {field.name for field in fields(TrainingArguments)}
    known = [*OBEYED, *REFUSED, *NO_EFFECT]
    assert len(known) == len(set(known)), "each in one of the three"
    assert not installed - set(known)
    assert set(known) - installed <= NOT_IN_5_17


def test_the_documentation_shows_the_table():
    page = Path(__file__).parents[3] / "docs" / "training_arguments.md"
    assert render_table() in page.read_text(encoding="utf-8"), "write render_table() into it"


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")


def test_defaults_are_taken(arguments):
    check_training_arguments(arguments)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_change_nothing_is_refused_by_name(arguments, name):
    setattr(arguments, name, OTHER[name])
    with pytest.raises(ValueError, match=f"^--{name} ") as refused:
        check_training_arguments(arguments)
    assert REFUSED[name] in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["--lr_scheduler_type", "linear"], "--lr_scheduler_type is linear: leave it out; the rates rise over"),
        (["--warmup_steps=0"], "--warmup_steps is 0.0: leave it out"),
        (["--optim", "adamw_torch"], "--optim is adamw_torch: leave it out; the optimiser is AdamW, with"),
        (["--hub_strateg", "every_save"], "--hub_strategy is every_save: leave it out"),  # as argparse takes it
        (["--torch_compile", "false", "--do_predict", "false", "--learning_rate", "5e-5"], None),
    ],
)
def test_a_default_that_is_asked_for_is_refused_unless_it_switches_off(tmp_path, monkeypatch, capsys, words, refused):
    monkeypatch.setattr("reg4pru.training.finetuning.finetune", lambda *_: 0)
    monkeypatch.setattr("reg4pru.hub.transfer.fetch_checkpoint", lambda name, _: name)
    run = ["--model_name_or_path", "x", "--output_dir", str(tmp_path / "out"), "--use_cpu", "--report_to", "none"]
    if refused is None:
        finetune.main([*run, *words])
        return
    with pytest.raises(SystemExit) as stopped:
        finetune.main([*run, *words])
    assert stopped.value.code == 2
    assert refused in " ".join(capsys.readouterr().err.split())


def test_the_trainer_refuses_too_but_leaves_the_hub_to_its_user(arguments, tiny_model):
    arguments.hub_strategy = "end"
    check_training_arguments(arguments, hub=False)
    arguments.optim = "sgd"
    with pytest.raises(ValueError, match="--optim is sgd: leave it out; the optimiser is AdamW"):
        Reg4PruTrainer(tiny_model(), arguments, None, None)


def test_a_second_trainer_may_have_the_same_arguments(arguments):
    arguments.label_names, arguments.train_sampling_strategy = LABEL_NAMES, "sequential"
    check_training_arguments(arguments)


def test_adam_is_told_its_numbers(tiny_model):
    settings = {"learning_rate": 1e-3, "weight_decay": 0.0, "total_steps": 4}
    optimizer, _ = make_optimizer(tiny_model(), FinetuneArguments(), **settings, betas=(0.5, 0.6), eps=0.1)
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.5, 0.6), 0.1)}
    default, _ = make_optimizer(tiny_model(), FinetuneArguments(), **settings)
    plain = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    assert default.param_groups[0]["betas"] == plain.param_groups[0]["betas"]


@pytest.mark.parametrize(("drop", "accumulate", "steps"), [(False, 1, 6), (True, 1, 4), (True, 2, 2), (False, 2, 4)])
def test_steps_are_counted_as_trainer_does(arguments, drop, accumulate, steps):
    arguments.per_device_train_batch_size, arguments.num_train_epochs = 2, 2
    arguments.dataloader_drop_last, arguments.gradient_accumulation_steps = drop, accumulate
    assert _count_steps(5, arguments) == steps
