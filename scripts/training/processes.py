"""The end of a training of several processes."""

import gc

from accelerate import Accelerator


def leave_processes(accelerator: Accelerator) -> None:
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
