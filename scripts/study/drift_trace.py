"""
Drift of preserved representations: the last state of a pruned token compared, after each layer, with the state that
it would have if nothing had been pruned.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.segmentation_head import semantic_logits


class GridTrace(NamedTuple):
    """
    The full grid after every layer of one forward pass.

    Args:
        states (`torch.Tensor` of shape `(num_layers, batch, num_patches, hidden_size)`): The last state of every
            token: fresh if it ran through the layer, preserved otherwise.
        active (`torch.Tensor` of shape `(num_layers, batch, num_patches)`, `bool`): Whether it ran.
        logits (`torch.Tensor` of shape `(num_layers, batch, num_labels, height, width)`): What the heads decode from
            the grid after each layer; before the queries are inserted, with their initial states.
    """

    states: torch.Tensor
    active: torch.Tensor
    logits: torch.Tensor


class Drift(NamedTuple):
    """
    Mean cosine similarity to the unpruned states after each layer; nan where there is no such token.

    Args:
        pruned (`torch.Tensor` of shape `(num_layers,)`): Of the tokens that have missed a layer so far; after the
            reactivation layer they run again.
        kept (`torch.Tensor` of shape `(num_layers,)`): Of the tokens that have run through every layer so far.
    """

    pruned: torch.Tensor
    kept: torch.Tensor


@torch.inference_mode()
def trace_grid(
    model: Reg4PruForSemanticSegmentation, pixel_values: torch.Tensor, keep_rates: float | list[float] | str | None
) -> GridTrace:
    """
    Run the model in evaluation mode and record the grid after every layer.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): The model. Its training mode is left as it was.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Images.
        keep_rates (`float`, `list[float]`, `None` or `"config"`): As in the model's forward.
    """
    config, patch_size = model.config, model.config.patch_size
    grid_size = (pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size)
    outputs_of_layers = []
    was_training = model.training
    model.eval()
    handles = [
        layer.register_forward_hook(lambda _, __, output: outputs_of_layers.append(output)) for layer in model.layers
    ]
    try:
        token_ids = model(pixel_values, keep_rates=keep_rates, output_token_ids=True).token_ids
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)

    grid = torch.empty(0)
    states, active, logits = [], [], []
    for index, (ids, output) in enumerate(zip(token_ids, outputs_of_layers, strict=True)):
        num_queries = config.num_queries if index >= config.first_query_layer else 0
        patches = output[:, -ids.shape[1] :]
        grid = patches if index == 0 else grid.scatter(1, ids[..., None].expand_as(patches), patches)
        runs = torch.zeros(grid.shape[:2], dtype=torch.bool, device=grid.device)
        runs = runs.scatter(1, ids, torch.ones_like(ids, dtype=torch.bool))
        queries = output[:, :num_queries] if num_queries else model.query.weight[None].expand(len(output), -1, -1)
        states.append(grid)
        active.append(runs)
        logits.append(semantic_logits(*model.predict(queries, grid, grid_size)))
    return GridTrace(torch.stack(states), torch.stack(active), torch.stack(logits))


def measure_drift(pruned: GridTrace, unpruned: GridTrace) -> Drift:
    """
    Compare two traces of the same images.

    Raises:
        `ValueError`: if they differ in shape, or tokens are missing in the unpruned one.
    """
    if pruned.states.shape != unpruned.states.shape:
        raise ValueError(f"The traces have shapes {tuple(pruned.states.shape)} and {tuple(unpruned.states.shape)}.")
    if not unpruned.active.all():
        raise ValueError("The second trace is pruned as well: record it at keep rate 1.0.")
    similarity = F.cosine_similarity(pruned.states, unpruned.states, dim=-1)  # (num_layers, batch, num_patches)
    missed = (~pruned.active).cumsum(dim=0) > 0
    return Drift(_masked_mean(similarity, missed), _masked_mean(similarity, ~missed))


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the images and tokens where the mask is true; nan if there are none."""
    return (values * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))
