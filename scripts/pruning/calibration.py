"""Level "calibrate": drift corrections and selectors fitted to the states of a frozen dense model, without labels."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.divergence import log_divergence

from .tile_states import TileStates

LEARNING_RATE = 1e-3
CORRECTION_STEPS, CORRECTION_BATCH = 400, 12
SELECTOR_STEPS, SELECTOR_BATCH = 300, 16
# Neighbouring patches tell nearly the same: of each tile a third is drawn in every step, but not fewer than these.
FEWEST_PATCHES = 108


def fit_correction(model: Reg4PruForSemanticSegmentation, states: TileStates, stage: int, seed: int) -> float:
    """
    Fit the drift correction of a stage: what is added to a state after the layer of the stage to guess the state
    after the reactivation layer (tuned lens, Belrose et al., arXiv 2303.08112; for pruned tokens ToFe, arXiv
    2507.16260), by least squares.

    Returns:
        `float`: the squared error that is left, by the variance of what is guessed.
    """
    correction, device = model.drift_corrections[stage], model.device
    target_variance = _variance(states.reactivated)

    def loss(rows: np.ndarray, patches: np.ndarray) -> torch.Tensor:
        before, after = (_rows(of, rows, device)[:, patches] for of in (states.stages[stage], states.reactivated))
        return (before + correction(before) - after).square().mean() / target_variance

    return _fit(
        correction, loss, states.reactivated.shape[:2], CORRECTION_STEPS, CORRECTION_BATCH, seed, f"stage {stage}"
    )


def fit_selector(model: Reg4PruForSemanticSegmentation, states: TileStates, stage: int, seed: int) -> float:
    """
    Fit the selector of a stage to the log of the divergence of every token, were it dropped there; the correction of
    the stage must be fitted before.

    Returns:
        `float`: the squared error that is left, by the variance of the log of the divergence.
    """
    selector, device = model.selectors[stage], model.device
    wanted = log_divergences(model, states, stage)
    variance = float(wanted.var())

    def loss(rows: np.ndarray, patches: np.ndarray) -> torch.Tensor:
        scores = selector(_rows(states.stages[stage], rows, device)[:, patches])
        return F.mse_loss(scores, _rows(wanted, rows, device)[:, patches]) / variance

    return _fit(selector, loss, wanted.shape, SELECTOR_STEPS, SELECTOR_BATCH, seed, f"stage {stage}")


@torch.inference_mode()
def log_divergences(model: Reg4PruForSemanticSegmentation, states: TileStates, stage: int) -> np.ndarray:
    """The log of the divergence at every patch of all tiles, `(num_tiles, num_patches)`, `float32`."""
    found = []
    for rows in np.array_split(np.arange(states.num_tiles), max(1, states.num_tiles // 4)):
        before, after, queries = (
            _rows(of, rows, model.device) for of in (states.stages[stage], states.reactivated, states.queries)
        )
        guess = before + model.drift_corrections[stage](before)
        found.append(log_divergence(model, guess, after, queries, states.grid_size).cpu().numpy())
    return np.concatenate(found)


def _rows(of: np.ndarray, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(of[rows]).to(device)


def _variance(states: np.ndarray) -> float:
    """Mean over channels of the variance over tokens, from a sample of the tiles."""
    return float(states[: 1 << 6].reshape(-1, states.shape[-1]).var(axis=0).mean())


@torch.enable_grad()
def _fit(
    module: nn.Module,
    loss_of: Callable[[np.ndarray, np.ndarray], torch.Tensor],
    shape: tuple[int, int],
    num_steps: int,
    batch_size: int,
    seed: int,
    name: str,
) -> float:
    """Adam with a cosine schedule, on `(num_tiles, num_patches)`; the mean loss of the last tenth of the steps."""
    module.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    draws, losses = _draw(shape, batch_size, seed), []
    bar = tqdm(range(num_steps), desc=f"{type(module).__name__}, {name}", unit="step")
    for _ in bar:
        loss = loss_of(*next(draws))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(error=f"{losses[-1]:.3f}")
    module.eval()
    return float(np.mean(losses[-max(1, num_steps // 10) :]))


def _draw(shape: tuple[int, int], batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of an endless series of shuffled passes over the tiles, and for each the patches to look at."""
    (num_tiles, num_patches), generator = shape, np.random.default_rng(seed)
    size = min(num_patches, max(FEWEST_PATCHES, num_patches // 3))
    left = np.zeros(0, dtype=np.int64)
    while True:
        while len(left) < batch_size:
            left = np.concatenate([left, generator.permutation(num_tiles)])
        # Sorted: files are read forwards.
        yield np.sort(left[:batch_size]), np.sort(generator.choice(num_patches, size, replace=False))
        left = left[batch_size:]
