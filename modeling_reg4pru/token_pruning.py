"""What happens to the tokens before and after a layer, in one forward pass."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .configuration_reg4pru import expand_keep_rates
from .segmentation_head import allowed_patches
from .token_bank import TokenBank, cell_weights, draw_routing_window, gather_tokens
from .token_selectors import (
    TokenSelector,
    budget_loss,
    cumulative_keep_rates,
    foreground_loss,
    keep_count,
    patch_foreground,
    select_tokens,
    special_tokens,
    stage_counts,
    straight_through,
)


class TokenPruning:
    """
    The tokens of one forward pass, before and after each of its layers, which takes what the attributes hold.

    At inference every stage removes tokens. In training three settings are orthogonal: how training prunes
    (`train_pruning`: nothing, a soft policy, or removal), what a selector learns from (its class says it), and random
    routing.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): Its configuration, queries, heads, selectors and drift corrections.
        grid_size (`tuple[int, int]`): Patches of the image, (rows, columns).
        keep_rates (`float`, sequence of `float` or `None`): One rate for all stages or one per stage; `None`: no token
            leaves the sequence, neither at a stage nor in a routing window.
        labels (`torch.Tensor` of shape `(batch, height, width)`, *optional*): What selectors learn from in training.
        shares (`torch.Tensor` of shape `(batch, rows, columns)`, *optional*): Blend shares of the patches, where the
            images are tiles, see [`~modeling_reg4pru.blend_shares.blend_shares`]; what has none is pruned first.
        output_keep_masks, output_token_ids (`bool`, *optional*, defaults to `False`): Whether to fill these lists.

    Attributes:
        positions (`tuple`): Rotary cos and sin of the active tokens, or `None`s.
        policy (`torch.Tensor` of shape `(batch, num_tokens)` or `None`): Keep decisions that gate attention.
        query_mask (`torch.Tensor` of shape `(batch, num_queries, num_tokens)` or `None`): Where queries may look.
        num_special (`int`): Tokens before the patch tokens: the prefix, later also the queries before it and the
            context tokens behind it.
        early_predictions (`list[tuple]`): Mask and class logits before each layer with queries, in training with
            masked attention.
        budget_losses, foreground_losses (`list[torch.Tensor]`): One entry a stage that learns.
        selector_scores (`list[tuple]`): In training, of each stage whose selector learns from divergence, its scores
            `(batch, pool_size)` and the ids of these tokens in the grid, `None` for all.
    """

    def __init__(
        self,
        model: nn.Module,
        grid_size: tuple[int, int],
        keep_rates: float | tuple[float, ...] | None,
        labels: torch.Tensor | None = None,
        shares: torch.Tensor | None = None,
        output_keep_masks: bool = False,
        output_token_ids: bool = False,
    ):
        config = model.config
        self.model, self.config, self.training = model, config, model.training
        self.grid_size, self.num_patches = grid_size, grid_size[0] * grid_size[1]
        self.keep_rates = rates = expand_keep_rates(keep_rates, config.num_stages)
        self.cumulative_rates = cumulative_keep_rates(rates)
        self.counts = stage_counts(config, rates, self.num_patches)
        self.pruning, self.window = "hard", (None, None)
        if keep_rates is None:
            self.pruning = "none"
        elif self.training:
            self.pruning = config.train_pruning
            if config.routing:
                window, probability = config.routing_window, config.routing_probability
                self.window = draw_routing_window(config.num_hidden_layers, window, probability)
        self.foreground = None
        if self.training and labels is not None:
            self.foreground = patch_foreground(labels, config.patch_size, config.semantic_loss_ignore_index)

        self.log_shares = None
        if shares is not None:
            logs = config.blend_share_weight * shares.flatten(1).clamp_min(torch.finfo(shares.dtype).tiny).log()
            self.log_shares = logs.masked_fill(shares.flatten(1) == 0, -torch.inf)

        if config.context_grid > min(grid_size):
            raise ValueError(
                f"`context_grid` is {config.context_grid}, but an image has only {grid_size[0]} x {grid_size[1]} "
                "patches: it must not be larger."
            )

        self.num_special, self.tile_lengths = config.num_prefix_tokens, None
        self.num_context, self.context_rope = 0, None  # context tokens in the sequence; their rotary cos and sin
        self.positions, self.policy, self.query_mask = (None, None), None, None
        self._grid_policy: torch.Tensor | None = None  # of all patch tokens, (batch, num_patches)
        self._kept_ids: torch.Tensor | None = None  # what the stage of the present layer lets go on
        self.early_predictions, self.budget_losses, self.foreground_losses = [], [], []
        self.selector_scores = []
        self.output_keep_masks, self.output_token_ids = output_keep_masks, output_token_ids
        self.token_counts, self.token_ids, self.keep_masks = [], [], []
        self.reactivated: tuple[torch.Tensor, torch.Tensor] | None = None

    def begin(self, states: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """
        Take in what the embeddings give, and return what the first layer gets.

        Args:
            states (`torch.Tensor` of shape `(batch, num_prefix_tokens + num_patches, hidden_size)`): All tokens.
            rope (`tuple`, *optional*): Rotary cos and sin of the patches, `(num_patches, head_dim)` each.
        """
        self.bank, self.rope = TokenBank(states[:, self.num_special :]), rope
        self.positions = self.bank.follow_positions(rope)
        return states

    def split(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The special tokens of a sequence (queries and prefix), and its patch tokens."""
        return states[:, : self.num_special], states[:, self.num_special :]

    def join(self, special: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """The sequence of these special tokens and the patch tokens that are active now."""
        self.num_special = special.shape[1]
        self.positions = self.bank.follow_positions(self.rope)
        if self.context_rope is not None:
            pairs = zip(self.context_rope, self.positions, strict=True)
            self.positions = tuple(torch.cat((context[:, None], active), dim=2) for context, active in pairs)
        return torch.cat((special, patches), dim=1)

    def before(self, index: int, states: torch.Tensor) -> torch.Tensor:
        """Before a layer queries enter, a selector that reads its input scores, and masks of attention are made."""
        if index == self.config.first_query_layer:
            special, patches = self.split(states)
            queries = self.model.query.weight[None].expand(special.shape[0], -1, -1)
            states = self.join(torch.cat((queries.to(states), special), dim=1), patches)
        # Tokens are removed after layer s_j of stage j. A policy gates attention from this layer on, so a selector
        # that learns through one scores its input.
        self._kept_ids = None
        selector = self._selector_of(index)
        if selector is not None and not selector.scores_output:
            self._kept_ids = self._decide(index, selector, self.split(states)[1])
        self.query_mask = self._mask_queries(index, states)
        self.policy = self._gather_policy()
        return states

    def after(self, index: int, states: torch.Tensor) -> torch.Tensor:
        """After a layer tokens leave the sequence or come back: pruning, reactivation, both ends of routing."""
        config, bank = self.config, self.bank
        states = states.to(bank.states.device)  # `device_map` may put layers on several devices
        selector = self._selector_of(index)
        if selector is not None and selector.scores_output:
            self._kept_ids = self._decide(index, selector, self.split(states)[1])
        if self.pruning == "hard":
            self._grid_policy = None  # the tokens that it dropped are gone
        self.token_counts.append(self._count_tokens(states))
        if self.output_token_ids:
            self.token_ids.append(bank.list_ids())

        prunes = self._kept_ids is not None
        reactivates = index == config.reactivation_layer and bank.kept_ids is not None
        if not (prunes or reactivates or index in self.window):
            return states
        special, patches = self.split(states)  # of packed tiles a copy, so only where tokens move
        bank.write(patches)
        if prunes:
            kept_ids = bank.kept_ids
            self._prune(index)
            if config.context_grid and not self.num_context:
                context = self._average_dropped(kept_ids)
                self.num_context = context.shape[1]
                special = torch.cat((special, context.to(special)), dim=1)
        if reactivates:
            special = special[:, : special.shape[1] - self.num_context]
            self.num_context, self.context_rope = 0, None
            if self.training and bank.changes is not None:
                self.reactivated = bank.reactivated()
            self._reactivate()
        if index == self.window[0]:
            num_special = special_tokens(config, *self.window)
            bank.route(keep_count(config.routing_keep_rate, bank.num_kept, num_special, config.token_multiple))
        if index == self.window[1]:
            bank.rejoin()
        return self.join(special, bank.read())

    def end(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries `(batch, num_queries, hidden_size)` and the patch tokens of the full grid after the last layer."""
        return states[:, : self.config.num_queries], states[:, self.num_special :]

    def _reactivate(self) -> None:
        """Bring the pruned tokens back."""
        self.bank.reactivate()

    def outputs(self) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...] | None]:
        """What [`Reg4PruSemanticSegmenterOutput`] tells of the pruning, after the last layer."""
        return {
            "budget_loss": torch.stack(self.budget_losses).mean() if self.budget_losses else None,
            "token_counts": torch.tensor(self.token_counts, device=self.bank.states.device),
            "token_ids": tuple(self.token_ids) or None,
            "keep_masks": torch.stack(self.keep_masks, dim=1) if self.keep_masks else None,
            "reactivated": self.reactivated,
            "selector_scores": tuple(self.selector_scores) or None,
        }

    def _selector_of(self, index: int) -> TokenSelector | None:
        """The selector of the pruning stage at a layer; `None` where there is no stage."""
        layers = self.config.pruning_layers
        return self.model.selectors[layers.index(index)] if index in layers else None

    def _prune(self, index: int) -> None:
        """Only what a stage has chosen goes on; with drift corrections the rest will come back changed."""
        bank, kept_ids = self.bank, self._kept_ids
        if not self.model.drift_corrections:
            bank.prune(kept_ids)
            return
        correction = self.model.drift_corrections[self.config.pruning_layers.index(index)]
        nested = self.config.selection_pool == "active" and bank.routed_ids is None
        leaving_ids = bank.leaving_ids(kept_ids, nested)
        changes = correction(gather_tokens(bank.states, leaving_ids)).to(bank.states.device)
        bank.prune(kept_ids, leaving_ids, changes)

    def _average_dropped(self, kept_ids: torch.Tensor | None) -> torch.Tensor:
        """
        Context tokens: means of the tokens that a stage has dropped, over the cells of each image. Their positions are
        means, too, of cos and sin, as those of keys that are averaged after their rotation would be; learned positions
        are part of the states.

        Args:
            kept_ids (`torch.Tensor` of shape `(batch, num_kept)`, *optional*): What was left before the stage.

        Returns:
            `torch.Tensor` of shape `(num_images, context_grid**2, hidden_size)`: of a tile each, where the bank holds
            several as one grid.
        """
        states, patches = self.bank.states, self.grid_size[0] * self.grid_size[1]
        left = torch.ones_like(states[..., 0], dtype=torch.bool)
        if kept_ids is not None:
            left = torch.zeros_like(left).scatter(1, kept_ids, True)
        dropped = left.scatter(1, self.bank.kept_ids, False).view(-1, patches)
        dtype = torch.promote_types(states.dtype, torch.float32)
        weights = cell_weights(dropped, self.grid_size, self.config.context_grid, dtype)
        if self.rope is not None:
            self.context_rope = tuple((weights @ table[:patches].to(dtype)).to(table) for table in self.rope)
        return weights @ states.reshape(-1, patches, states.shape[-1]).to(dtype)

    def _decide(self, index: int, selector: TokenSelector, patches: torch.Tensor) -> torch.Tensor | None:
        """
        The decision of a stage.

        Args:
            index (`int`): Its layer.
            selector (`TokenSelector`): Its selector.
            patches (`torch.Tensor` of shape `(batch, num_active, hidden_size)`): States of the active patch tokens.

        Returns:
            `torch.Tensor` of shape `(batch, num_kept)`: the tokens to keep, or `None` where nothing is removed.
        """
        kept_ids = self._choose(self.config.pruning_layers.index(index), selector, patches)
        if self.output_keep_masks:
            self._record_keep_mask(patches, self.bank.kept_ids if kept_ids is None else kept_ids)
        return kept_ids

    def _choose(self, stage: int, selector: TokenSelector, patches: torch.Tensor) -> torch.Tensor | None:
        """[`_decide`], without a record of it. Inside a routing window the selector reads the full grid."""
        bank, pool = self.bank, self.config.selection_pool
        pool_ids = bank.kept_ids if pool == "active" else None
        pool_size = self.num_patches if pool_ids is None else pool_ids.shape[1]
        removes = self.pruning == "hard" and self._num_kept(stage) < pool_size
        draws_policy = self.training and selector.learns_from == "policy" and self.pruning != "none"
        learns_foreground = self.foreground is not None and selector.learns_from == "foreground"
        learns_divergence = self.training and self.pruning == "hard" and selector.learns_from == "divergence"
        if not (removes or draws_policy or learns_foreground or learns_divergence):
            return None
        states = patches
        if pool_ids is not bank.active_ids:
            bank.write(patches)
            states = gather_tokens(bank.states, pool_ids)

        if not draws_policy:
            scores = selector(states).to(states.device)  # `device_map` may put it on another
            if self.log_shares is not None:
                scores = scores + gather_tokens(self.log_shares[..., None].to(scores), pool_ids).squeeze(-1)
            if learns_foreground:
                foreground = gather_tokens(self.foreground[..., None], pool_ids).squeeze(-1)
                self.foreground_losses.append(foreground_loss(scores.float(), foreground))
            if learns_divergence:
                self.selector_scores.append((scores, pool_ids))
            return self._keep_best(scores, stage, pool_ids) if removes else None

        probability = selector.sample(states).to(states.device)
        policy = straight_through(probability, probability >= 0.5)
        if self.pruning == "soft" and self._grid_policy is not None and pool == "active":
            policy = policy * self._grid_policy  # nested: what an earlier stage dropped stays dropped
        self.budget_losses.append(budget_loss(policy, self.num_patches, self.cumulative_rates[stage]))
        if self.pruning == "soft":
            self._grid_policy = policy
            return None
        return self._keep_by_gumbel(probability, self.counts[stage], pool_ids) if removes else None

    def _count_tokens(self, states: torch.Tensor) -> int | list[int]:
        """Tokens of the sequence of an image; of every tile, where tiles have different numbers."""
        return states.shape[1]

    def _num_kept(self, stage: int) -> int:
        """How many patch tokens of a sequence a stage keeps."""
        return self.counts[stage]

    def _keep_best(self, scores: torch.Tensor, stage: int, pool_ids: torch.Tensor | None) -> torch.Tensor:
        """What a stage keeps by its scores `(batch, pool_size)`, as ids in the grid, `(batch, num_kept)`."""
        return select_tokens(scores, self.counts[stage], pool_ids)

    def _keep_by_gumbel(self, probability: torch.Tensor, count: int, pool_ids: torch.Tensor | None) -> torch.Tensor:
        """
        Gumbel top-k: the tokens with the highest draws go on. In the layer of the stage, where all of the pool is
        still there, the straight-through policy gates attention: by this way the task loss reaches the selector.
        """
        chosen = probability.topk(count, dim=1, sorted=False).indices
        keeps = torch.zeros_like(probability, dtype=torch.bool).scatter(1, chosen, True)
        policy = straight_through(probability, keeps)
        if pool_ids is None:
            self._grid_policy = policy
            return chosen
        grid = policy.new_ones(policy.shape[0], self.num_patches)
        self._grid_policy = grid.scatter(1, pool_ids, policy)
        return pool_ids.gather(1, chosen)

    def _gather_policy(self) -> torch.Tensor | None:
        """
        The policy of the tokens in the sequence: prefix and query tokens have 1, patch tokens that a routing window
        holds back have none.
        """
        if self._grid_policy is None:
            return None
        policy = self.bank.follow(self._grid_policy[..., None]).squeeze(-1)
        return torch.cat((policy.new_ones(policy.shape[0], self.num_special), policy), dim=1)

    def _mask_queries(self, index: int, states: torch.Tensor) -> torch.Tensor | None:
        """EoMT's masked attention, in training: predict before each layer with queries; see [`allowed_patches`]."""
        config = self.config
        if not (self.training and config.masked_attention and index >= config.first_query_layer):
            return None
        self.bank.write(self.split(states)[1])
        predict = self.model.predict
        if self.model.gradient_checkpointing:  # under hard pruning these maps are most of what is kept for backward
            predict = partial(checkpoint, predict, use_reentrant=False)
        self.early_predictions.append(predict(states[:, : config.num_queries], self.bank.states, self.grid_size))
        if self.bank.routed_ids is not None:  # inside a routing window the mask is off
            return None
        probability = self.model.attn_mask_probs[index - config.first_query_layer]
        allowed = allowed_patches(self.early_predictions[-1][0], self.grid_size, probability)
        allowed = self.bank.follow(allowed.transpose(1, 2)).transpose(1, 2)
        return F.pad(allowed, (self.num_special, 0), value=True)

    def _record_keep_mask(self, patches: torch.Tensor, kept_ids: torch.Tensor | None) -> None:
        """Note which patch tokens are active after a stage; `patches` gives batch size and device."""
        if self.pruning == "soft" and self._grid_policy is not None:
            kept = self._grid_policy.detach() >= 0.5
        else:
            kept = torch.full((patches.shape[0], self.num_patches), kept_ids is None, device=patches.device)
            kept = kept if kept_ids is None else kept.scatter(1, kept_ids, True)
        self.keep_masks.append(kept.unflatten(1, self.grid_size))
