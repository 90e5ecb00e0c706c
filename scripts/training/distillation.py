"""In-place distillation: one step runs dense and pruned, and the pruned pass learns what the dense one predicts."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel

from modeling_reg4pru import Reg4PruConfig
from modeling_reg4pru.distributed import mean_over_processes
from modeling_reg4pru.divergence import divergence_loss
from modeling_reg4pru.token_selectors import SELECTOR_CLASSES

# Of the pruned pass: what selectors learn from there.
OWN_LOSSES = ("loss_budget", "loss_selector")


def check_distillation(config: Reg4PruConfig, distillation: bool) -> None:
    """
    Args:
        config ([`Reg4PruConfig`]): Of the model that is trained.
        distillation (`bool`): Whether it is distilled.

    Raises:
        `ValueError`: if it is, and training does not prune, so that a dense pass would learn from itself; or if it is
            not, and selectors learn from a dense pass.
    """
    if not distillation:
        if config.selectors_learn and SELECTOR_CLASSES[config.selector].learns_from == "divergence":
            raise ValueError(
                f"`selector={config.selector!r}` without `distillation`: it learns from the dense pass of in-place "
                "distillation. Add --distillation, or set another selector."
            )
        return
    if config.train_pruning == "none" and not config.routing:
        raise ValueError(
            "`distillation` with `train_pruning='none'` and `routing=False`: no pass differs from the dense one. "
            "Set `train_pruning` to 'hard' or 'soft', or `routing`."
        )


def distilled_loss(
    model: torch.nn.Module,
    config: Reg4PruConfig,
    batch: dict[str, torch.Tensor],
    keep_rates: tuple[float, ...] | str = "config",
    *,
    dense_pass: AbstractContextManager | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    The loss of a dense and a pruned pass through the same weights, for one backward pass.

    The dense pass learns from the labels. Its prediction, detached, is what the pruned pass learns at every pixel, as
    the widest network of a slimmable one teaches the others (Yu and Huang, arXiv 1903.05134, Sec. 3.3); only selectors
    still learn from labels there, or from the divergence of the two passes. Where the configuration routes, the pruned
    pass does.

    Args:
        model (`torch.nn.Module`): In training mode; may be wrapped for several processes.
        config ([`Reg4PruConfig`]): Its configuration.
        batch (`dict`): `pixel_values` and `labels`.
        keep_rates (`tuple[float, ...]`, *optional*, defaults to `"config"`): Of the pruned pass; `"config"`: those of
            the configuration.
        dense_pass (`AbstractContextManager`, *optional*): Entered for the dense pass. `DistributedDataParallel`
            expects one forward pass for every backward pass: give its `no_sync()`.

    Returns:
        `tuple`: the loss, and its parts by name: those of the dense pass, those of selectors and drift
        corrections, and `loss_distillation`.
    """
    with dense_pass or nullcontext():
        dense = model(**batch, keep_rates=None, output_hidden_states=config.drift_correction)
    learns_from = SELECTOR_CLASSES[config.selector].learns_from
    # Where no selector learns from labels there, to match the masks with them would be for nothing.
    pruned_batch = batch if learns_from in ("policy", "foreground") else {"pixel_values": batch["pixel_values"]}
    pruned = model(**pruned_batch, keep_rates=keep_rates)
    own = {name: part for name, part in (pruned.loss_parts or {}).items() if name in OWN_LOSSES}
    if pruned.selector_scores is not None:
        grid_size = tuple(side // config.patch_size for side in batch["pixel_values"].shape[-2:])
        bare = extract_model_from_parallel(model)
        loss = divergence_loss(bare, pruned.selector_scores, dense.hidden_states, grid_size)
        own["loss_selector"] = config.selector_loss_weight * loss
    if pruned.reactivated is not None:
        own["loss_drift"] = drift_loss(*pruned.reactivated, dense.hidden_states[config.reactivation_layer + 1])
    weight = config.mask_weight
    parts = {
        **dense.loss_parts,
        **own,
        "loss_distillation": weight * prediction_divergence(pruned.logits, dense.logits),
    }
    return sum(parts.values()), parts


def drift_loss(reactivated: torch.Tensor, pruned: torch.Tensor, dense_states: torch.Tensor) -> torch.Tensor:
    """
    What is left of the drift of the tokens that pruning has removed: the squared error of what they come back with, by
    the variance of the states that they should have, in the batch of all processes.

    Args:
        reactivated (`torch.Tensor` of shape `(batch, num_patches, hidden_size)`): What pruned tokens come back with.
        pruned (`torch.Tensor` of shape `(batch, num_patches)`, `bool`): Where these tokens are.
        dense_states (`torch.Tensor` of shape `(batch, num_tokens, hidden_size)`): After the reactivation layer in a
            pass that removes nothing; the patch tokens are its last ones.
    """
    target = dense_states[:, -reactivated.shape[1] :].detach().float()
    errors = (reactivated - target).square().mean(-1)
    away = pruned.to(errors.dtype)
    centre = mean_over_processes(target.mean((0, 1)))
    variance = mean_over_processes((target - centre).square().mean())
    return (errors * away).sum() / (away.sum() * variance).clamp_min(torch.finfo(torch.float32).tiny)


def prediction_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    Kullback-Leibler divergence of two predictions, mean over the pixels; the teacher gets no gradient.

    Args:
        student, teacher (`torch.Tensor` of shape `(batch, num_labels, height, width)`): Logits.
    """
    student, teacher = student.float().log_softmax(1), teacher.detach().float().log_softmax(1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1).mean()
