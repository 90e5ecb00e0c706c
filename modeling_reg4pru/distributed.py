"""
Training in several processes as in one: random draws belong to the place of an image in the batch of all processes,
and what a loss divides by is counted over all of them.
"""

from collections.abc import Callable

import torch
from torch import distributed


def draw_for_images(draw: Callable[[int], torch.Tensor], num_images: int) -> torch.Tensor:
    """
    Random numbers for the images of this process in a training step. Processes whose generators stand alike (they
    must, for the routing window is one for the whole batch) then draw what one process with all images would have
    drawn, and not all the same.

    Args:
        draw (`Callable[[int], torch.Tensor]`): Draws for so many images, `(num_images, ...)`.
        num_images (`int`): Images of this process; every process has as many.

    Returns:
        `torch.Tensor` of shape `(num_images, ...)`.
    """
    rank, world = _place()
    return draw(world * num_images)[rank * num_images : (rank + 1) * num_images]


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """
    The mean of a count or another statistic over the processes of a training step, without gradient. A sum of losses
    that is divided by it becomes, with gradients averaged over the processes, the loss over all their images.

    Args:
        value (`torch.Tensor` of any shape): Of this process; every process must call this equally often.
    """
    _, world = _place()
    if world == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / world


def _place() -> tuple[int, int]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
