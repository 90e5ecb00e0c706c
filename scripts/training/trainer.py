"""The Trainer of transformers with distillation, schedules, and runs that survive a kill."""

import logging
import math
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from datasets_fives.training_samples import SeededSamples, epoch_order
from datasets_fives.transforms import TrainTransform
from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from ..common.data_overlap import write_training_images
from .arguments import DataArguments, FinetuneArguments, PruningScheduleArguments
from .checkpoints import SEAL, check_steps_left, discard, newest_whole, seal, writing
from .distillation import distilled_loss
from .interruption import StopRequest, check_finite, where_to_go_on
from .loop import collate
from .optimization import make_average, make_optimizer
from .schedule import begin_step
from .validation import ImageTiles, StreamingMetrics, vessel_probability

logger = logging.getLogger(__name__)


class EpochSamples(Dataset):
    """
    [`~datasets_fives.training_samples.SeededSamples`] by their place in an epoch, for a `Trainer` that takes them in
    sequence: the order of `reg4pru train`.
    """

    def __init__(self, samples: SeededSamples, visits: int = 1):
        self.samples, self.visits = samples, visits
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.order = epoch_order(len(self.samples.rows), self.visits, epoch, self.samples.seed)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.samples[self.order[index]]


class SurvivingTrainer(Trainer):
    """[`~transformers.Trainer`]; a full state that the disk refuses ends it with a message that says what to do."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: None) -> None:
        output_dir, step = Path(self.args.output_dir), self.state.global_step
        with writing(output_dir, f"The full state of step {step}", output_dir / f"checkpoint-{step}", sealed_states):
            super()._save_checkpoint(model, trial)


def sealed_states(output_dir: Path) -> list[Path]:
    """Full states of a `Trainer` that were finished, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if (path / SEAL).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_state(output_dir: Path, wanted: str) -> str:
    """
    Folder of the full state that `reg4pru finetune` resumes from.

    Args:
        output_dir (`Path`): Folder of the run.
        wanted (`str`): A folder, or `"latest"`, which passes over states that were not finished or are damaged.

    Raises:
        `ValueError`: if there is no such state, or none that is whole.
    """
    if wanted == "latest":
        return newest_whole(sealed_states(output_dir), output_dir)
    if not (Path(wanted) / SEAL).is_file():
        raise ValueError(f"{wanted} is no full state of `reg4pru finetune`, or was not finished: it has no {SEAL}.")
    return newest_whole([Path(wanted)], Path(wanted))


def restore_end(trainer: Trainer, resume_from: str, total_steps: int) -> bool:
    """
    A run that was killed after its last step has nothing left to train, but `Trainer` would add a step.

    Args:
        trainer (`Trainer`): Gets the final weights and the state of that run.
        resume_from (`str`): Folder of a full state.
        total_steps (`int`): Steps of the whole training.

    Returns:
        `bool`: False, with nothing done, if there are steps left.

    Raises:
        `ValueError`: if that run is at a later step.
    """
    folder = Path(resume_from)
    state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
    check_steps_left(resume_from, state.global_step, total_steps)
    if state.global_step < total_steps:
        return False
    trainer.state = state
    weights = type(trainer.model).from_pretrained(folder).state_dict()
    if (folder / WeightAverage.FILE).is_file():
        saved = torch.load(folder / WeightAverage.FILE, map_location="cpu", weights_only=True)
        weights = {name: saved[f"module.{name}"] for name in weights}
    trainer.model.load_state_dict(weights)
    return True


class KeepStates(TrainerCallback):
    """
    Seals a full state when every process has written its part, and only then lets the oldest go. Must be the last
    callback that writes to it.

    Args:
        total_limit (`int`, *optional*): How many are kept; all by default.
        images (`set[str]`, *optional*): Fingerprints of the images that the model is trained on.
    """

    def __init__(self, total_limit: int | None, images: set[str] | None):
        self.total_limit, self.images = total_limit, images

    def on_save(self, args, state, control, **kwargs) -> None:
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        output_dir = Path(args.output_dir)
        folder = output_dir / f"checkpoint-{state.global_step}"
        with writing(output_dir, f"The full state of step {state.global_step}", folder, sealed_states):
            write_training_images(folder, self.images)
            seal(folder)
        for old in sealed_states(output_dir)[: -self.total_limit] if self.total_limit else ():
            discard(old)


class HeedStop(TrainerCallback):
    """Saves a full state and ends the training when any process was told to end."""

    def __init__(self, stop: StopRequest):
        self.stop = stop

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.stop.agreed() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


class CheckLosses(TrainerCallback):
    """Ends a training whose loss is not finite; `Trainer` itself leaves such losses out of its log."""

    def __init__(self, samples: EpochSamples):
        self.samples = samples
        self.losses: dict[int, torch.Tensor] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        def note(module: torch.nn.Module, inputs: tuple, output) -> None:
            if module.training and output.loss is not None:
                step = state.global_step + 1
                self.losses[step] = self.losses.get(step, 0.0) + output.loss.detach().to(args.device)

        self.handle = model.register_forward_hook(note)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        # Looking at a loss waits for the device; before anything is kept it must be.
        if args.device.type == "cpu" or control.should_save or control.should_evaluate or control.should_log:
            self._check(args)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self._check(args)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._check(args)
        self.handle.remove()

    def _check(self, args) -> None:
        per_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        steps = math.ceil(len(self.samples) / per_step)

        def names(step: int) -> list[str]:
            place = (step - 1) % steps * per_step
            return [self.samples.samples.rows[row]["name"] for _, row in self.samples.order[place : place + per_step]]

        check_finite(self.losses, names, where_to_go_on(sealed_states(Path(args.output_dir))))
        self.losses = {}


class PruningSchedule(TrainerCallback):
    """
    Keep-rate warm-up, dense start and mask annealing. The rates of a step are set before it and taken back after it,
    so that what is validated and saved holds the target. All that a step draws follows from the seed and its number.

    Args:
        schedule (`PruningScheduleArguments`): When, and how far, training prunes.
    """

    def __init__(self, schedule: PruningScheduleArguments):
        self.schedule, self.target = schedule, ()

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.target = model.config.keep_rates

    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        model.set_keep_rates(begin_step(model, self.schedule, args.seed, state.global_step, state.max_steps))

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        model.set_keep_rates(self.target)


class WeightAverage(TrainerCallback):
    """
    Exponential moving average of the weights, as `reg4pru train` has it: kept beside each checkpoint, and put into the
    model when training ends.

    Args:
        decay (`float`): See [`~reg4pru.training.optimization.make_average`].
        resume_from (`str`, *optional*): The checkpoint that training is resumed from.
    """

    FILE = "weight_average.pt"

    def __init__(self, decay: float, resume_from: str | None = None):
        self.decay, self.resume_from, self.average = decay, resume_from, None

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.average = make_average(model, self.decay)
        if self.resume_from is not None:
            saved = torch.load(Path(self.resume_from) / self.FILE, map_location=args.device, weights_only=True)
            self.average.load_state_dict(saved)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.average.update_parameters(model)

    def on_save(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save(self.average.state_dict(), folder / self.FILE)

    def on_train_end(self, args, state, control, model=None, **kwargs) -> None:
        model.load_state_dict(self.average.module.state_dict())


class TellEpoch(TrainerCallback):
    """Tells [`EpochSamples`] which epoch it is, also when training is resumed in the middle of one."""

    def __init__(self, samples: EpochSamples):
        self.samples = samples

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.samples.set_epoch(int(state.epoch))


class DistillingTrainer(SurvivingTrainer):
    """[`SurvivingTrainer`] whose steps are those of [`distilled_loss`] once [`PruningSchedule`] lets them prune."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        config = self.accelerator.unwrap_model(model).config
        if not model.training or config.keep_rates is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, parts = distilled_loss(model, config, inputs, dense_pass=self.accelerator.no_sync(model))
        return (loss, parts) if return_outputs else loss


def make_trainer(
    model: Reg4PruForSemanticSegmentation,
    processor: Reg4PruImageProcessor,
    data: dict[str, datasets.Dataset],
    arguments: FinetuneArguments,
    data_arguments: DataArguments,
    training: TrainingArguments,
    resume_from: str | None = None,
    stop: StopRequest | None = None,
    trained_on: set[str] | None = None,
) -> Trainer:
    """A `Trainer` with samples, optimiser, schedule and callbacks of Reg4Pru; `trainer.train()` is left to do."""
    size = model.config.image_size
    normalisation = {"image_mean": processor.image_mean, "image_std": processor.image_std}
    crop = size if data_arguments.random_crop else None
    transform = TrainTransform(size, crop_size=crop, **normalisation)
    samples = EpochSamples(SeededSamples(data["train"], transform, training.seed), data_arguments.samples_per_image)
    validation = ImageTiles(data["validation"], processor) if "validation" in data else None
    optimizers = make_optimizer(
        model,
        arguments,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        total_steps=total_steps(len(samples), training),
    )
    callbacks = [PruningSchedule(arguments), TellEpoch(samples), CheckLosses(samples), HeedStop(stop or StopRequest())]
    if arguments.ema_decay:
        callbacks.append(WeightAverage(arguments.ema_decay, resume_from))
    # A full state goes only when the next one is sealed, which Trainer does not know of.
    callbacks.append(KeepStates(training.save_total_limit, trained_on))
    training.save_total_limit = None
    trainer = DistillingTrainer if arguments.distillation else SurvivingTrainer
    return trainer(
        model,
        training,
        data_collator=collate,
        train_dataset=samples,
        eval_dataset=validation,
        processing_class=processor,
        compute_metrics=StreamingMetrics(model.config.semantic_loss_ignore_index),
        preprocess_logits_for_metrics=vessel_probability,
        optimizers=optimizers,
        callbacks=callbacks,
    )


def total_steps(num_samples: int, training: TrainingArguments) -> int:
    """Optimiser steps of the whole training, counted as `Trainer` does."""
    if training.max_steps > 0:
        return training.max_steps
    batches = math.ceil(num_samples / (training.train_batch_size * training.world_size))
    return math.ceil(training.num_train_epochs * math.ceil(batches / training.gradient_accumulation_steps))
