"""What a pruning stage decides in one forward pass, and what its selector learns from that."""

import torch

from .configuration_reg4pru import Reg4PruConfig
from .distributed import mean_over_processes
from .token_bank import TokenBank, gather_tokens
from .token_selectors import (
    TokenSelector,
    budget_loss,
    cumulative_keep_rates,
    foreground_loss,
    patch_foreground,
    select_tokens,
    stage_counts,
    straight_through,
)


class StageSelection:
    """
    The decisions of all stages in one forward pass.

    At inference every stage removes tokens. In training the three settings are orthogonal: how training prunes
    (`train_pruning`: nothing, a soft policy, or removal), what the selector learns from (its class says it), and
    routing, which this class knows only through the bank.

    Args:
        config (`Reg4PruConfig`): Configuration.
        keep_rates (`tuple[float, ...]`): Relative keep rate of every stage.
        grid_size (`tuple[int, int]`): Patches of the image, (rows, columns).
        pruning (`str`): `"none"`, `"soft"` or `"hard"`: how tokens are pruned in this forward pass.
        training (`bool`): Whether the selectors learn in it.
        labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*): Class of every pixel, to learn from.
        output_keep_masks (`bool`, *optional*, defaults to `False`): Whether to fill `keep_masks`.

    Attributes:
        policy (`torch.Tensor` of shape `(batch, num_patches)` or `None`): Keep decisions that gate attention from now
            on (soft pruning), or in the layer of the stage (hard pruning that learns through a policy).
        budget_losses, foreground_losses (`list[torch.Tensor]`): One entry a stage that learns.
        keep_masks (`list[torch.Tensor]`): One boolean `(batch, rows, columns)` a stage, True for active tokens.
    """

    def __init__(
        self,
        config: Reg4PruConfig,
        keep_rates: tuple[float, ...],
        grid_size: tuple[int, int],
        pruning: str,
        training: bool,
        labels: torch.Tensor | None,
        output_keep_masks: bool = False,
    ):
        self.layers = config.pruning_layers
        self.output_keep_masks = output_keep_masks
        self.grid_size = grid_size
        self.num_patches = grid_size[0] * grid_size[1]
        self.pool = config.selection_pool
        self.cumulative_rates = cumulative_keep_rates(keep_rates)
        self.counts = stage_counts(config, keep_rates, self.num_patches)
        self.pruning, self.training = pruning, training
        self.foreground = None
        if training and labels is not None:
            self.foreground = patch_foreground(labels, config.patch_size, config.semantic_loss_ignore_index)

        self.policy: torch.Tensor | None = None
        self.budget_losses: list[torch.Tensor] = []
        self.foreground_losses: list[torch.Tensor] = []
        self.keep_masks: list[torch.Tensor] = []

    def decide(
        self, layer: int, selector: TokenSelector, bank: TokenBank, active: torch.Tensor
    ) -> torch.Tensor | None:
        """
        Score the pool of a stage.

        Args:
            layer (`int`): The layer of the stage.
            selector (`TokenSelector`): Its selector.
            bank (`TokenBank`): The grid; inside a routing window the selector reads all of it, fresh and preserved.
            active (`torch.Tensor` of shape `(batch, num_active, hidden_size)`): States of the active tokens.

        Returns:
            `torch.Tensor` of shape `(batch, num_kept)`: the tokens to keep, or `None` where nothing is removed.
        """
        kept_ids = self._choose(self.layers.index(layer), selector, bank, active)
        if self.output_keep_masks:
            self._record_keep_mask(active, bank.kept_ids if kept_ids is None else kept_ids)
        return kept_ids

    def _choose(
        self, stage: int, selector: TokenSelector, bank: TokenBank, active: torch.Tensor
    ) -> torch.Tensor | None:
        """[`decide`], without a record of it."""
        pool_ids = bank.kept_ids if self.pool == "active" else None
        pool_size = self.num_patches if pool_ids is None else pool_ids.shape[1]
        removes = self.pruning == "hard" and self.counts[stage] < pool_size
        draws_policy = self.training and selector.learns_from == "policy" and self.pruning != "none"
        learns_foreground = self.foreground is not None and selector.learns_from == "foreground"
        if not (removes or draws_policy or learns_foreground):
            return None
        pool = active
        if pool_ids is not bank.active_ids:
            bank.write(active)
            pool = gather_tokens(bank.states, pool_ids)

        if not draws_policy:
            scores = selector(pool).to(pool.device)  # `device_map` may put it on another
            if learns_foreground:
                foreground = gather_tokens(self.foreground[..., None], pool_ids).squeeze(-1)
                self.foreground_losses.append(foreground_loss(scores.float(), foreground))
            return select_tokens(scores, self.counts[stage], pool_ids) if removes else None

        probability = selector.sample(pool).to(pool.device)
        policy = straight_through(probability, probability >= 0.5)
        if self.pruning == "soft" and self.policy is not None and self.pool == "active":
            policy = policy * self.policy  # nested: what an earlier stage dropped stays dropped
        self.budget_losses.append(budget_loss(policy, self.num_patches, self.cumulative_rates[stage]))
        if self.pruning == "soft":
            self.policy = policy
            return None
        return self._keep_by_gumbel(probability, self.counts[stage], pool_ids) if removes else None

    def _keep_by_gumbel(self, probability: torch.Tensor, count: int, pool_ids: torch.Tensor | None) -> torch.Tensor:
        """
        Gumbel top-k: the tokens with the highest draws go on. In the layer of the stage, where all of the pool is
        still there, the straight-through policy gates attention: by this way the task loss reaches the selector.
        """
        chosen = probability.topk(count, dim=1, sorted=False).indices
        keeps = torch.zeros_like(probability, dtype=torch.bool).scatter(1, chosen, True)
        policy = straight_through(probability, keeps)
        if pool_ids is None:
            self.policy = policy
            return chosen
        grid = policy.new_ones(policy.shape[0], self.num_patches)
        self.policy = grid.scatter(1, pool_ids, policy)
        return pool_ids.gather(1, chosen)

    def end_layer(self) -> None:
        """After a layer the tokens that hard pruning dropped are gone, and their policy with them."""
        if self.pruning == "hard":
            self.policy = None

    def _record_keep_mask(self, active: torch.Tensor, kept_ids: torch.Tensor | None) -> None:
        """
        Note which patch tokens are active after a stage, for those who ask to see it.

        Args:
            active (`torch.Tensor` of shape `(batch, num_active, hidden_size)`): Gives batch size and device.
            kept_ids (`torch.Tensor` of shape `(batch, num_kept)`, *optional*): What pruning leaves; `None`: all.
        """
        if self.pruning == "soft" and self.policy is not None:
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
        policy = bank.follow(self.policy[..., None]).squeeze(-1)
        return torch.cat((policy.new_ones(policy.shape[0], num_special), policy), dim=1)


def drift_loss(bank: TokenBank, dense_states: torch.Tensor) -> torch.Tensor:
    """
    What is left of the drift of the tokens that pruning has removed: the squared error of their guesses, by the
    variance of the states that they should be, in the batch of all processes. It reaches only the corrections.

    Args:
        bank (`TokenBank`): The grid, before the reactivation.
        dense_states (`torch.Tensor` of shape `(batch, num_patches, hidden_size)`): States after the reactivation layer
            in a pass that removes nothing.
    """
    target = dense_states.detach().float()
    errors = (bank.states.detach().float() + bank.changes.float() - target).square().mean(-1)
    away = torch.ones_like(errors).scatter(1, bank.kept_ids, 0.0)
    centre = mean_over_processes(target.mean((0, 1)))
    variance = mean_over_processes((target - centre).square().mean())
    return (errors * away).sum() / (away.sum() * variance).clamp_min(torch.finfo(torch.float32).tiny)
