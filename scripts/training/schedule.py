"""What changes from step to step in a training: keep rates, dense start, mask annealing, and the seed of the draws."""

import torch
from transformers import set_seed

from datasets_fives.training_samples import STEP, derived_seed
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.configuration_reg4pru import expand_keep_rates
from modeling_reg4pru.token_selectors import warmup_keep_rates

from .arguments import PruningScheduleArguments


def begin_step(
    model: Reg4PruForSemanticSegmentation,
    schedule: PruningScheduleArguments,
    seed: int,
    step: int,
    total_steps: int,
) -> tuple[float, ...] | None:
    """
    Set the model up for a training step; returns the step's keep rates, `None` while the start of training is dense.

    All that a step draws, routing and policies, follows from the seed and its number: a resumed run needs no state of
    the generators, and validation in between changes nothing. All processes draw alike: the routing window is one for
    the whole batch.
    """
    set_seed(derived_seed(seed, STEP, step))
    model.set_mask_annealing(step / total_steps)
    keep_rates = keep_rates_of_step(model, schedule, step / total_steps)
    dense = model.config.keep_rates is None or step < schedule.dense_fraction * total_steps
    return None if dense else keep_rates


def keep_rates_of_step(
    model: Reg4PruForSemanticSegmentation, schedule: PruningScheduleArguments, progress: float
) -> tuple[float, ...]:
    """Keep rates of one training step: drawn from a range, or on their way from 1 to the target."""
    target = expand_keep_rates(model.config.keep_rates, model.config.num_stages)
    if schedule.keep_rate_range:
        low, high = schedule.keep_rate_range
        return (low + (high - low) * torch.rand(()).item(),) * len(target)
    warmup = schedule.keep_rate_warmup
    begun = max(0.0, progress - schedule.dense_fraction)
    return warmup_keep_rates(target, begun / warmup if warmup else 1.0)
