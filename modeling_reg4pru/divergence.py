"""Divergence: how wrongly a token would be predicted if it were dropped now. Needs neither labels nor a background."""

import torch
import torch.nn.functional as F
from torch import nn

from .segmentation_head import semantic_logits

# Added before the logarithm: what differs by less is equal.
SMALLEST = 1e-6


@torch.no_grad()
def log_divergence(
    model: nn.Module,
    guessed: torch.Tensor,
    dense: torch.Tensor,
    queries: torch.Tensor,
    grid_size: tuple[int, int],
) -> torch.Tensor:
    """
    What a divergence selector learns: the log of the Kullback-Leibler divergence KL(dense ‖ guessed) of the class
    probabilities at a patch, where guessed is read by the heads from the state that a dropped token would come back
    with and dense from the state that it should have, both with the queries of the dense pass.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): Its heads.
        guessed (`torch.Tensor` of shape `(batch, num_patches, hidden_size)`): State after the layer of a stage, plus
            its drift correction.
        dense (`torch.Tensor` of shape `(batch, num_patches, hidden_size)`): State after the reactivation layer in a
            pass that removes nothing.
        queries (`torch.Tensor` of shape `(batch, num_queries, hidden_size)`): After the last layer of that pass.
        grid_size (`tuple[int, int]`): Rows and columns of patches.

    Returns:
        `torch.Tensor` of shape `(batch, num_patches)`: mean over the pixels of a patch, in float32.
    """
    logits = semantic_logits(*model.predict(torch.cat((queries, queries)), torch.cat((guessed, dense)), grid_size))
    student, teacher = logits.float().log_softmax(1).chunk(2)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return (F.adaptive_avg_pool2d(divergence, grid_size).flatten(1).clamp_min(0) + SMALLEST).log()
