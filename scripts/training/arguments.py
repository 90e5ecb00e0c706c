"""Flags of `reg4pru train` and `finetune`. Imports no torch: `--help` must not wait for it."""

from dataclasses import dataclass, field
from typing import Literal

from ..common.arguments import DatasetArguments, ModelUploadArguments


@dataclass(kw_only=True)
class ModelArguments:
    """Where the model comes from."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        default="", metadata={"help": "Reg4Pru or EoMT checkpoint (folder or Hub id) to start from."}
    )
    backbone_name_or_path: str = field(
        default="",
        metadata={"help": "Plain ViT (folder or Hub id; DINOv3, DINOv2, ViT or MAE) to use as the backbone."},
    )
    config_overrides: list[str] = field(
        default_factory=list,
        metadata={"help": "Fields of Reg4PruConfig, as field=value; added to those of the recipe."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={
            "help": "Start from a checkpoint with other classes: weights that depend on their number "
            "are reinitialised."
        },
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass: slower, but takes less memory."}
    )


@dataclass(kw_only=True)
class DataArguments(DatasetArguments):
    """What it learns from."""

    _argument_group_name = "training samples"

    tile_size: int | None = field(default=None, metadata={"help": "Train on tiles of this side, cut after the split."})
    random_crop: bool = field(
        default=False, metadata={"help": "Train on random crops of the model's input size instead of whole images."}
    )
    samples_per_image: int = field(default=1, metadata={"help": "Samples taken from each image per epoch."})
    augment_flips: bool = field(default=True, metadata={"help": "Flip half of the samples horizontally."})
    augment_turns: bool = field(
        default=True,
        metadata={"help": "Rotate samples by multiples of 90 degrees; switch off for images with an up and a down."},
    )
    augment_colours: bool = field(default=True, metadata={"help": "Jitter the colours of the samples."})
    augment_scales: list[float] = field(
        default_factory=lambda: [0.85, 1.0],
        metadata={"help": "Smallest and largest area shown, as a fraction of the crop's side; above 1 zooms out."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Stream the training images from the Hub or from Parquet files."}
    )


@dataclass(kw_only=True)
class PruningScheduleArguments:
    """When, and how far, training prunes."""

    _argument_group_name = "pruning schedule"

    keep_rate_warmup: float = field(
        default=0.2, metadata={"help": "Fraction of training over which the keep rates go from 1 to the target."}
    )
    keep_rate_range: list[float] | None = field(
        default=None, metadata={"help": "Draw the keep rate of each step from this range instead of warming it up."}
    )
    dense_fraction: float = field(
        default=0.0, metadata={"help": "Fraction of training that runs dense before pruning and routing begin."}
    )
    distillation: bool = field(
        default=False,
        metadata={"help": "In steps that prune, also run the model dense and train the pruned pass to match it."},
    )


@dataclass(kw_only=True)
class OptimizerArguments:
    """The optimiser, as far as transformers' `TrainingArguments` does not know it."""

    _argument_group_name = "optimiser"

    layer_decay: float = field(
        default=0.8, metadata={"help": "Factor by which the learning rate falls from each layer to the one below."}
    )
    selector_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of selectors and drift corrections; default: learning_rate."},
    )
    head_warmup_steps: int = field(default=200, metadata={"help": "Warm-up steps of everything but the backbone."})
    backbone_warmup_steps: int = field(
        default=400, metadata={"help": "Warm-up steps of the backbone, after those of the head."}
    )
    poly_power: float = field(default=0.9, metadata={"help": "Power of the polynomial decay."})
    ema_decay: float = field(default=0.999, metadata={"help": "Decay of the weight average; 0 switches it off."})


@dataclass(kw_only=True)
class TrainArguments(ModelUploadArguments, OptimizerArguments, PruningScheduleArguments):
    """How `reg4pru train` learns. Names are those of transformers' examples where they have one."""

    _argument_group_name = "training"

    output_dir: str = field(default="", metadata={"help": "Folder of the run (required, here or in the recipe)."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Allow a folder that is not empty. What an earlier run wrote there (checkpoints, best, last, "
            "log, results) is removed; other files stay."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, data and all random draws."})
    num_train_epochs: int = field(default=50, metadata={"help": "Epochs, unless max_train_steps is given."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Optimiser steps; overrides the epochs."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Images per device and step."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Batches per optimiser step, whose losses are averaged."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW, applied to matrices only."})
    max_grad_norm: float = field(
        default=1.0, metadata={"help": "Norm to which gradients are clipped; 0 disables clipping."}
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = field(
        default="no", metadata={"help": "Mixed precision of training."}
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "Worker processes that load images."})
    eval_steps: int | None = field(
        default=None, metadata={"help": "Steps between validations; default: once per epoch."}
    )
    checkpointing_steps: int | None = field(
        default=None,
        metadata={"help": "Steps between full states, from which a run can resume; default: none are saved."},
    )
    checkpoints_total_limit: int = field(default=2, metadata={"help": "Number of full states to keep."})
    resume_from_checkpoint: str = field(
        default="",
        metadata={"help": "Full state to resume from, or 'latest'; all other settings must be unchanged."},
    )
    logging_steps: int = field(default=10, metadata={"help": "Steps between logs of the mean losses."})
    report_to: str = field(
        default="", metadata={"help": "Experiment tracker supported by Accelerate, such as trackio."}
    )


@dataclass(kw_only=True)
class FinetuneArguments(OptimizerArguments, PruningScheduleArguments):
    """
    How a checkpoint is fine-tuned with `Trainer`, as far as `TrainingArguments` does not say. Names and meanings are
    those of `reg4pru train`; by default nothing warms up.
    """

    _argument_group_name = "fine-tuning"

    head_warmup_steps: int = field(default=0, metadata={"help": "Warm-up steps of everything but the backbone."})
    backbone_warmup_steps: int = field(
        default=0, metadata={"help": "Warm-up steps of the backbone, after those of the head."}
    )


@dataclass(kw_only=True)
class StartArguments:
    """The checkpoint that fine-tuning starts from."""

    _argument_group_name = "model"

    model_name_or_path: str = field(metadata={"help": "Reg4Pru checkpoint to start from: a folder or a Hub id."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    config_overrides: list[str] = field(
        default_factory=list, metadata={"help": "Fields of Reg4PruConfig, as field=value."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={
            "help": "Start from a checkpoint with other classes: weights that depend on their number "
            "are reinitialised."
        },
    )
    overwrite_repo: bool = field(
        default=False,
        metadata={"help": "Replace the content of the repository even if it was not written by this command."},
    )


TRAIN_ARGUMENTS = (ModelArguments, DataArguments, TrainArguments)
# Flags by the least that they may be; None, where a flag may be None, stands for something else.
LEAST = {
    1: (
        "samples_per_image", "working_size", "tile_size", "num_train_epochs", "max_train_steps", "eval_steps",
        "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "checkpointing_steps",
        "checkpoints_total_limit",
    ),
    0: (
        "seed", "weight_decay", "head_warmup_steps", "backbone_warmup_steps", "poly_power", "max_grad_norm",
        "dataloader_num_workers",
    ),
}  # fmt: skip


def check_values(settings: dict) -> None:
    """
    What `reg4pru train` and `reg4pru finetune` both ask of the flags that they share.

    Args:
        settings (`dict`): Values by flag: at least those of [`DataArguments`], [`PruningScheduleArguments`] and
            [`OptimizerArguments`], and `learning_rate`.

    Raises:
        `ValueError`: naming the flag, its value and what is allowed.
    """
    if settings["random_crop"] and settings["tile_size"]:
        raise ValueError("give --random_crop or --tile_size, not both")
    for least, names in LEAST.items():
        for name in names:
            value = settings.get(name)
            if value is not None and not value >= least:
                raise ValueError(f"--{name} is {value}: it must be at least {least}")
    for name in ("keep_rate_warmup", "dense_fraction", "ema_decay"):
        if not 0 <= settings[name] <= 1:
            raise ValueError(f"--{name} is {settings[name]}: it must lie in [0, 1]")
    for name in ("learning_rate", "selector_learning_rate"):
        if settings[name] is not None and not settings[name] > 0:
            raise ValueError(f"--{name} is {settings[name]}: it must be above 0")
    dense, warmup = settings["dense_fraction"], settings["keep_rate_warmup"]
    if dense < 1 < dense + warmup and not settings["keep_rate_range"]:
        raise ValueError(
            f"--dense_fraction is {dense} and --keep_rate_warmup {warmup} of the training: the keep rates would never "
            "reach their target, so both together must be at most 1"
        )
    if not 0 < settings["layer_decay"] <= 1:
        raise ValueError(f"--layer_decay is {settings['layer_decay']}: it must lie in (0, 1]")
    scales = settings["augment_scales"]
    if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
        raise ValueError(f"--augment_scales is {scales}: it must be two numbers, 0 < least <= largest")
    keep_range = settings["keep_rate_range"]
    if keep_range is not None and not (len(keep_range) == 2 and 0 < keep_range[0] <= keep_range[1] <= 1):
        raise ValueError(f"--keep_rate_range is {keep_range}: it must be two rates, 0 < low <= high <= 1")
