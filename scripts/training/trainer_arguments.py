"""
Every field of transformers' `TrainingArguments`: what `reg4pru finetune` and [`Reg4PruTrainer`] make of it.
`docs/training_arguments.md` shows the table; a test holds it against the version that is installed.
"""

from collections.abc import Collection
from dataclasses import MISSING, Field, fields
from enum import Enum

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from .validation import LABEL_NAMES, metric_names

OBEYED = {
    "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "weight_decay",
    "adam_beta1", "adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "tf32",
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_empty_cache_steps", "logging_strategy", "logging_steps",
    "logging_first_step", "log_on_each_node", "log_level", "log_level_replica", "disable_tqdm", "report_to",
    "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "eval_strategy",
    "eval_steps", "eval_delay", "per_device_eval_batch_size", "eval_on_start", "save_strategy", "save_steps",
    "save_total_limit", "push_to_hub", "hub_model_id", "hub_private_repo", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "seed", "use_cpu", "dataloader_drop_last", "dataloader_num_workers",
    "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend",
    "ddp_timeout", "debug", "skip_memory_metrics", "resume_from_checkpoint",
}  # fmt: skip
_SCHEDULE = "the rates rise over --head_warmup_steps and --backbone_warmup_steps, then fall with --poly_power"
_OPTIMIZER = "the optimiser is AdamW, with --layer_decay, --selector_learning_rate and --adam_*"
_COMPILE = "the number of tokens changes from step to step, and each would be compiled anew"
_SHARDS = "to shard a model, use `accelerate launch -m reg4pru train` with accelerate's FSDP"
# What counts instead.
REFUSED = {
    "lr_scheduler_type": _SCHEDULE,
    "lr_scheduler_kwargs": _SCHEDULE,
    "warmup_steps": _SCHEDULE,
    "optim": _OPTIMIZER,
    "optim_args": _OPTIMIZER,
    "optim_target_modules": _OPTIMIZER,
    "label_smoothing_factor": "masks are learned as they are, with the loss of the configuration",
    "bf16_full_eval": "the weights are evaluated as they are saved; --bf16 computes in bfloat16",
    "fp16_full_eval": "the weights are evaluated as they are saved; --fp16 computes in float16",
    "torch_compile": _COMPILE,
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
    "use_liger_kernel": "there are no such kernels for this model",
    "liger_kernel_config": "there are no such kernels for this model",
    "neftune_noise_alpha": "an image has no word embeddings to add noise to",
    "auto_find_batch_size": "schedules and the order of samples hold for one --per_device_train_batch_size",
    "include_num_input_tokens_seen": "an image has no input tokens to count",
    "prediction_loss_only": "validation measures whole images; --eval_strategy no skips it",
    "eval_use_gather_object": "tiles are gathered as tensors",
    "include_for_metrics": "metrics are those of whole images, from predictions and labels",
    "save_only_model": "a run cannot resume from a state without its optimiser; --save_strategy no saves none",
    "save_on_each_node": "only the main process writes",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C save a full state anyway",
    "hub_token": "would be written to training_args.bin: use `hf auth login` or HF_TOKEN",
    "hub_strategy": "the model is pushed once and whole, at the end",
    "hub_always_push": "the model is pushed once and whole, at the end",
    "hub_revision": "the model is pushed to the main branch",
    "ignore_data_skip": "a resumed run continues with the remaining samples",
    "full_determinism": "all random draws follow from --seed; not every kernel has a deterministic form",
    "data_seed": "--seed also decides the samples",
    "accelerator_config": "batches are made as `reg4pru train` makes them",
    "parallelism_config": _SHARDS,
    "dataloader_persistent_workers": "would repeat the augmentations of the first epoch in every epoch",
    "dataloader_in_order": "--seed decides the order of the samples",
    "label_names": f"they are {LABEL_NAMES}",
    "train_sampling_strategy": "--seed decides the order of the samples",
    "fsdp": _SHARDS,
    "deepspeed": _SHARDS,
    "do_predict": "test images are measured by `reg4pru evaluate`",
}
_TOKENS = "only for text"
_OURS = "set to what the samples need"
NO_EFFECT = {
    "average_tokens_across_devices": "the loss is a mean over images",
    "use_cache": _TOKENS,
    "length_column_name": _TOKENS,
    "logging_nan_inf_filter": "a loss that is not finite ends the training",
    "eval_do_concat_batches": "metrics are added up batch by batch",
    "eval_accumulation_steps": "metrics are added up batch by batch",
    "batch_eval_metrics": _OURS,
    "remove_unused_columns": _OURS,
    "restore_callback_states_from_checkpoint": "callbacks are restored from a full state anyway",
    "fsdp_config": "--fsdp is refused",
    "do_train": "it always trains",
    "do_eval": "it validates if there are images for it; --eval_strategy says when",
    "local_rank": "set by the launcher",
}
# Values beside the default that say the same: a second trainer gets arguments that the first has filled in.
_ALLOWED = {"label_names": [LABEL_NAMES], "train_sampling_strategy": ["sequential"]}


def check_training_arguments(
    training: TrainingArguments, hub: bool = True, given: Collection[str] = frozenset()
) -> None:
    """
    Args:
        training (`TrainingArguments`): Of a fine-tuning.
        given (`Collection[str]`, *optional*): Flags of the command line. There a default is asked for, too, such as
            `--lr_scheduler_type linear`, unless it says that something is off.
        hub (`bool`, *optional*, defaults to `True`): Whether we push, and fields of the Hub are looked at, too.

    Raises:
        `ValueError`: naming a field that would change nothing, its value, and what counts instead.
    """
    for field in fields(TrainingArguments):
        reason = REFUSED.get(field.name)
        if reason is None or (field.name.startswith("hub_") and not hub):
            continue
        value = getattr(training, field.name)
        asked = field.name in given and not _says_nothing(value)
        if value in _ALLOWED.get(field.name, ()) or not (asked or _differs(value, field)):
            continue
        if field.name == "hub_token":
            raise ValueError(f"--hub_token {reason}")
        shown = value.value if isinstance(value, Enum) else value
        raise ValueError(f"--{field.name} is {shown}: leave it out; {reason}")


def check_selection(training: TrainingArguments, num_labels: int) -> None:
    """
    Args:
        training (`TrainingArguments`): Of a fine-tuning.
        num_labels (`int`): Number of classes.

    Raises:
        `ValueError`: if the best state is to be chosen by a metric that is not measured of so many classes: `Trainer`
            would say so after the first validation.
    """
    metric, measured = training.metric_for_best_model, ("loss", *metric_names(num_labels))
    if training.load_best_model_at_end and metric is not None and metric.removeprefix("eval_") not in measured:
        raise ValueError(
            f"--metric_for_best_model is {metric}: of {num_labels} classes {', '.join(measured)} are measured."
        )


def _differs(value: object, field: Field) -> bool:
    if field.name == "accelerator_config":  # the arguments fill it in themselves
        return value is not None and value != AcceleratorConfig()
    default = field.default if field.default is not MISSING else field.default_factory()
    return value != default and not (_says_nothing(value) and _says_nothing(default))


def _says_nothing(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def render_table() -> str:
    """The table as Markdown."""
    rows = {
        **dict.fromkeys(OBEYED, ("obeyed", "")),
        **{name: ("refused", reason) for name, reason in REFUSED.items()},
        **{name: ("no effect", reason) for name, reason in NO_EFFECT.items()},
    }
    lines = [f"| {what} | `{name}` | {reason} |" for name, (what, reason) in sorted(rows.items())]
    return "\n".join(["| here | flag | why, or what to use instead |", "| --- | --- | --- |", *lines]) + "\n"
