"""Output of Reg4Pru models."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import SemanticSegmenterOutput


@dataclass
class Reg4PruSemanticSegmenterOutput(SemanticSegmenterOutput):
    """
    Output of [`Reg4PruForSemanticSegmentation`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): Sum of `loss_parts`; given with `labels`.
        logits (`torch.Tensor` of shape `(batch, num_labels, map_height, map_width)`): Class scores of every pixel.
            The map has 2^`num_upscale_blocks` values a side of each patch: height / 4 with patches of 16. With a
            single vessel query the scores are [0, m]: softmax gives sigmoid(m), argmax thresholds it at 1/2. With
            many queries they are the logarithm of EoMT's semantic scores, the sum over the queries of class
            probability times mask probability.
        loss_parts (`dict[str, torch.Tensor]`, *optional*): Every part of the loss, weighted.
        budget_loss (`torch.Tensor` of shape `()`, *optional*): Mean budget loss over the stages, unweighted; only in
            training with a policy.
        token_counts (`torch.Tensor` of shape `(num_layers,)`): Number of tokens that each layer ran on, prefix and
            query tokens included; a tensor, as `nn.DataParallel` gathers nothing else (device after device).
        token_ids (`tuple`, *optional*): For every layer the ids of the patch tokens that it ran on, `(batch,
            num_active)`; with `output_token_ids=True`.
        keep_masks (`torch.Tensor` of shape `(batch, num_stages, height / patch, width / patch)`, *optional*): True
            where a patch token is active after the stage; with `output_keep_masks=True`.
        masks_queries_logits (`torch.Tensor` of shape `(batch, num_queries, map_height, map_width)`): Mask logits.
        class_queries_logits (`torch.Tensor` of shape `(batch, num_queries, num_labels + 1)`, *optional*): Class
            logits; absent in the single-query binary case.
        patch_offsets (`torch.Tensor` of shape `(batch, 9)`, *optional*): As given to the model.
        pixel_mask (`torch.Tensor` of shape `(batch, height, width)`, *optional*): As given to the model.
        reactivated (`tuple(torch.Tensor)`, *optional*): What pruned tokens come back with, in the grid `(batch,
            num_patches, hidden_size)`, and where these tokens are, `(batch, num_patches)`; only in training with
            drift corrections, which learn from it by distillation.
        selector_scores (`tuple`, *optional*): Of every stage the scores of its pool, `(batch, pool_size)`, and the ids
            of these tokens, `None` for all; only in training with selectors that learn from divergence, by
            distillation.
    """

    loss_parts: dict[str, torch.Tensor] | None = None
    budget_loss: torch.Tensor | None = None
    token_counts: torch.Tensor | None = None
    token_ids: tuple[torch.Tensor, ...] | None = None
    keep_masks: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    class_queries_logits: torch.Tensor | None = None
    patch_offsets: torch.Tensor | None = None
    pixel_mask: torch.Tensor | None = None
    reactivated: tuple[torch.Tensor, torch.Tensor] | None = None
    selector_scores: tuple[tuple[torch.Tensor, torch.Tensor | None], ...] | None = None
