"""Checks of what a forward pass is given: images, labels, and a configuration that was changed later."""

from collections.abc import Sequence

import torch
from transformers import logging

from .configuration_reg4pru import Reg4PruConfig
from .token_selectors import SELECTOR_CLASSES

logger = logging.get_logger(__name__)


def check_inputs(
    config: Reg4PruConfig,
    pixel_values: torch.Tensor,
    labels: torch.Tensor | None,
) -> tuple[int, int]:
    """
    Refuse input of a wrong shape or with labels that no class has.

    Args:
        config (`Reg4PruConfig`): Of the model.
        pixel_values (`torch.Tensor`): What was given as images.
        labels (`torch.Tensor`, *optional*): What was given as their label maps.

    Returns:
        `tuple[int, int]`: rows and columns of patches.

    Raises:
        `ValueError`: naming what is wrong, and what is allowed.
    """
    if torch.jit.is_tracing():
        raise ValueError("`torch.jit.trace` cannot hold what pruning decides: use `torch.export` or `reg4pru export`.")
    patch_size, channels = config.patch_size, config.num_channels
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        raise ValueError(
            f"`pixel_values` has shape {tuple(pixel_values.shape)}: it must be (batch, {channels}, height, width)."
        )
    height, width = pixel_values.shape[-2:]
    if height % patch_size or width % patch_size:
        padded = tuple(-(-side // patch_size) * patch_size for side in (height, width))
        raise ValueError(
            f"`pixel_values` is {height} x {width}, but both sides must be multiples of the patch size "
            f"{patch_size}: resize or pad to {padded[0]} x {padded[1]}."
        )
    if labels is not None and labels.shape != (pixel_values.shape[0], height, width):
        raise ValueError(
            f"`labels` has shape {tuple(labels.shape)}: it must be {(pixel_values.shape[0], height, width)}, a "
            "class for every pixel of `pixel_values`."
        )
    if labels is not None:
        check_labels(labels, config.num_labels, config.semantic_loss_ignore_index)
    return height // patch_size, width // patch_size


def check_pixel_mask(
    pixel_mask: torch.Tensor | None, pixel_values: torch.Tensor, patch_offsets: torch.Tensor | None
) -> None:
    """
    Refuse a mask of pixels that does not fit the images.

    Raises:
        `ValueError`: if it has another shape, or nothing says how the images lie as tiles.
    """
    if pixel_mask is None:
        return
    wanted = (pixel_values.shape[0], *pixel_values.shape[-2:])
    if pixel_mask.shape != wanted:
        raise ValueError(f"`pixel_mask` has shape {tuple(pixel_mask.shape)}: it must be {wanted}, as `pixel_values`.")
    if patch_offsets is None:
        raise ValueError("`pixel_mask` needs `patch_offsets`: give the model both, as the image processor made them.")


def hide_labels(
    labels: torch.Tensor | None, pixel_mask: torch.Tensor | None, ignore_index: int
) -> torch.Tensor | None:
    """Labels `(batch, height, width)` that do not count where the images show nothing."""
    if labels is None or pixel_mask is None:
        return labels
    return labels.masked_fill(~pixel_mask.to(labels.device).bool(), ignore_index)


def check_labels(labels: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """
    Refuse labels that no class has. On a GPU, and where a graph is compiled, the device checks by itself: nothing
    waits for it, and the error comes a little later.

    Args:
        labels (`torch.Tensor` of shape `(batch, height, width)`): Class of every pixel.
        num_labels (`int`): Number of classes.
        ignore_index (`int`): The value of pixels that do not count.

    Raises:
        `ValueError`: with the values seen, if one is neither a class nor the ignore index.
    """
    known = ((labels >= 0) & (labels < num_labels)) | (labels == ignore_index)
    allowed = f"0 to {num_labels - 1}, or {ignore_index} (`semantic_loss_ignore_index`) for pixels that do not count"
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(known.all(), f"`labels` holds other values than {allowed}")
    elif not known.all():
        seen = labels[~known].unique().tolist()
        raise ValueError(f"`labels` holds {', '.join(map(str, seen[:8]))}: allowed are {allowed}.")


def warn_of_untaught_selectors(config: Reg4PruConfig, keep_rates: float | Sequence[float] | None) -> None:
    """
    Say, once, that selectors learn nothing in a training step with labels that prunes: where they learn divergence
    only a dense pass beside it teaches them, and that step has no labels.

    Args:
        config (`Reg4PruConfig`): As it is now.
        keep_rates (`float`, sequence of `float` or `None`): Of the step.
    """
    learns = config.selectors_learn and SELECTOR_CLASSES[config.selector].learns_from == "divergence"
    if learns and keep_rates is not None and not torch.compiler.is_compiling():
        logger.warning_once(
            f"`selector={config.selector!r}` learns nothing from labels: without in-place distillation it stays as it "
            "is. Train with `reg4pru train` or `reg4pru finetune` and --distillation, or with their Reg4PruTrainer."
        )


def check_selectors(config: Reg4PruConfig, selectors_learn: bool) -> None:
    """
    Refuse to train with selectors that were made for another training: they would stay as they are, unnoticed, or
    leave other processes waiting for gradients that never come.

    Args:
        config (`Reg4PruConfig`): As it is now.
        selectors_learn (`bool`): Whether the selectors were made to learn.

    Raises:
        `ValueError`: if the configuration wants the opposite, or a selector that could not learn.
    """
    if config.selector == "divergence" and config.train_pruning != "none" and not config.drift_correction:
        raise ValueError(
            "`selector='divergence'` learns how wrong the guess of a drift correction is: set `drift_correction=True`,"
            " another selector, or `train_pruning='none'`."
        )
    if SELECTOR_CLASSES[config.selector].learns_from == "foreground" and not config.has_background:
        raise ValueError(
            f"`selector={config.selector!r}` learns where the foreground is, but class 0 is {config.id2label[0]!r}, "
            "which it would learn to drop: set `selector='divergence'`, which needs no background, or call class 0 "
            "'background' in `id2label` if that is what it is."
        )
    if config.selectors_learn != selectors_learn:
        raise ValueError(
            f"`train_pruning` is {config.train_pruning!r} and `selector` {config.selector!r}, but the model was made "
            f"with selectors that {'' if selectors_learn else 'do not '}learn: set these fields when the model is "
            "loaded, as in `from_pretrained(..., train_pruning='none')`."
        )
