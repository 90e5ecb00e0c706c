"""A run of `reg4pru finetune`, from its flags to its last step."""

import json
import logging
import math
from collections.abc import Collection
from pathlib import Path

from transformers import TrainingArguments, set_seed

from datasets_fives import class_names
from modeling_reg4pru import Reg4PruImageProcessor

from ..common.atomic_files import replace_text
from ..common.data_overlap import image_fingerprints, write_training_images
from ..common.devices import warn_of_emulation
from ..common.output_checks import check_writable
from ..common.recipes import RECIPE
from .arguments import DataArguments, FinetuneArguments, ModelArguments, StartArguments, check_values
from .checkpoints import find_trainer_checkpoint, list_trainer_checkpoints, writing
from .distillation import check_distillation
from .interruption import TrainingError, end_training
from .output_folder import holds_files, is_inside, lock_folder
from .run_record import (
    check_data,
    check_state,
    collect_trained_on,
    describe_run,
    forgotten_unless,
    settings_of,
    used_settings,
    write_record,
)
from .setup import build_model, check_processes, load_data, make_augmentation, make_processor, read_overrides
from .trainer import Reg4PruTrainer
from .trainer_arguments import check_training_arguments
from .validation import metric_names

logger = logging.getLogger(__name__)

# Flags of `TrainingArguments` that decide what a training ends in: those that a model card tells, and the rest.
SETTINGS = (*RECIPE, "max_steps", "num_train_epochs", "bf16", "fp16", "gradient_checkpointing", "dataloader_drop_last",
            "adam_beta1", "adam_beta2", "adam_epsilon")  # fmt: skip
# Those that mean what they mean in `reg4pru train`.
SHARED = (
    "seed", "learning_rate", "weight_decay", "max_grad_norm", "per_device_train_batch_size",
    "gradient_accumulation_steps", "dataloader_num_workers",
)  # fmt: skip


def check_start(
    start: StartArguments,
    data: DataArguments,
    recipe: FinetuneArguments,
    training: TrainingArguments,
    given: Collection[str] = frozenset(),
) -> tuple[str | None, bool]:
    """
    Check everything that can be checked before anything is loaded; `given` are the flags of the command line.

    Returns:
        `tuple`: Folder of the full state to resume from, or `None`, and whether it is of the run in the output folder.

    Raises:
        `ValueError`: naming the flag, its value and what is allowed.
    """
    check_training_arguments(training, given=given)
    if training.push_to_hub and not training.hub_model_id:
        raise ValueError("--push_to_hub needs --hub_model_id")
    if data.streaming:
        raise ValueError("--streaming is for reg4pru train: Trainer shuffles images that are all there")
    if training.load_best_model_at_end and recipe.ema_decay:
        raise ValueError("--load_best_model_at_end and the weight average exclude each other: add --ema_decay 0")
    output_dir, resume = Path(training.output_dir), training.resume_from_checkpoint
    check_values({**vars(data), **vars(recipe), **{name: vars(training)[name] for name in SHARED}})
    check_processes(training.world_size)
    check_writable(output_dir, "--output_dir")
    resume_from = None if resume is None else find_trainer_checkpoint(output_dir, resume)
    # A state of another run may start this one, but only in a new folder.
    same_run = resume_from is not None and is_inside(Path(resume_from), output_dir)
    if not same_run and holds_files(output_dir):
        raise ValueError(f"{output_dir} is not empty: choose another, or add --resume_from_checkpoint latest")
    if resume_from is not None:
        began = output_dir if same_run else Path(resume_from).absolute().parent
        check_state(Path(resume_from), began, same_run, _settings(start, data, recipe, training))
    return resume_from, same_run


def _settings(
    start: StartArguments, data: DataArguments, recipe: FinetuneArguments, training: TrainingArguments
) -> dict:
    flags = {name: vars(training)[name] for name in SETTINGS if name in vars(training)}
    return {**flags, **settings_of(training.world_size, data, recipe, start)}


def finetune(
    folder: str,
    start: StartArguments,
    data: DataArguments,
    recipe: FinetuneArguments,
    training: TrainingArguments,
    resume_from: str | None = None,
    same_run: bool = False,
) -> int:
    """
    Fine-tune with these flags.

    Args:
        folder (`str`): The checkpoint of `start`, fetched from the Hub where it lies there.
        start (`StartArguments`): The checkpoint, and what changes in its configuration.
        data (`DataArguments`): What it learns from.
        recipe (`FinetuneArguments`): How, as far as `training` does not say.
        training (`TrainingArguments`): Those of transformers.
        resume_from (`str`, *optional*), same_run (`bool`, *optional*, defaults to `False`): From [`check_start`].

    Returns:
        `int`: The signal that ended the run before its last step; 0 if all steps were done.

    Raises:
        `ValueError`: for data or a model that do not fit; before the first step.
        [`TrainingError`]: if a loss is not finite, or the disk cannot be written to.
    """
    if training.bf16 and training.process_index == 0:
        warn_of_emulation("bf16", str(training.device))
    model_arguments = ModelArguments(
        model_name_or_path=folder,
        config_overrides=start.config_overrides,
        ignore_mismatched_sizes=start.ignore_mismatched_sizes,
    )
    read_overrides(model_arguments)  # what is wrong there is said before images are read
    images = load_data(data, training.seed)
    set_seed(training.seed)
    model = build_model(model_arguments, class_names(images["train"]))
    # At the scale of this training.
    start_processor = Reg4PruImageProcessor.from_pretrained(folder, working_size=None)
    check_distillation(model.config, recipe.distillation)
    processor = make_processor(model.config, data, start_processor)

    training.distributed_state.wait_for_everyone()  # every process has checked the folder as it was
    with lock_folder(Path(training.output_dir), training.process_index == 0):
        record = describe_run(_settings(start, data, recipe, training), images, training.device, training.seed)
        if same_run:
            check_data(Path(training.output_dir), record["data"])
        trained_on = collect_trained_on(
            image_fingerprints(images["train"]), start.model_name_or_path, start.model_revision, resume_from
        )
        trainer = Reg4PruTrainer(
            model,
            training,
            processor,
            images["train"],
            images.get("validation"),
            recipe=recipe,
            random_crop=data.random_crop,
            samples_per_image=data.samples_per_image,
            augmentation=make_augmentation(data),
            trained_on=trained_on,
        )
        record["used"] = used_settings(record["arguments"], trainer.total_steps)
        stopped_by = _run(trainer, record, images["train"]["name"], trained_on, resume_from)
        accelerator = trainer.accelerator
        del model, trainer  # only the accelerator holds them now
        end_training(accelerator)
    return stopped_by


def _run(
    trainer: Reg4PruTrainer, record: dict, image_names: list[str], trained_on: set[str] | None, resume_from: str | None
) -> int:
    """Train, save and validate; returns the signal that ended it before its last step, or 0."""
    output_dir = Path(trainer.args.output_dir)
    if resume_from is not None:
        trainer.check_steps_left(resume_from)
    if trainer.is_world_process_zero():
        write_record(output_dir, record)
    with forgotten_unless(output_dir, lambda: resume_from is not None or trainer.state.global_step > 0):
        trainer.train(resume_from_checkpoint=resume_from)
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is None:
        logger.warning(
            "--load_best_model_at_end: no state was measured (--%s), so these are the weights of the last step.",
            "metric_for_best_model, --eval_strategy, --eval_steps and --save_steps",
        )
    if trainer.stop.requested and trainer.state.global_step < trainer.state.max_steps:
        return trainer.stop.requested
    # The weights first: a measurement that fails must not take them along.
    with writing(output_dir, "The weights", states=list_trainer_checkpoints):
        trainer.save_model()
        if trainer.is_world_process_zero():
            write_training_images(output_dir, trained_on)
    try:
        measured = trainer.evaluate() if trainer.eval_dataset is not None else {}
    except Exception as error:
        raise TrainingError(
            f"All steps are done and the weights are saved in {output_dir}; the measurement at the end has failed: "
            f"{type(error).__name__}: {error}. Measure them with `reg4pru evaluate`."
        ) from error
    # All validations of the run, those before it was resumed, too; the last is that of the averaged weights.
    names = metric_names(trainer.model.config.num_labels)
    metric = f"eval_{names[0]}"
    validations = [entry for entry in trainer.state.log_history if not math.isnan(entry.get(metric, math.nan))]
    best = max(validations, key=lambda entry: entry[metric], default={metric: None, "step": None})
    if not trainer.is_world_process_zero():
        return 0
    results = {
        **record,
        "total_steps": trainer.state.max_steps,
        "train_names": sorted(image_names),
        f"best_validation_{names[0]}": best[metric],
        "best_step": best["step"],
        # Undefined without a vessel.
        "validation": None
        if math.isnan(measured.get(metric, math.nan))
        else {name: measured[f"eval_{name}"] for name in names},
    }
    with writing(output_dir, "train_results.json", states=list_trainer_checkpoints):
        replace_text(output_dir / "train_results.json", json.dumps(results, indent=2) + "\n")
    logger.info("Saved in %s; validation: %s", output_dir, results["validation"])
    return 0
