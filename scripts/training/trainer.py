"""The `Trainer` of transformers for our models: samples, schedules and full states of `reg4pru train`."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerState, TrainingArguments

from datasets_fives import class_names
from datasets_fives.training_samples import SeededSamples
from datasets_fives.transforms import Augmentation, TrainTransform
from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from .arguments import FinetuneArguments
from .callbacks import (
    EpochDataset,
    FiniteLossCallback,
    PruningScheduleCallback,
    SealCheckpointsCallback,
    SetEpochCallback,
    StopOnSignalCallback,
    WeightAverageCallback,
)
from .checkpoints import check_steps_left, find_trainer_checkpoint, list_trainer_checkpoints, writing
from .distillation import check_distillation, distilled_loss
from .interruption import StopRequest, leave_interrupts, measurement_error, resume_hint
from .optimization import make_optimizer
from .setup import check_num_labels, collate, names_of
from .trainer_arguments import check_selection, check_training_arguments
from .validation import LABEL_NAMES, ImageTiles, StreamingMetrics, tile_predictions


class Reg4PruTrainer(Trainer):
    """
    [`~transformers.Trainer`] with what [`Reg4PruForSemanticSegmentation`] is trained with: random crops, layer-wise
    learning rates, keep-rate schedule, weight average, distillation, and metrics of whole images, blended as in every
    prediction. Full states are whole or not there, SIGTERM saves one and ends the training, and a loss that is not
    finite stops it. The loss of a step is the mean over its batches (`gradient_accumulation_steps`), whatever their
    shares of ignored pixels.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): What is trained.
        args ([`~transformers.TrainingArguments`]): Some fields are changed in place to what these samples need.
        processing_class ([`Reg4PruImageProcessor`]): Of the model; saved with it.
        train_dataset (`datasets.Dataset`): Images and masks, as [`~datasets_fives.load_segmentation`] gives them, at
            the working size of the image processor.
        eval_dataset (`datasets.Dataset`, *optional*): The same, to validate on.
        recipe (`FinetuneArguments`, *optional*): Pruning schedule, optimiser, distillation; defaults to its defaults.
        random_crop (`bool`, *optional*, defaults to `True`): Whether to train on crops as large as the model's input,
            instead of images that are resized to it.
        samples_per_image (`int`, *optional*, defaults to 1): How often an epoch visits each image.
        augmentation (`Augmentation`, *optional*): How images vary; defaults to its defaults.
        trained_on (`set[str]`, *optional*): Fingerprints of all images that the weights will have learned from; saved
            with every full state.

    Raises:
        `ValueError`: if the classes of model and data set differ in number, or for arguments that change nothing.

    Example:

    ```python
    >>> images = load_vessels("user/fives", working_size=processor.working_size)
    >>> args = TrainingArguments("finetuned", max_steps=1000, per_device_train_batch_size=4, learning_rate=1e-4)
    >>> trainer = Reg4PruTrainer(model, args, processor, images["train"], images["validation"])
    >>> trainer.train()
    >>> trainer.evaluate()
    ```
    """

    def __init__(
        self,
        model: Reg4PruForSemanticSegmentation,
        args: TrainingArguments,
        processing_class: Reg4PruImageProcessor,
        train_dataset: datasets.Dataset,
        eval_dataset: datasets.Dataset | None = None,
        *,
        recipe: FinetuneArguments | None = None,
        random_crop: bool = True,
        samples_per_image: int = 1,
        augmentation: Augmentation | None = None,
        trained_on: set[str] | None = None,
    ):
        check_training_arguments(args, hub=False)
        check_num_labels(model.config, class_names(train_dataset))
        check_selection(args, model.config.num_labels)
        self.recipe, self.stop = recipe or FinetuneArguments(), StopRequest()
        check_distillation(model.config, self.recipe.distillation)
        args.remove_unused_columns = False  # the columns are what the transform reads
        args.batch_eval_metrics, args.label_names = True, LABEL_NAMES
        args.train_sampling_strategy = "sequential"  # an EpochDataset is in order already
        # A full state goes only when the next one is sealed, which Trainer does not know of.
        total_limit, args.save_total_limit = args.save_total_limit, None
        transform = _make_transform(model.config, processing_class, random_crop, augmentation)
        samples = EpochDataset(SeededSamples(train_dataset, transform, args.seed), samples_per_image)
        self.total_steps = _count_steps(len(samples), args)
        self.average = WeightAverageCallback(self.recipe.ema_decay) if self.recipe.ema_decay else None
        super().__init__(
            model,
            args,
            data_collator=collate,
            train_dataset=samples,
            eval_dataset=None
            if eval_dataset is None
            else ImageTiles(eval_dataset, processing_class, model.config.allocation),
            processing_class=processing_class,
            compute_metrics=StreamingMetrics(names_of(model.config), model.config.semantic_loss_ignore_index),
            preprocess_logits_for_metrics=tile_predictions,
            optimizers=make_optimizer(
                model,
                self.recipe,
                learning_rate=args.learning_rate,
                weight_decay=args.weight_decay,
                total_steps=self.total_steps,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
            ),
            callbacks=[
                PruningScheduleCallback(self.recipe),
                SetEpochCallback(samples),
                FiniteLossCallback(samples),
                StopOnSignalCallback(self.stop),
                *([self.average] if self.average else []),
                SealCheckpointsCallback(total_limit, trained_on),
            ],
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        [`~transformers.Trainer.train`]; `resume_from_checkpoint=True` takes the newest full state that is not damaged.

        Raises:
            `ValueError`: if there is no such state, or it is further than this training goes.
            [`TrainingError`]: if the disk refuses a full state, or a loss is not finite.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = find_trainer_checkpoint(Path(self.args.output_dir), "latest")
        if resume_from_checkpoint:
            self.check_steps_left(resume_from_checkpoint)
            if self._restore_end(Path(resume_from_checkpoint)):
                return None
            if self.average:
                self.average.resume_from = resume_from_checkpoint
        with self.stop:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def check_steps_left(self, resume_from: str) -> None:
        """Raises `ValueError` if a full state is further than this training goes."""
        step = TrainerState.load_from_json(str(Path(resume_from) / "trainer_state.json")).global_step
        check_steps_left(resume_from, step, self.total_steps)

    def _restore_end(self, folder: Path) -> bool:
        """
        A run that was killed after its last step has nothing left to train, but `Trainer` would add a step: then this
        takes over its final weights and its state, and returns `True`.
        """
        state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        if state.global_step < self.total_steps:
            return False
        self.state = state
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        weights = type(self.model).from_pretrained(best or folder).state_dict()
        if self.average:
            saved = torch.load(folder / self.average.FILE, map_location="cpu", weights_only=True)
            weights = {name: saved[f"module.{name}"] for name in weights}
        self.model.load_state_dict(weights)
        return True

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """
        [`~transformers.Trainer.evaluate`]; while training, whatever fails there, what was learned is saved.

        Raises:
            [`TrainingError`]: if it fails while training.
        """
        try:
            return super().evaluate(*args, **kwargs)
        except Exception as error:
            # The other processes are in the measurement, and would not save with this one.
            if not self.is_in_train or self.args.world_size > 1 or self.state.global_step == 0:
                raise
            self._save_checkpoint(self.model_wrapped, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            saved = resume_hint(list_trainer_checkpoints(Path(self.args.output_dir)))
            raise measurement_error(error, self.state.global_step, saved) from error

    def get_train_dataloader(self) -> DataLoader:
        """Of all samples."""
        return _undisturbed(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        """
        Of all tiles: `dataloader_drop_last` is for training, and metrics are those of all images. Where tiles share a
        budget, their number is that of a batch.
        """
        with self._whole_images(self.eval_dataset if eval_dataset is None else eval_dataset):
            return _undisturbed(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Of all tiles, as [`~Reg4PruTrainer.get_eval_dataloader`]."""
        with self._whole_images(test_dataset):
            return _undisturbed(super().get_test_dataloader(test_dataset))

    @contextmanager
    def _whole_images(self, tiles: Dataset | str) -> Iterator[None]:
        drop_last, batch_size = self.args.dataloader_drop_last, self.args.per_device_eval_batch_size
        self.args.dataloader_drop_last = False
        if isinstance(tiles, ImageTiles) and tiles.batch_size is not None:
            self.args.per_device_eval_batch_size = tiles.batch_size
        try:
            yield
        finally:
            self.args.dataloader_drop_last, self.args.per_device_eval_batch_size = drop_last, batch_size

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """In-place distillation ([`distilled_loss`]) where the recipe says so, once training prunes."""
        config = self.accelerator.unwrap_model(model).config
        if not (self.recipe.distillation and model.training and config.keep_rates is not None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, parts = distilled_loss(model, config, inputs, dense_pass=self.accelerator.no_sync(model))
        return (loss, parts) if return_outputs else loss

    def _save_checkpoint(self, model: torch.nn.Module, trial: None) -> None:
        output_dir, step = Path(self.args.output_dir), self.state.global_step
        unfinished = output_dir / f"checkpoint-{step}"
        with writing(output_dir, f"The full state of step {step}", unfinished, list_trainer_checkpoints):
            super()._save_checkpoint(model, trial)


def _undisturbed(loader: DataLoader) -> DataLoader:
    """A loader whose workers leave Ctrl-C to the training; samples need no seed of a worker."""
    loader.worker_init_fn = leave_interrupts
    return loader


def _make_transform(
    config: Reg4PruConfig, processor: Reg4PruImageProcessor, random_crop: bool, augmentation: Augmentation | None
) -> TrainTransform:
    return TrainTransform(
        config.image_size,
        crop_size=config.image_size if random_crop else None,
        num_labels=config.num_labels,
        augmentation=augmentation,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
    )


def _count_steps(num_samples: int, args: TrainingArguments) -> int:
    """Optimiser steps of the whole training, counted as `Trainer` does."""
    if args.max_steps > 0:
        return args.max_steps
    whole = math.floor if args.dataloader_drop_last else math.ceil
    batches = max(1, whole(num_samples / (args.train_batch_size * args.world_size)))
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))
