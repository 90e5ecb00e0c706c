"""Which tokens stay: keep counts, selectors, the straight-through policy, and the losses of the selectors."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .distributed import draw_for_images, mean_over_processes

# What class 0 is called where it is no class of its own.
BACKGROUND_NAMES = ("background", "unlabeled", "unlabelled", "void")
# Where scores of divergence begin, keep less drop: in the middle of the logarithms of 1e-6 and 1. From 0 the error
# would be so large that gradients, which are clipped, left little to all other weights.
INITIAL_BIAS = (-7.0, 0.0)


def cumulative_keep_rates(keep_rates: tuple[float, ...]) -> tuple[float, ...]:
    """R_j = r_1 * ... * r_j: the fraction of all patch tokens that is left after each stage."""
    cumulative, product = [], 1.0
    for rate in keep_rates:
        product *= rate
        cumulative.append(product)
    return tuple(cumulative)


def warmup_keep_rates(keep_rates: tuple[float, ...], progress: float) -> tuple[float, ...]:
    """
    Keep-rate warm-up: the cumulative rates go linearly from 1 to R_j.

    Args:
        keep_rates (`tuple[float, ...]`): Target keep rate of every stage, relative to the stage before.
        progress (`float`): Fraction of the warm-up that has passed; 1 and more give the target itself.

    Returns:
        `tuple[float, ...]`: keep rate of every stage, again relative.
    """
    if progress >= 1:
        return tuple(keep_rates)
    rates, previous = [], 1.0
    for target in cumulative_keep_rates(keep_rates):
        cumulative = 1 + (target - 1) * progress
        rates.append(cumulative / previous)
        previous = cumulative
    return tuple(rates)


def keep_count(rate: float, num_patches: int, num_special_tokens: int, token_multiple: int) -> int:
    """
    Number of patch tokens that go on: the fraction `rate` of them, rounded such that they and the special tokens
    (prefix, and queries where they are in the sequence) are a multiple of `token_multiple` together (the nearest one
    that keeps at least one token). All of them where the rate is 1 or where rounding leaves nothing to prune.
    """
    if rate >= 1:
        return num_patches
    total = num_special_tokens + rate * num_patches
    fewest = (num_special_tokens // token_multiple + 1) * token_multiple
    rounded = max(fewest, round(total / token_multiple) * token_multiple)
    return min(rounded - num_special_tokens, num_patches)


def stage_counts(config: PreTrainedConfig, keep_rates: tuple[float, ...], num_patches: int) -> list[int]:
    """
    Number of patch tokens after every pruning stage. Rounding counts the query tokens in where most of the layers that
    run on a stage's tokens have them; in the other layers their number is off the multiple by that of the queries. It
    counts context tokens in, too.

    Args:
        config ([`Reg4PruConfig`]): Stages, and where the queries enter.
        keep_rates (`tuple[float, ...]`): Relative keep rate of every stage.
        num_patches (`int`): Patches of the image.
    """
    counts: list[int] = []
    ends = (*config.pruning_layers[1:], config.reactivation_layer)
    cumulative = cumulative_keep_rates(keep_rates)
    for stage, (layer, end) in enumerate(zip(config.pruning_layers, ends, strict=False)):
        before = counts[-1] if counts else num_patches
        special = special_tokens(config, layer, end) + config.context_grid**2
        count = keep_count(cumulative[stage], num_patches, special, config.token_multiple)
        counts.append(before if keep_rates[stage] >= 1 else min(count, before))
    return counts


def special_tokens(config: PreTrainedConfig, start: int, end: int) -> int:
    """Prefix tokens, and query tokens if they are in the sequence in most of the layers start + 1 .. end."""
    with_queries = end - max(start, config.first_query_layer - 1)
    return config.num_prefix_tokens + (config.num_queries if 2 * with_queries > end - start else 0)


class TokenSelector(nn.Module):
    """
    Scores patch tokens. A selector is one class, entered in [`SELECTOR_CLASSES`]: its scores, what it learns from, and
    what it costs.

    Attributes:
        learns_from (`str` or `None`): `"policy"`: keep decisions, drawn by `sample`, which the task loss and the
            budget loss reach; `"foreground"`: where the labels are not background, by [`foreground_loss`];
            `"divergence"`: what dropping a token would change, by
            [`~modeling_reg4pru.divergence.divergence_loss`], from a dense pass; `None`: nothing.
        scores_output (`bool`): Whether it scores what the layer of its stage returns, not what the layer is given. A
            policy gates attention in that layer, so what learns through one cannot.
    """

    learns_from: str | None = None
    scores_output = False

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States `(batch, num_tokens, hidden_size)` to scores `(batch, num_tokens)`; higher = keep."""
        raise NotImplementedError

    @staticmethod
    def flops_per_token(hidden_size: int) -> int:
        """Floating-point operations of a score, two a multiply-add."""
        return 0


class MlpSelector(TokenSelector):
    """The selector of DynamicViT (arXiv 2106.02034), which learns through the policy; channel 0 = keep."""

    learns_from = "policy"

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        width = config.hidden_size
        self.temperature = config.selector_temperature
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width // 4)
        self.fc3 = nn.Linear(width // 4, 2)
        self.activation = ACT2FN["gelu"]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of (keep, drop), shape `(batch, num_tokens, 2)`."""
        hidden = self.activation(self.fc1(self.norm(states)))
        return self.fc3(self.activation(self.fc2(hidden)))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        keep, drop = self.logits(states).unbind(-1)
        return keep - drop

    def sample(self, states: torch.Tensor) -> torch.Tensor:
        """
        One Gumbel draw, for training.

        Returns:
            `torch.Tensor` of shape `(batch, num_tokens)`: probability to keep, in float32.
        """
        logits = self.logits(states).float()  # Gumbel noise spans more than half precision can hold

        def draw(num_images: int) -> torch.Tensor:
            return logits.new_empty(num_images, *logits.shape[1:]).exponential_()

        gumbel = -draw_for_images(draw, len(logits)).log()
        return ((logits + gumbel) / self.temperature).softmax(-1)[..., 0]

    @staticmethod
    def flops_per_token(hidden_size: int) -> int:
        return 2 * (hidden_size**2 + hidden_size * (hidden_size // 4) + 2 * (hidden_size // 4))


class ForegroundMlpSelector(MlpSelector):
    """
    The layers of DynamicViT's selector, which learn as CROPR's does (arXiv 2412.00965): they score the output of the
    stage's layer, on detached features, and the scores are logits of where the foreground is.
    """

    learns_from = "foreground"
    scores_output = True

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states.detach())


class CentredLinear(nn.Linear):
    """A linear layer with [`INITIAL_BIAS`]; a class of its own, as `_init_weights` goes by class."""


class DivergenceSelector(MlpSelector):
    """
    The layers of DynamicViT's selector, whose scores guess the log of the divergence of a token that is dropped now
    ([`~modeling_reg4pru.divergence.log_divergence`]): what would be predicted wrongly stays. They see the output of
    the stage's layer, detached.
    """

    learns_from = "divergence"
    scores_output = True

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.fc3 = CentredLinear(self.fc3.in_features, 2)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states.detach())


class LearnedQuerySelector(TokenSelector):
    """
    The scorer of CROPR (arXiv 2412.00965, CVPR 2025): similarity to a learned query, on detached features, so that it
    learns only from [`foreground_loss`] and sends no gradient to the backbone. A sum of queries acts as one, hence a
    single vector.

    Modifications: CROPR scores the output of the stage's block as it is; here the input of layer s_j is scored, after
    a LayerNorm.
    """

    learns_from = "foreground"

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = nn.Linear(config.hidden_size, 1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.query(self.norm(states.detach())).squeeze(-1)

    @staticmethod
    def flops_per_token(hidden_size: int) -> int:
        return 2 * hidden_size


class DivergenceQuerySelector(LearnedQuerySelector):
    """The learned query of CROPR where there is no foreground: it learns what [`DivergenceSelector`] learns."""

    learns_from = "divergence"
    scores_output = True

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states) + INITIAL_BIAS[0]


class RandomSelector(TokenSelector):
    """Uniform scores: the control, without parameters."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        images, tokens = states.shape[:2]
        if not self.training:  # processes that predict share no batch
            return torch.rand(images, tokens, device=states.device)
        return draw_for_images(lambda count: torch.rand(count, tokens, device=states.device), images)


SELECTOR_CLASSES = {
    "mlp": MlpSelector,
    "foreground_mlp": ForegroundMlpSelector,
    "divergence": DivergenceSelector,
    "learned_query": LearnedQuerySelector,
    "divergence_query": DivergenceQuerySelector,
    "random": RandomSelector,
}


def straight_through(probability: torch.Tensor, keeps: torch.Tensor) -> torch.Tensor:
    """The policy: the decisions `keeps` (`bool`) in the forward pass, the probability in the backward pass."""
    return keeps.to(probability.dtype) - probability.detach() + probability


def select_tokens(scores: torch.Tensor, count: int, pool_ids: torch.Tensor | None) -> torch.Tensor:
    """
    Ids of the `count` tokens with the highest scores. They are not sorted: attention does not mind the order.

    Args:
        scores (`torch.Tensor` of shape `(batch, pool_size)`): Higher = keep.
        count (`int`): How many to keep.
        pool_ids (`torch.Tensor` of shape `(batch, pool_size)`, *optional*): Grid ids of the pool; `None`: grid order.

    Returns:
        `torch.Tensor` of shape `(batch, count)`: ids in the grid.
    """
    chosen = scores.topk(count, dim=1, sorted=False).indices
    return chosen if pool_ids is None else pool_ids.gather(1, chosen)


def budget_loss(policy: torch.Tensor, num_patches: int, cumulative_rate: float) -> torch.Tensor:
    """
    Squared error between the realised and the wanted keep fraction, per image, then averaged.

    Args:
        policy (`torch.Tensor` of shape `(batch, pool_size)`): Keep decisions of the pool; tokens outside count as 0.
        num_patches (`int`): Number of patch tokens of the grid.
        cumulative_rate (`float`): The wanted fraction R_j of them.
    """
    return (policy.sum(dim=1) / num_patches - cumulative_rate).square().mean()


def foreground_loss(scores: torch.Tensor, foreground: torch.Tensor) -> torch.Tensor:
    """
    Class-balanced binary cross entropy between the scores and where the foreground is (CROPR's auxiliary task): half
    of the weight goes to the patches with foreground, half to those without.

    Args:
        scores (`torch.Tensor` of shape `(batch, num_tokens)`): Scores as logits.
        foreground (`torch.Tensor` of shape `(batch, num_tokens)`): 1 where a patch holds any foreground pixel, else 0.
    """
    foreground = foreground.to(scores.dtype)
    positives = mean_over_processes(foreground.sum())
    negatives = foreground.numel() - positives
    weight = foreground / positives.clamp_min(1) + (1 - foreground) / negatives.clamp_min(1)
    return (F.binary_cross_entropy_with_logits(scores, foreground, reduction="none") * weight).sum() / 2


def patch_foreground(labels: torch.Tensor, patch_size: int, ignore_index: int) -> torch.Tensor:
    """
    Labels max-pooled to the patches: 1 where a patch holds any pixel that is neither background (0) nor ignored. It
    is for data whose class 0 is background ([`Reg4PruConfig.has_background`]).

    Args:
        labels (`torch.Tensor` of shape `(batch, height, width)`): Class of every pixel.

    Returns:
        `torch.Tensor` of shape `(batch, num_patches)`, float.
    """
    foreground = ((labels != 0) & (labels != ignore_index)).float()
    return F.max_pool2d(foreground[:, None], patch_size).flatten(1)
