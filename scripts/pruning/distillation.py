"""Level "distill": all weights learn, from the dense model that they were, to predict the same with fewer tokens."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from modeling_reg4pru import Reg4PruForSemanticSegmentation

SAVE_EVERY = 50
BATCH_SIZE = 4
LEARNING_RATE = 2e-5
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
    predicts at every pixel. Selectors stay as they are.

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
    learning = [weights for name, weights in model.named_parameters() if not name.startswith("selectors.")]
    for weights in learning:
        weights.requires_grad_(True)
    optimizer = torch.optim.AdamW(learning, lr=LEARNING_RATE, weight_decay=0.0)
    first, losses = _read_state(state, model, optimizer)
    bar = tqdm(range(first, num_steps), desc="Distillation", initial=first, total=num_steps, unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(step, num_steps)
        batch, rate = _draw(len(tiles), seed, step)
        loss = _step(model, teacher, torch.from_numpy(tiles[batch]).to(model.device), rate)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
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
    rate: float,
) -> torch.Tensor:
    with torch.no_grad():
        wanted = teacher(pixel_values, keep_rates=None).logits.float().log_softmax(1)
    with torch.enable_grad():
        passes = [model(pixel_values, keep_rates=keep_rate).logits for keep_rate in (None, rate)]
        divergences = [
            F.kl_div(logits.float().log_softmax(1), wanted, reduction="none", log_target=True).sum(1).mean()
            for logits in passes
        ]
        return sum(divergences)


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
