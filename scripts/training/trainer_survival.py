"""A `Trainer` whose runs survive as those of `reg4pru train` do: sealed states, SIGTERM, losses that are looked at."""

import logging
import math
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerState

from ..training_photographs import write_training_photographs
from .callbacks import EpochSamples, WeightAverage
from .checkpoints import SEAL, check_steps_left, discard, newest_whole, seal, writing
from .stopping import StopRequest, check_finite, where_to_go_on

logger = logging.getLogger(__name__)


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
        photographs (`set[str]`, *optional*): Fingerprints of the photographs that the model is trained on.
    """

    def __init__(self, total_limit: int | None, photographs: set[str] | None):
        self.total_limit, self.photographs = total_limit, photographs

    def on_save(self, args, state, control, **kwargs) -> None:
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        output_dir = Path(args.output_dir)
        folder = output_dir / f"checkpoint-{state.global_step}"
        with writing(output_dir, f"The full state of step {state.global_step}", folder, sealed_states):
            write_training_photographs(folder, self.photographs)
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
