"""What the layers that a pruned token misses would have added to its state, guessed from the preserved state."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from .token_routing import TokenBank


class DriftCorrection(nn.Linear):
    """
    What is added to the state of a token after the layer of a pruning stage to guess its state after the reactivation
    layer. Most of what a few layers do to a state is an affine map of it (Din et al., arXiv 2303.09435; the tuned
    lens, Belrose et al., arXiv 2303.08112); here it stands in for the layers that a pruned token misses, so that those
    after the reactivation read states like the ones they know.

    It is linear in the normalised state, as states of DINOv2 have channels of very different size; begins as zero, so
    that a token comes back as it left; and it never bends the backbone, which gets no gradient through it.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config.hidden_size, config.hidden_size)
        self.eps = config.layer_norm_eps

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States `(batch, num_tokens, hidden_size)` to what is added to them, likewise."""
        return super().forward(F.layer_norm(states.detach(), states.shape[-1:], eps=self.eps))

    @staticmethod
    def flops_per_token(hidden_size: int) -> int:
        """Floating-point operations of a guess, two a multiply-add."""
        return 2 * hidden_size**2


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
