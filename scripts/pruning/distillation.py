"""Level "distill": all weights learn, from the dense model that they were, to predict the same with fewer tokens."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from modeling_reg4pru import Reg4PruForSemanticSegmentation

from ..training.distillation import prediction_divergence
from ..training.optimization import parameter_groups

SAVE_EVERY = 20
BATCH_SIZE = 4
# Of the heads, and 0.8 times as much with every layer down. At 5e-5 everywhere 15 steps spoil the unpruned pass.
LEARNING_RATE, LAYER_DECAY = 1e-5, 0.8
CORRECTION_LEARNING_RATE = 1e-4
STATES_WEIGHT = 0.05
WARM_UP = 0.1  # of the steps
KEEP_RATES = (0.3, 1.0)


def distill(
    model: Reg4PruForSemanticSegmentation,
    teacher: Reg4PruForSemanticSegmentation,
    tiles: np.ndarray,
    num_steps: int,
    seed: int,
    state: Path,
) -> float:
    """
    In-place distillation against a frozen copy (slimmable networks: Yu and Huang, arXiv 1903.05134, Sec. 3.3): in
    every step a keep rate is drawn for all stages, and the pruned pass and an unpruned one both learn what the copy
    predicts at every pixel, the pruned one also the states of all patch tokens where they are together again.
    Selectors stay as they are, as nothing here tells them what to keep.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): Learns; in evaluation mode, which removes tokens.
        teacher ([`Reg4PruForSemanticSegmentation`]): What `model` was; never pruned.
        tiles (`np.ndarray` of shape `(num_tiles, 3, height, width)`, `float32`): Normalised.
        num_steps (`int`): Steps of 4 tiles.
        seed (`int`): Of the draws; those of a step depend on it and the step alone.
        state (`Path`): File to which everything is saved now and then; if it is there, the run goes on from it.

    Returns:
        `float`: mean loss of the last tenth of the steps.
    """
    model.requires_grad_(True)
    model.selectors.requires_grad_(False)
    groups = parameter_groups(model, LEARNING_RATE, 0.0, LAYER_DECAY, CORRECTION_LEARNING_RATE)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    highest = [group["lr"] for group in optimizer.param_groups]
    first, losses = _read_state(state, model, optimizer)
    bar = tqdm(range(first, num_steps), desc="Distillation", initial=first, total=num_steps, unit="step")
    for step in bar:
        for group, rate in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = rate * _schedule(step, num_steps)
        batch, keep_rate = _draw(len(tiles), seed, step)
        loss = _step(model, teacher, torch.from_numpy(tiles[batch]).to(model.device), keep_rate)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.4f}")
        if (step + 1) % SAVE_EVERY == 0:
            _save_state(state, model, optimizer, step + 1, losses)
    return float(np.mean(losses[-max(1, num_steps // 10) :]))


def _step(
    model: Reg4PruForSemanticSegmentation,
    teacher: Reg4PruForSemanticSegmentation,
    pixel_values: torch.Tensor,
    keep_rate: float,
) -> torch.Tensor:
    with torch.no_grad(), _reactivated(teacher) as wanted_states:
        wanted = teacher(pixel_values, keep_rates=None).logits
    with torch.enable_grad():
        with _reactivated(model) as states:
            pruned = model(pixel_values, keep_rates=keep_rate).logits
        dense = model(pixel_values, keep_rates=None).logits
        num_patches = math.prod(pixel_values.shape[-2:]) // model.config.patch_size**2
        found, target = (passed[-1][:, -num_patches:] for passed in (states, wanted_states))
        drift = F.mse_loss(found, target) / target.flatten(0, 1).var(0, unbiased=False).mean()
        divergences = [prediction_divergence(logits, wanted) for logits in (pruned, dense)]
        return sum(divergences) + STATES_WEIGHT * drift


@contextmanager
def _reactivated(model: Reg4PruForSemanticSegmentation) -> Iterator[list[torch.Tensor]]:
    """
    What comes after the reactivation, in the forward pass within: what the next layer gets, or, of patch tokens last,
    the norm before the heads; it ends in all patch tokens.
    """
    found: list[torch.Tensor] = []
    following = [*model.layers, model.layernorm][model.config.reactivation_layer + 1]
    handle = following.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        handle.remove()


def _schedule(step: int, num_steps: int) -> float:
    """Share of the learning rate: a linear warm-up, then a cosine to zero."""
    warm_up = max(1, round(WARM_UP * num_steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


def _draw(num_tiles: int, seed: int, step: int) -> tuple[np.ndarray, float]:
    generator = np.random.default_rng((seed, step))
    batch = generator.choice(num_tiles, size=min(BATCH_SIZE, num_tiles), replace=False)
    return np.sort(batch), float(generator.uniform(*KEEP_RATES))


def _read_state(
    path: Path, model: Reg4PruForSemanticSegmentation, optimizer: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    if not path.exists():
        return 0, []
    state = torch.load(path, map_location=model.device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["losses"]


def _save_state(
    path: Path,
    model: Reg4PruForSemanticSegmentation,
    optimizer: torch.optim.Optimizer,
    step: int,
    losses: list[float],
) -> None:
    beside = path.with_suffix(".tmp")
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "losses": losses}
    torch.save(content, beside)
    beside.replace(path)
