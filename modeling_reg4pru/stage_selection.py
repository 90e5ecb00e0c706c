"""What a pruning stage decides in one forward pass, and what its selector learns from that."""

import torch

from .configuration_reg4pru import Reg4PruConfig
from .token_routing import TokenBank, gather_tokens
from .token_selection import (
    budget_loss,
    cumulative_keep_rates,
    foreground_loss,
    keep_count,
    patch_foreground,
    select_tokens,
)


class StageSelection:
    """
    The decisions of all stages in one forward pass.

    At inference every stage removes tokens. In training the three settings are orthogonal: how training prunes
    (`train_pruning`: nothing, a soft policy, or removal), what the selector learns from (the budget loss of its
    policy, or where the foreground is), and routing, which this class knows only through the bank.

    Args:
        config (`Reg4PruConfig`): Configuration.
        keep_rates (`tuple[float, ...]`): Relative keep rate of every stage.
        grid_size (`tuple[int, int]`): Patches of the image, (rows, columns).
        training (`bool`): Whether the model is in training mode.
        pruning (`str`): `"none"`, `"soft"` or `"hard"`: how tokens are pruned in this forward pass.
        labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*): Class of every pixel.

    Attributes:
        policy (`torch.Tensor` of shape `(batch, num_patches)` or `None`): Soft keep decisions that hold now.
        budget_losses, foreground_losses (`list[torch.Tensor]`): One entry a stage that learns.
        keep_masks (`list[torch.Tensor]`): One boolean `(batch, rows, columns)` a stage, True for active tokens.
    """

    def __init__(
        self,
        config: Reg4PruConfig,
        keep_rates: tuple[float, ...],
        grid_size: tuple[int, int],
        training: bool,
        pruning: str,
        labels: torch.Tensor | None,
    ):
        self.grid_size = grid_size
        self.num_patches = grid_size[0] * grid_size[1]
        self.pool = config.selection_pool
        self.cumulative_rates = cumulative_keep_rates(keep_rates)
        self.counts = [
            keep_count(rate, self.num_patches, config.num_prefix_tokens, config.token_multiple)
            for rate in self.cumulative_rates
        ]
        self.pruning = pruning
        self.learns_policy = training and config.selector == "mlp" and pruning != "none"
        self.foreground = None
        if training and labels is not None and config.selector == "learned_query":
            self.foreground = patch_foreground(labels, config.patch_size, config.semantic_loss_ignore_index)

        self.policy: torch.Tensor | None = None
        self.budget_losses: list[torch.Tensor] = []
        self.foreground_losses: list[torch.Tensor] = []
        self.keep_masks: list[torch.Tensor] = []

    def decide(
        self, stage: int, selector: torch.nn.Module, bank: TokenBank, active: torch.Tensor
    ) -> torch.Tensor | None:
        """
        Score the pool of a stage.

        Args:
            stage (`int`): Which stage.
            selector (`torch.nn.Module`): Its selector.
            bank (`TokenBank`): The grid; inside a routing window the selector reads all of it, fresh and preserved.
            active (`torch.Tensor` of shape `(batch, num_active, hidden_size)`): States of the active tokens.

        Returns:
            `torch.Tensor` of shape `(batch, num_kept)`: the tokens to keep, or `None` where nothing is removed.
        """
        pool_ids = bank.kept_ids if self.pool == "active" else None
        pool_size = self.num_patches if pool_ids is None else pool_ids.shape[1]
        removes = self.pruning == "hard" and self.counts[stage] < pool_size
        kept_ids = None
        if removes or self.learns_policy or self.foreground is not None:
            pool = active
            if pool_ids is not bank.active_ids:
                bank.write(active)
                pool = gather_tokens(bank.states, pool_ids)
            scores = self._learn(stage, selector, pool, pool_ids)
            if removes:
                kept_ids = select_tokens(scores, self.counts[stage], pool_ids)
        return kept_ids

    def _learn(
        self, stage: int, selector: torch.nn.Module, pool: torch.Tensor, pool_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Scores of the pool; in training also the policy and the losses that come with them."""
        if not self.learns_policy:
            scores = selector(pool)
            if self.foreground is not None:
                foreground = gather_tokens(self.foreground[..., None], pool_ids).squeeze(-1)
                self.foreground_losses.append(foreground_loss(scores.float(), foreground))
            return scores

        policy, scores = selector.sample(pool)
        if self.pruning == "soft":
            if self.policy is not None and self.pool == "active":
                policy = policy * self.policy  # nested: what an earlier stage dropped stays dropped
            self.policy = policy
        self.budget_losses.append(budget_loss(policy, self.num_patches, self.cumulative_rates[stage]))
        return scores

    def record_keep_mask(self, active: torch.Tensor, kept_ids: torch.Tensor | None) -> None:
        """
        Note which patch tokens are active after a stage, for those who ask to see it.

        Args:
            active (`torch.Tensor` of shape `(batch, num_active, hidden_size)`): Gives batch size and device.
            kept_ids (`torch.Tensor` of shape `(batch, num_kept)`, *optional*): What pruning leaves; `None`: all.
        """
        if self.policy is not None:
            kept = self.policy.detach() >= 0.5
        elif kept_ids is None:
            kept = torch.ones(active.shape[0], self.num_patches, dtype=torch.bool, device=active.device)
        else:
            kept = torch.zeros(active.shape[0], self.num_patches, dtype=torch.bool, device=active.device)
            kept = kept.scatter(1, kept_ids, torch.ones_like(kept_ids, dtype=torch.bool))
        self.keep_masks.append(kept.unflatten(1, self.grid_size))

    def sequence_policy(self, bank: TokenBank, num_special: int) -> torch.Tensor | None:
        """
        The policy of the tokens in the sequence, `(batch, num_special + num_active)`: prefix and query tokens have 1,
        patch tokens that a routing window holds back have none.
        """
        if self.policy is None:
            return None
        policy = gather_tokens(self.policy[..., None], bank.active_ids).squeeze(-1)
        return torch.cat((policy.new_ones(policy.shape[0], num_special), policy), dim=1)
