"""How a training ends before its last step: by a signal, or because it cannot continue."""

import gc
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import reduce

logger = logging.getLogger(__name__)


class TrainingError(Exception):
    """A training that cannot continue; the message says how far it has come and what to do."""


class StopRequest:
    """
    Catches SIGTERM, by which schedulers and `kill` ask a process to end, and SIGINT, which is Ctrl-C, so that the
    training can save before it ends. They are heeded after the step that is running. Whoever cannot wait presses
    Ctrl-C once more, or sends SIGKILL.

    Example:

    ```python
    >>> with StopRequest() as stop:
    ...     for batch in loader:
    ...         if stop.requested:
    ...             break
    ```
    """

    requested = 0  # the signal

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def agreed(self) -> bool:
        """Whether any process of the training received a signal; signals reach them in different steps."""
        state = PartialState()
        if state.num_processes == 1:
            return self.requested > 0
        flag = torch.tensor(float(self.requested), device=state.device)
        agreed = reduce(flag, "sum").item() > 0
        if agreed and not self.requested:
            self.requested = signal.SIGTERM  # another process has it
        return agreed

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Launchers pass SIGTERM on, so that it comes twice; only whoever presses Ctrl-C twice is in a hurry.
        if number == self.requested == signal.SIGINT:
            raise SystemExit(128 + number)
        self.requested = self.requested or number


def leave_interrupts(worker: int) -> None:
    """
    For `worker_init_fn` of loaders: Ctrl-C reaches their workers, too, which would die of it, with tracebacks, before
    the training has ended its step. They end with the training.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def exit_stopped(number: int) -> None:
    """Say which signal has ended a training, and exit as a shell reports it: 143 for SIGTERM, 130 for SIGINT."""
    name = signal.Signals(number).name
    logger.warning("Ended by %s; continue with --resume_from_checkpoint latest.", name)
    sys.exit(128 + number)


def check_finite(losses: dict[int, torch.Tensor], names: Callable[[int], list[str]], saved: str) -> None:
    """
    Args:
        losses (`dict[int, torch.Tensor]`): Losses by step, `()` each.
        names (`Callable[[int], list[str]]`): The images that a step learned from.
        saved (`str`): How the run can be resumed.

    Raises:
        [`TrainingError`]: if one is not finite; what was learned from it must not be saved.
    """
    if not losses:
        return
    for step, value in zip(losses, torch.stack(list(losses.values())).tolist(), strict=True):
        if value - value != 0:  # inf and nan
            raise TrainingError(
                f"The loss of step {step} is {value}. Its images were {', '.join(names(step))}. Nothing was "
                f"saved since. {saved} A resumed run keeps its settings: if the same happens again, look at these "
                "images, or start a new run in another --output_dir with a lower --learning_rate, or with bf16 in "
                "place of fp16."
            )


def measurement_error(error: Exception, step: int, saved: str) -> TrainingError:
    """The error of a measurement while training; `saved` says how the run can be resumed."""
    return TrainingError(
        f"The measurement after step {step} has failed: {type(error).__name__}: {error}. What was learned is not "
        f"lost. {saved}"
    )


def resume_hint(states: list[Path]) -> str:
    """How to resume from the newest of some full states, oldest first."""
    if not states:
        return "There is no full state to resume from yet: start again in another --output_dir."
    return f"The last full state is {states[-1]}: continue from it with --resume_from_checkpoint latest."


def end_training(accelerator: Accelerator) -> None:
    """
    End a training. The wrapped model must go before the process group does: with gloo, freeing it afterwards waits for
    the group's thread while holding Python's lock, which that thread waits for, and one process in three hangs for
    ever. Call it where no variable holds the prepared model, optimiser or loaders any more.

    Args:
        accelerator (`Accelerator`): It lets go of everything that it has prepared.
    """
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
