"""
Fine-tune a Reg4Pru checkpoint with the `Trainer` of transformers, from and to the Hub.

    reg4pru finetune --model_name_or_path user/reg4pru-vits16-fives --dataset user/fives \
        --output_dir runs/finetuned --max_steps 1000 --per_device_train_batch_size 4

The flags are those of transformers' `TrainingArguments`, of the data in `reg4pru train`, and the few below. Samples
and their order, random draws, learning rates, keep-rate warm-up and weight average are those of `reg4pru train`: on
one CPU both end in the same weights, if the batches of a step divide the samples of an epoch. A killed run goes on, to
the same result, with `--resume_from_checkpoint latest`. SIGTERM lets it finish its step and save a full state; the
exit code is 143.
"""

import json
import logging
import sys
from pathlib import Path

from accelerate import Accelerator
from datasets import Dataset
from transformers import HfArgumentParser, TrainingArguments, set_seed

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from .common.atomic_files import replace_text
from .common.cli import read_flags, set_up_logging
from .common.data_overlap import fingerprints, write_training_images
from .common.devices import warn_of_emulation
from .common.recipes import RECIPE
from .hub.publishing import PushArguments, push_trained
from .hub.transfer import TransferError, check_target, fetch_checkpoint
from .training.arguments import DataArguments, FinetuneArguments, ModelArguments, check_values
from .training.checkpoints import writing
from .training.distillation import check_distillation
from .training.interruption import (
    TERMINATED,
    StopRequest,
    TrainingError,
    check_processes,
    check_writable,
    is_begun,
    leave_processes,
    sole_run,
)
from .training.run_record import (
    check_data,
    check_state,
    describe_run,
    learned_from,
    lies_in,
    settings_of,
    write_record,
)
from .training.setup import build_model, load_data, make_processor
from .training.trainer import find_state, make_trainer, restore_end, sealed_states, total_steps
from .training.validation import LABEL_NAMES

logger = logging.getLogger(__name__)

# Flags of `TrainingArguments` that decide what a training ends in: those that a model card tells, and the rest.
SETTINGS = (*RECIPE, "max_steps", "num_train_epochs", "bf16", "fp16", "gradient_checkpointing", "dataloader_drop_last")
# Those that mean what they mean in `reg4pru train`.
SHARED = (
    "seed", "learning_rate", "weight_decay", "max_grad_norm", "per_device_train_batch_size",
    "gradient_accumulation_steps", "dataloader_num_workers",
)  # fmt: skip


def check(
    parser: HfArgumentParser, arguments: FinetuneArguments, data: DataArguments, training: TrainingArguments
) -> tuple[str | None, bool]:
    """
    Refuse what cannot work before anything is loaded.

    Returns:
        `tuple`: Folder of the full state to resume from, or `None`, and whether the run in the output folder goes on.

    Raises:
        `SystemExit`: with the parser's message, which names flag, value and what is allowed.
    """
    if training.hub_token:
        parser.error("--hub_token would be written to training_args.bin: use `hf auth login` or the variable HF_TOKEN")
    if training.push_to_hub and not training.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id")
    if data.streaming:
        parser.error("--streaming is for reg4pru train: Trainer shuffles images that are all there")
    if training.dataloader_persistent_workers:
        parser.error(
            "--dataloader_persistent_workers would repeat the augmentations of the first epoch in every epoch"
        )
    if training.load_best_model_at_end and arguments.ema_decay:
        parser.error("--load_best_model_at_end and the weight average exclude each other: add --ema_decay 0")
    output_dir, resume = Path(training.output_dir), training.resume_from_checkpoint
    try:
        check_values({**vars(data), **vars(arguments), **{name: getattr(training, name) for name in SHARED}})
        check_processes(training.world_size)
        check_writable(output_dir)
        resume_from = None if resume is None else find_state(output_dir, resume)
        # A state of another run may be the start of this one, but then this folder is new.
        goes_on = resume_from is not None and lies_in(Path(resume_from), output_dir)
        if not goes_on and is_begun(output_dir):
            raise ValueError(f"{output_dir} is not empty: choose another, or add --resume_from_checkpoint latest")
        if resume_from is not None:
            began = output_dir if goes_on else Path(resume_from).absolute().parent
            check_state(Path(resume_from), began, goes_on, _settings(arguments, data, training))
    except ValueError as error:
        parser.error(str(error))
    return resume_from, goes_on


def _settings(arguments: FinetuneArguments, data: DataArguments, training: TrainingArguments) -> dict:
    flags = {name: getattr(training, name) for name in SETTINGS if hasattr(training, name)}
    return {**flags, **settings_of(training.world_size, data, arguments)}


def main(argv: list[str] | None = None) -> None:
    set_up_logging()
    parser = HfArgumentParser((FinetuneArguments, DataArguments, TrainingArguments))
    # As in `reg4pru train`: the seed also says which images validate, and those must not be trained on here.
    parser.set_defaults(seed=0)
    arguments, data_arguments, training = read_flags(parser, argv)
    start_from = check(parser, arguments, data_arguments, training)
    training.remove_unused_columns = False  # the columns are what the transforms read
    training.batch_eval_metrics = True
    training.label_names = LABEL_NAMES
    training.train_sampling_strategy = "sequential"  # EpochSamples are in order already
    # Pushed once and whole at the end, with our card, not folder by folder while training.
    push, training.push_to_hub = training.push_to_hub, False

    if training.bf16 and training.process_index == 0:
        warn_of_emulation("bf16", str(training.device))
    set_seed(training.seed)
    try:
        if push:
            check_target(
                training.hub_model_id,
                "model",
                private=bool(training.hub_private_repo),
                overwrite=arguments.overwrite_repo,
            )
        folder = fetch_checkpoint(arguments.model_name_or_path, arguments.model_revision)
        model = build_model(ModelArguments(folder, config_overrides=arguments.config_overrides))
        start = Reg4PruImageProcessor.from_pretrained(folder, working_size=None)  # the scale is that of this training
        if arguments.distillation:
            check_distillation(model.config)
        processor = make_processor(model.config, data_arguments, start)
        data = load_data(data_arguments, training.seed)
    except ValueError as error:
        parser.error(str(error))
    except TransferError as error:
        sys.exit(str(error))

    training.distributed_state.wait_for_everyone()  # all have seen the folder as it was
    try:
        with sole_run(Path(training.output_dir), training.process_index == 0):
            accelerator, finished = _run(model, processor, data, arguments, data_arguments, training, *start_from)
            del model  # the accelerator's own
            leave_processes(accelerator)
    except ValueError as error:
        parser.error(str(error))
    except TrainingError as error:
        sys.exit(f"Training has stopped. {error}")
    if not finished:
        logger.warning("Ended by SIGTERM; go on with --resume_from_checkpoint latest.")
        sys.exit(TERMINATED)
    if push and accelerator.is_main_process:
        push_trained(
            PushArguments(
                model_name_or_path=training.output_dir,
                hub_model_id=training.hub_model_id,
                hub_private_repo=bool(training.hub_private_repo),
                overwrite_repo=arguments.overwrite_repo,
                commit_message="Upload fine-tuned checkpoint",
            )
        )


def _run(
    model: Reg4PruForSemanticSegmentation,
    processor: Reg4PruImageProcessor,
    data: dict[str, Dataset],
    arguments: FinetuneArguments,
    data_arguments: DataArguments,
    training: TrainingArguments,
    resume_from: str | None,
    goes_on: bool,
) -> tuple[Accelerator, bool]:
    """Train, validate and save; returns the accelerator, which nothing else holds on to, and whether it is done."""
    output_dir = Path(training.output_dir)
    record = describe_run(_settings(arguments, data_arguments, training), data, training.device, training.seed)
    if goes_on:
        check_data(output_dir, record["data"])
    trained_on = learned_from(
        fingerprints(data["train"]), arguments.model_name_or_path, arguments.model_revision, resume_from
    )
    with StopRequest() as stop:
        trainer = make_trainer(
            model, processor, data, arguments, data_arguments, training, resume_from, stop, trained_on
        )
        steps = total_steps(len(trainer.train_dataset), training)
        at_end = resume_from is not None and restore_end(trainer, resume_from, steps)
        if training.process_index == 0:
            write_record(output_dir, record)
        if not at_end:
            trainer.train(resume_from_checkpoint=resume_from)
    if trainer.state.global_step < trainer.state.max_steps:
        return trainer.accelerator, False
    measured = trainer.evaluate() if "validation" in data else {}
    # All validations of the run, those before it was resumed, too; the last is that of the averaged weights.
    validations = [entry for entry in trainer.state.log_history if "eval_ap" in entry]
    best = max(validations, key=lambda entry: entry["eval_ap"], default={"eval_ap": None, "step": None})
    with writing(output_dir, "The weights", states=sealed_states):
        trainer.save_model()
    if not trainer.is_world_process_zero():
        return trainer.accelerator, True
    results = {
        **record,
        "total_steps": trainer.state.max_steps,
        "train_names": sorted(data["train"]["name"]),
        "best_validation_ap": best["eval_ap"],
        "best_step": best["step"],
        "validation": {name: measured[f"eval_{name}"] for name in ("ap", "dice", "iou")} if measured else None,
    }
    with writing(output_dir, "train_results.json", states=sealed_states):
        write_training_images(output_dir, trained_on)
        replace_text(output_dir / "train_results.json", json.dumps(results, indent=2) + "\n")
    logger.info("Saved in %s; validation: %s", output_dir, results["validation"])
    return trainer.accelerator, True
