"""Divergence: how wrongly a token would be predicted if it were dropped now. Needs neither labels nor a background."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .distributed import mean_over_processes
from .segmentation_head import semantic_logits
from .token_bank import gather_tokens

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


def divergence_loss(
    model: nn.Module,
    selector_scores: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    hidden_states: Sequence[torch.Tensor],
    grid_size: tuple[int, int],
) -> torch.Tensor:
    r"""
    What selectors that learn from divergence lose by, in a training with a dense pass beside the pruned one. The
    selector of stage $j$, at layer $s_j$, gives token $n$ of its pool the score $a_{jn}$. Of the dense pass, let
    $x_j$ be the states after layer $s_j$, $y$ those after the reactivation layer, $q$ the queries after the last
    layer, $p(q, \cdot)$ the class probabilities that the heads read, and $c_j$ the drift correction of the stage:

    $$t_{jn} = \log\left(\varepsilon + \mathrm{KL}\left(p(q, y) \,\|\, p(q, x_j + c_j(x_j))\right)_n\right),
    \qquad \frac{1}{J} \sum_j \frac{\mathrm{mean}_n (a_{jn} - t_{jn})^2}{\max(1, \mathrm{var}_n\, t_{jn})}$$

    The variance, of the batch of all processes, makes the loss about 1 for a selector that knows no more than the
    mean; where all divergences are alike there is little to tell apart. Only the selectors get a gradient.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): Its heads and drift corrections, not wrapped.
        selector_scores (`Sequence[tuple]`): Of the pruned pass; see [`Reg4PruSemanticSegmenterOutput`].
        hidden_states (`Sequence[torch.Tensor]`): Of the dense pass, the embeddings first.
        grid_size (`tuple[int, int]`): Rows and columns of patches.
    """
    config, num_patches = model.config, grid_size[0] * grid_size[1]
    queries = hidden_states[config.num_hidden_layers][:, : config.num_queries].detach()
    dense = hidden_states[config.reactivation_layer + 1][:, -num_patches:].detach()
    losses = []
    for stage, (scores, pool_ids) in enumerate(selector_scores):
        states = hidden_states[config.pruning_layers[stage] + 1][:, -num_patches:].detach()
        with torch.no_grad():
            guessed = states + model.drift_corrections[stage](states)
        wanted = log_divergence(model, guessed, dense, queries, grid_size)
        variance = mean_over_processes((wanted - mean_over_processes(wanted.mean())).square().mean())
        errors = scores.float() - gather_tokens(wanted[..., None], pool_ids).squeeze(-1)
        losses.append(errors.square().mean() / variance.clamp_min(1.0))
    return torch.stack(losses).mean()
