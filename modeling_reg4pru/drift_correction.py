"""Drift correction: a guess of what the layers that a pruned token skips would have added to its state."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


class ZeroLinear(nn.Linear):
    """A linear layer that is initialised as zero; a class of its own, as `_init_weights` goes by class."""


class DriftCorrection(nn.Module):
    """
    What is added to the state of a token after the layer of a pruning stage to guess its state after the reactivation
    layer. Most of what a few layers do to a state can be read from it: an affine map goes a long way (Din et al.,
    arXiv 2303.09435; the tuned lens, Belrose et al., arXiv 2303.08112), a small perceptron a little farther. Here it
    stands in for the layers that a pruned token skips, so that those after the reactivation see states like the ones
    they know.

    It is initialised as zero, so that a token comes back as it left, and sends no gradient to the backbone. It sees
    normalised states, as those of DINOv2 have channels of very different size.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.eps = config.layer_norm_eps
        self.fc1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.fc2 = ZeroLinear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN["gelu"]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States `(batch, num_tokens, hidden_size)` to what is added to them, likewise."""
        normed = F.layer_norm(states.detach(), states.shape[-1:], eps=self.eps)
        return self.fc2(self.activation(self.fc1(normed)))

    @staticmethod
    def flops_per_token(hidden_size: int) -> int:
        """Floating-point operations of a guess, two a multiply-add."""
        return 4 * hidden_size**2
