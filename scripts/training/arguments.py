"""What a training run is told: dataclasses for `HfArgumentParser`, a YAML recipe, and flags that override it."""

import argparse
import sys
from dataclasses import dataclass, field, fields

import yaml
from transformers import HfArgumentParser

from ..common.cli import read_flags
from ..common.recipes import find_yaml


@dataclass
class ModelArguments:
    """Where the model comes from."""

    model_name_or_path: str = field(
        default="", metadata={"help": "Reg4Pru or EoMT-DINOv3 checkpoint (folder or Hub id) to start from."}
    )
    backbone_name_or_path: str = field(
        default="", metadata={"help": "DINOv3 ViT checkpoint (folder or Hub id) to take the backbone from."}
    )
    config_overrides: list[str] = field(
        default_factory=list,
        metadata={"help": "Fields of Reg4PruConfig, as field=value; added to those of the recipe."},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade time for memory."})


@dataclass
class DataArguments:
    """What it learns from."""

    dataset: str = field(default="synthetic", metadata={"help": "Folder, Hub id, saved DatasetDict or 'synthetic'."})
    dataset_revision: str = field(default="", metadata={"help": "Branch, tag or commit of a Hub data set."})
    split: str = field(
        default="official", metadata={"help": "'official', 'resplit', 'sample', or a YAML file of names by side."}
    )
    condition_pattern: str | None = field(
        default=None, metadata={"help": "Regular expression whose one group is the condition in a name."}
    )
    vessel_labels: list[int] | None = field(
        default=None, metadata={"help": "Values of a label map that are vessels, such as 1 2; the rest is background."}
    )
    working_size: int | None = field(
        default=None, metadata={"help": "Side to which images are reduced; default: as they are."}
    )
    tile_size: int | None = field(
        default=None, metadata={"help": "Cut the images into tiles of this side, after splitting."}
    )
    random_crop: bool = field(
        default=False, metadata={"help": "Train on random crops as large as the model's input, not on whole pictures."}
    )
    samples_per_image: int = field(default=1, metadata={"help": "How often an epoch visits each image."})
    synthetic_counts: list[int] = field(
        default_factory=lambda: [64, 8, 16], metadata={"help": "Synthetic images: train, validation, test."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the training images while they download; Hub or Parquet."}
    )


@dataclass
class PruningScheduleArguments:
    """When, and how far, training prunes."""

    keep_rate_warmup: float = field(
        default=0.2, metadata={"help": "Fraction of training over which the keep rates go from 1 to the target."}
    )
    keep_rate_range: list[float] | None = field(
        default=None, metadata={"help": "Draw the keep rate of every step from this range instead of warming it up."}
    )
    dense_fraction: float = field(
        default=0.0, metadata={"help": "Fraction of training that runs dense before pruning and routing begin."}
    )
    distillation: bool = field(
        default=False,
        metadata={"help": "Run every step that prunes dense, too, and let the pruned pass learn its prediction."},
    )


@dataclass
class OptimizerArguments:
    """What `TrainingArguments` of transformers does not know of the optimiser."""

    layer_decay: float = field(default=0.8, metadata={"help": "Learning rate falls by this factor per layer down."})
    selector_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of selectors and drift corrections; that of the rest, where it is not given."
        },
    )
    head_warmup_steps: int = field(default=200, metadata={"help": "Warm-up of everything but the backbone."})
    backbone_warmup_steps: int = field(default=400, metadata={"help": "Warm-up of the backbone, after the head's."})
    poly_power: float = field(default=0.9, metadata={"help": "Power of the polynomial decay."})
    ema_decay: float = field(default=0.999, metadata={"help": "Decay of the weight average; 0 switches it off."})


@dataclass
class TrainArguments(PruningScheduleArguments, OptimizerArguments):
    """How it learns. Names are those of transformers' examples where they have one."""

    output_dir: str = field(default="", metadata={"help": "Where everything goes."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Allow a folder that is not empty. What a run has written there is removed (checkpoints, best, "
            "last, log, results); other files stay."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, data and every draw."})
    num_train_epochs: int = field(default=50, metadata={"help": "Epochs, unless max_train_steps is given."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Optimiser steps; overrides the epochs."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Pictures per device and step."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches per optimiser step."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's, on matrices only."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm; 0: not."})
    mixed_precision: str = field(default="no", metadata={"help": "'no', 'bf16' or 'fp16'."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that prepare pictures."})
    eval_steps: int | None = field(
        default=None, metadata={"help": "Validate every so many steps; default: per epoch."}
    )
    checkpointing_steps: int | None = field(
        default=None, metadata={"help": "Save the full state every so many steps."}
    )
    checkpoints_total_limit: int = field(default=2, metadata={"help": "How many full states are kept."})
    resume_from_checkpoint: str = field(
        default="",
        metadata={"help": "A full state, or 'latest'; with the settings that it was trained with."},
    )
    logging_steps: int = field(default=10, metadata={"help": "Log the mean losses every so many steps."})
    report_to: str = field(default="", metadata={"help": "A tracker that Accelerate knows, such as trackio."})
    push_to_hub: bool = field(default=False, metadata={"help": "Push the best checkpoint when training ends."})
    hub_model_id: str = field(default="", metadata={"help": "Repository for it, user/name."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Make the repository private."})
    overwrite_repo: bool = field(
        default=False, metadata={"help": "Replace what the repository holds, even if it is something else."}
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


def make_parser() -> HfArgumentParser:
    """The parser of `reg4pru train`."""
    return HfArgumentParser(TRAIN_ARGUMENTS, usage="%(prog)s [recipe] [options]")


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, TrainArguments]:
    """
    `reg4pru train [recipe] [--flag value ...]`: flags override the recipe, the recipe overrides the defaults.

    Raises:
        `SystemExit`: with the parser's message, for a flag, a recipe field or a value that does not exist or fit.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    recipe_overrides: list[str] = []
    if argv and not argv[0].startswith("-"):
        recipe = _read_recipe(parser, argv[0])
        overrides = recipe.pop("config_overrides", None) or {}
        recipe_overrides = [f"{name}={yaml.safe_dump(value).strip()}" for name, value in overrides.items()]
        argv = [*_as_flags(recipe), *argv[1:]]
    model, data, training = read_flags(parser, argv, "; a recipe comes first")
    model.config_overrides = recipe_overrides + model.config_overrides
    _check(parser, model, data, training)
    return model, data, training


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
    if not 0 < settings["layer_decay"] <= 1:
        raise ValueError(f"--layer_decay is {settings['layer_decay']}: it must lie in (0, 1]")
    keep_range = settings["keep_rate_range"]
    if keep_range is not None and not (len(keep_range) == 2 and 0 < keep_range[0] <= keep_range[1] <= 1):
        raise ValueError(f"--keep_rate_range is {keep_range}: it must be two rates, 0 < low <= high <= 1")


def config_fields(overrides: list[str]) -> dict:
    """`["routing=false", "keep_rates=[0.7, 0.5]"]` to a dict; later entries win. Values are YAML."""
    parsed = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"config_overrides: {override!r} is not of the form field=value.")
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"config_overrides: the value of {override!r} is no YAML.") from error
        # PyYAML takes 1e-4 for a string; what float() understands is a number.
        try:
            parsed[name.strip()] = float(value) if isinstance(value, str) else value
        except ValueError:
            parsed[name.strip()] = value
    return parsed


def _read_recipe(parser: argparse.ArgumentParser, name: str) -> dict:
    try:
        path = find_yaml(name, "recipes")
    except ValueError as error:
        parser.error(str(error))
    try:
        recipe = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        parser.error(f"recipe {path} is no YAML: {error}")
    if not isinstance(recipe, dict):
        parser.error(f"recipe {path} is {recipe!r}: it must be a mapping of fields to values")
    known = {entry.name for cls in TRAIN_ARGUMENTS for entry in fields(cls)}
    unknown = sorted(map(str, set(recipe) - known))
    if unknown:
        parser.error(f"recipe {path} has unknown fields {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    overrides = recipe.get("config_overrides")
    if overrides is not None and not isinstance(overrides, dict):
        parser.error(f"config_overrides of recipe {path} is {overrides!r}: it must be a mapping of fields to values")
    return recipe


def _as_flags(recipe: dict) -> list[str]:
    """A recipe as flags, so that the parser converts and checks its values too: 1e-4 is a string to YAML."""
    flags = []
    for name, value in recipe.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:  # null stands for the default
            flags.append(f"--{name}={value}")
    return flags


def _check(
    parser: argparse.ArgumentParser, model: ModelArguments, data: DataArguments, training: TrainArguments
) -> None:
    if not training.output_dir:
        parser.error("--output_dir is needed")
    if model.model_name_or_path and model.backbone_name_or_path:
        parser.error("give --model_name_or_path or --backbone_name_or_path, not both")
    if data.streaming and data.tile_size:
        parser.error("--tile_size needs all images at once: give --random_crop with --streaming")
    if data.streaming and training.dataloader_num_workers > 1:
        parser.error(
            f"--dataloader_num_workers is {training.dataloader_num_workers}: one stream has one reader, 0 or 1"
        )
    if training.push_to_hub and not training.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id")
    if training.mixed_precision not in ("no", "bf16", "fp16"):
        parser.error(f"--mixed_precision is {training.mixed_precision!r}: it must be no, bf16 or fp16")
    try:
        check_values({**vars(data), **vars(training)})
    except ValueError as error:
        parser.error(str(error))


@dataclass(kw_only=True)
class FinetuneArguments(PruningScheduleArguments, OptimizerArguments):
    """What `TrainingArguments` does not know. Names and meanings are those of `reg4pru train`."""

    model_name_or_path: str = field(metadata={"help": "Reg4Pru checkpoint to start from: a folder or a Hub id."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    config_overrides: list[str] = field(
        default_factory=list, metadata={"help": "Fields of Reg4PruConfig, as field=value."}
    )
    head_warmup_steps: int = field(default=0, metadata={"help": "Warm-up of everything but the backbone."})
    backbone_warmup_steps: int = field(default=0, metadata={"help": "Warm-up of the backbone, after the head's."})
    overwrite_repo: bool = field(
        default=False, metadata={"help": "Replace what the repository holds, even if it is something else."}
    )
