"""What Reg4Pru adds to `Trainer`: schedule of pruning, average of the weights, samples by epoch."""

from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from datasets_fives.samples import SeededSamples, epoch_order
from modeling_reg4pru.configuration_reg4pru import expand_keep_rates

from .arguments import PruningScheduleArguments
from .optimization import make_average
from .schedule import begin_step


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
        self.target = expand_keep_rates(model.config.keep_rates, model.config.num_stages)

    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        model.set_keep_rates(begin_step(model, self.schedule, args.seed, state.global_step, state.max_steps))

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        model.set_keep_rates(self.target)

    def on_train_end(self, args, state, control, model=None, **kwargs) -> None:
        model.prunes_in_training = True


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


class EpochSamples(Dataset):
    """
    [`~datasets_fives.samples.SeededSamples`] by their place in an epoch, for a `Trainer` that takes them in sequence:
    the order of `reg4pru train`.
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


class TellEpoch(TrainerCallback):
    """Tells [`EpochSamples`] which epoch it is, also when training is resumed in the middle of one."""

    def __init__(self, samples: EpochSamples):
        self.samples = samples

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.samples.set_epoch(int(state.epoch))
