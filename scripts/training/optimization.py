"""AdamW with layer-wise decay, separate warm-ups of head and backbone, and an average of the weights."""

import logging
import re
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from modeling_reg4pru.backbone_loading import PRUNING_WEIGHTS

from .arguments import OptimizerArguments

logger = logging.getLogger(__name__)


def parameter_groups(
    model: torch.nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float,
    selector_learning_rate: float | None = None,
) -> list[dict]:
    """
    Parameter groups of AdamW: the learning rate falls by `layer_decay` with every layer down (BEiT, arXiv 2106.08254;
    EoMT, arXiv 2503.19108), and only matrices decay. Selectors and drift corrections may have a learning rate of their
    own: those that learn where the foreground is, or how states drift, are a task apart, which a short training at the
    rate of the rest leaves half learned.

    Returns:
        `list[dict]`: groups with `params`, `lr`, `weight_decay` and `is_backbone`.
    """
    depth = model.config.num_hidden_layers
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        layer = re.match(r"layers\.(\d+)\.", name)
        is_backbone = layer is not None or name.startswith(("embeddings.", "layernorm."))
        level = int(layer[1]) + 1 if layer else 0 if name.startswith("embeddings.") else depth + 1
        decays = weight_decay if parameter.ndim > 1 else 0.0
        rate = learning_rate * layer_decay ** (depth + 1 - level)
        if name.startswith(PRUNING_WEIGHTS) and selector_learning_rate is not None:
            rate = selector_learning_rate
        group = groups.setdefault(
            (level, rate, is_backbone, decays),
            {
                "params": [],
                "lr": rate,
                "weight_decay": decays,
                "is_backbone": is_backbone,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def learning_rate_factor(
    step: int, *, is_backbone: bool, head_warmup: int, backbone_warmup: int, total: int, power: float
) -> float:
    """
    Two-stage warm-up and polynomial decay, as EoMT trains: the new parameters warm up first, while the backbone waits;
    then the backbone warms up.
    """
    start, length = (head_warmup, backbone_warmup) if is_backbone else (0, head_warmup)
    if step < start:
        return 0.0
    if step < start + length:
        return (step + 1 - start) / length
    warm = start + length
    return max(0.0, 1 - (step - warm) / max(1, total - warm)) ** power


def fit_warmups(head_warmup: int, backbone_warmup: int, total_steps: int) -> tuple[int, int]:
    """
    The warm-ups of a run. Where both together are longer than it, the backbone would learn little or nothing: they
    are shortened to its first half, in their proportion.
    """
    asked = head_warmup + backbone_warmup
    if asked <= total_steps:
        return head_warmup, backbone_warmup
    return head_warmup * total_steps // (2 * asked), backbone_warmup * total_steps // (2 * asked)


def make_optimizer(
    model: torch.nn.Module,
    arguments: OptimizerArguments,
    *,
    learning_rate: float,
    weight_decay: float,
    total_steps: int,
    **adamw: object,
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """
    AdamW over [`parameter_groups`] and its schedule, one step of which belongs to one step of the optimiser; `adamw`
    are other arguments of AdamW. A warning says where warm-ups are shortened ([`fit_warmups`]).
    """
    groups = parameter_groups(
        model, learning_rate, weight_decay, arguments.layer_decay, arguments.selector_learning_rate
    )
    asked = arguments.head_warmup_steps, arguments.backbone_warmup_steps
    head_warmup, backbone_warmup = fit_warmups(*asked, total_steps)
    if (head_warmup, backbone_warmup) != asked:
        logger.warning(
            "Warm-ups of %d (--head_warmup_steps) and %d (--backbone_warmup_steps) steps do not fit into a run of %d "
            "steps: shortened to %d and %d.",
            *(*asked, total_steps, head_warmup, backbone_warmup),
        )
    factors = [
        partial(
            learning_rate_factor,
            is_backbone=group["is_backbone"],
            head_warmup=head_warmup,
            backbone_warmup=backbone_warmup,
            total=total_steps,
            power=arguments.poly_power,
        )
        for group in groups
    ]
    # As Trainer has it by default: one kernel for a step, several times as fast on a CPU.
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True, **adamw)
    return optimizer, LambdaLR(optimizer, factors)


def make_average(model: torch.nn.Module, decay: float) -> AveragedModel:
    """
    Exponential moving average of the weights. The decay grows as (1 + n) / (10 + n) up to its value, so that the
    weights of the first steps are forgotten in short runs, too.
    """

    @torch.no_grad()
    def move(averages: list[torch.Tensor], weights: list[torch.Tensor], num_averaged: torch.Tensor | int) -> None:
        updates = int(num_averaged)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + updates) / (10 + updates)))

    return AveragedModel(model, multi_avg_fn=move)
