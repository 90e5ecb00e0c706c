"""What the layers that a pruned token misses would have added to its state, guessed from the preserved state."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from .token_routing import TokenBank


class Last(nn.Linear):
    pass


class DriftCorrection(nn.Module):
    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.fc2 = Last(config.hidden_size, config.hidden_size)
        self.eps = config.layer_norm_eps

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(F.layer_norm(states.detach(), states.shape[-1:], eps=self.eps))))


def drift_loss(bank: TokenBank, dense_states: torch.Tensor) -> torch.Tensor:
    """
    What is left of the drift of the tokens that pruning has removed: the squared error of their guesses, by the
    variance of the states that they should be. It reaches only the corrections.

    Args:
        bank (`TokenBank`): The grid, before the reactivation.
        dense_states (`torch.Tensor` of shape `(batch, num_patches, hidden_size)`): States after the reactivation layer
            in a pass that removes nothing.
    """
    target = dense_states.detach().float()
    errors = (bank.states.detach().float() + bank.changes.float() - target).square().mean(-1)
    away = torch.ones_like(errors).scatter(1, bank.kept_ids, 0.0)
    variance = target.var(dim=(0, 1)).mean()
    return (errors * away).sum() / (away.sum() * variance).clamp_min(torch.finfo(torch.float32).tiny)
