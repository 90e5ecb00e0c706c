"""Level "labels": the default recipe, from a calibrated model, on the labels of the data set."""

import sys
from dataclasses import replace
from pathlib import Path

from transformers import TrainingArguments

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from ..common.dataset_loading import load_sides
from ..training.arguments import FinetuneArguments
from ..training.checkpoints import list_trainer_checkpoints
from ..training.trainer import Reg4PruTrainer
from .arguments import PruneArguments

BATCH_SIZE, LEARNING_RATE, SAVE_EVERY = 4, 1e-4, 50
SAMPLES_PER_IMAGE = 16
# As in the recipes of this project, but that nothing has to be learnt before pruning begins.
RECIPE = {"keep_rate_range": [0.3, 1.0], "distillation": True, "selector_learning_rate": 1e-3, "ema_decay": 0.99}


def train_with_labels(
    model: Reg4PruForSemanticSegmentation,
    processor: Reg4PruImageProcessor,
    arguments: PruneArguments,
    names: list[str],
    folder: Path,
) -> None:
    """
    Train all weights with labels, as the default recipe does: every step runs dense, which learns from the labels, and
    pruned at a keep rate that is drawn, which learns what the dense pass predicts; corrections and selectors go on
    learning. Killed, it continues from its last full state.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): Learns, and ends in evaluation mode.
        processor ([`Reg4PruImageProcessor`]): Its image processor.
        arguments ([`PruneArguments`]): Data set, side, steps, seed.
        names (`list[str]`): The images to learn from.
        folder (`Path`): For full states.
    """
    rows = load_sides(replace(arguments, working_size=processor.working_size), arguments.seed)[arguments.side]
    wanted = set(names)
    rows = rows.select([place for place, name in enumerate(rows["name"]) if name in wanted])
    training = TrainingArguments(
        str(folder), max_steps=arguments.max_steps, per_device_train_batch_size=BATCH_SIZE, seed=arguments.seed,
        learning_rate=LEARNING_RATE, weight_decay=0.05, save_steps=SAVE_EVERY, save_total_limit=1, report_to=[],
        use_cpu=model.device.type == "cpu",
    )  # fmt: skip
    trainer = Reg4PruTrainer(
        model, training, processor, rows, recipe=FinetuneArguments(**RECIPE), samples_per_image=SAMPLES_PER_IMAGE
    )
    trainer.train(resume_from_checkpoint=bool(list_trainer_checkpoints(folder)) or None)
    if trainer.stop.requested and trainer.state.global_step < trainer.state.max_steps:
        sys.exit(128 + trainer.stop.requested)
    model.eval()
