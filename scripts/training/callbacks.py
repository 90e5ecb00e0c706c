"""Callbacks that add our schedules, weight average, checks and full states to `Trainer`; see [`Reg4PruTrainer`]."""

import math
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import TrainerCallback

from datasets_fives.training_samples import SeededSamples, epoch_order

from ..common.data_overlap import write_training_images
from .arguments import PruningScheduleArguments
from .checkpoints import discard, list_trainer_checkpoints, seal, writing
from .interruption import StopRequest, check_finite, resume_hint
from .optimization import make_average
from .schedule import begin_step


class EpochDataset(Dataset):
    """
    The samples of one epoch, in the order of `reg4pru train`, for a `Trainer` that takes them in sequence.

    Args:
        samples ([`~datasets_fives.training_samples.SeededSamples`]): The samples of all epochs.
        visits (`int`, *optional*, defaults to 1): How often an epoch visits each image.
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


class SetEpochCallback(TrainerCallback):
    """Tells an [`EpochDataset`] which epoch begins, also when training is resumed in the middle of one."""

    def __init__(self, samples: EpochDataset):
        self.samples = samples

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.samples.set_epoch(int(state.epoch))


class PruningScheduleCallback(TrainerCallback):
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


class WeightAverageCallback(TrainerCallback):
    """
    Exponential moving average of the weights, as `reg4pru train` has it: kept beside each checkpoint, and put into the
    model when training ends.

    Args:
        decay (`float`): See [`~reg4pru.training.optimization.make_average`].
        resume_from (`str`, *optional*): Folder of the full state that training is resumed from; may be set later.
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


class FiniteLossCallback(TrainerCallback):
    """Ends a training whose loss is not finite; `Trainer` itself leaves such losses out of its log."""

    def __init__(self, samples: EpochDataset):
        self.samples = samples
        self.losses: dict[int, torch.Tensor] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        def add_loss(module: torch.nn.Module, inputs: tuple, output) -> None:
            if module.training and output.loss is not None:
                step = state.global_step + 1
                self.losses[step] = self.losses.get(step, 0.0) + output.loss.detach().to(args.device)

        self.handle = model.register_forward_hook(add_loss)

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
        batch = args.train_batch_size * args.world_size
        per_step = batch * args.gradient_accumulation_steps
        used = len(self.samples) // batch * batch if args.dataloader_drop_last else len(self.samples)
        steps = max(1, math.ceil(used / per_step))

        def names(step: int) -> list[str]:
            place = (step - 1) % steps * per_step
            return [self.samples.samples.rows[row]["name"] for _, row in self.samples.order[place : place + per_step]]

        check_finite(self.losses, names, resume_hint(list_trainer_checkpoints(Path(args.output_dir))))
        self.losses = {}


class StopOnSignalCallback(TrainerCallback):
    """Saves a full state and ends the training when any process has received a signal."""

    def __init__(self, stop: StopRequest):
        self.stop = stop

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.stop.agreed() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


class SealCheckpointsCallback(TrainerCallback):
    """
    Seals a full state when every process has written its part, and only then deletes the oldest. Must be the last
    callback that writes to it.

    Args:
        total_limit (`int`, *optional*): How many are kept, as `Trainer` counts: the newest always, and the best where
            it is loaded at the end. All by default.
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
        with writing(output_dir, f"The full state of step {state.global_step}", folder, list_trainer_checkpoints):
            write_training_images(folder, self.images)
            seal(folder)
        if self.total_limit:
            states = list_trainer_checkpoints(output_dir)
            best = Path(state.best_model_checkpoint or "").name if args.load_best_model_at_end else ""
            kept = {states[-1].name, best} & {folder.name for folder in states}
            spare = [folder for folder in states if folder.name not in kept]
            for old in spare[: max(0, len(states) - max(self.total_limit, len(kept)))]:
                discard(old)
