"""One token budget per image: the tiles of an image share it, and keep different numbers of tokens."""

from collections.abc import Sequence

import torch
from torch import nn

from .blend_shares import blend_shares, visible_patches
from .configuration_reg4pru import Reg4PruConfig, expand_keep_rates
from .image_tiles import split_images, tile_grid
from .token_bank import TokenBank
from .token_pruning import TokenPruning
from .token_selectors import cumulative_keep_rates

# Tiles that share a budget at most.
BUDGET_TILES = 64


class ImageTokenPruning(TokenPruning):
    """
    [`~modeling_reg4pru.token_pruning.TokenPruning`] at inference, over all tiles of one image at once: a stage keeps
    the best of the image's tokens, wherever they are, so that tiles which show much keep many.

    From the first stage to the reactivation the tiles are packed into one sequence, one after another, each with its
    prefix and query tokens before its patch tokens. All that works on single tokens does not notice; attention runs
    within each tile ([`~modeling_reg4pru.policy_attention.packed_attention`]). For the bank the image is one grid of
    `num_tiles * num_patches` patches.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): In evaluation mode.
        grid_size (`tuple[int, int]`): Patches of a tile, (rows, columns).
        keep_rates (`float`, `tuple[float, ...]` or `None`): One rate for all stages or one per stage, of what the
            image shows; `None`: no stage prunes.
        shares (`torch.Tensor` of shape `(num_tiles, rows, columns)`): Blend shares. Tokens that have none show nothing
            of the image; they leave before the first layer and do not come back.
        groups (`list[int]`): How many of the tiles, which follow one another, share each budget.
        output_keep_masks (`bool`, *optional*, defaults to `False`): Whether to record what stays after each stage.

    Attributes:
        tile_lengths (`list[int]` or `None`): Tokens of each tile in the packed sequence; `None` while none is away.
    """

    def __init__(
        self,
        model: nn.Module,
        grid_size: tuple[int, int],
        keep_rates: float | tuple[float, ...] | None,
        shares: torch.Tensor,
        groups: list[int],
        output_keep_masks: bool = False,
    ):
        super().__init__(model, grid_size, keep_rates, shares=shares, output_keep_masks=output_keep_masks)
        self.num_tiles, self.tile_patches = len(shares), self.num_patches
        self.num_patches = self.num_tiles * self.tile_patches
        self.visible = shares.flatten() > 0
        self.visible_ids = None if self.visible.all() else self.visible.nonzero().view(1, -1)
        if self.log_shares is not None:
            self.log_shares = self.log_shares.view(1, -1)
        self.groups = groups
        visible = [int(part.sum()) for part in self.visible.split([num * self.tile_patches for num in groups])]
        self.counts = [
            [min(num, max(1, round(rate * num))) for num in visible] if rate < 1 else [self.num_patches]
            for rate in cumulative_keep_rates(self.keep_rates)
        ]

    def begin(self, states: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        special, patches = states[:, : self.num_special], states[:, self.num_special :]
        patches = patches.reshape(1, self.num_patches, -1)
        if self.visible_ids is not None:  # the heads look at neighbours: there is to be nothing
            patches = patches.masked_fill(~self.visible[:, None], 0.0)
        self.bank = TokenBank(patches)
        self.rope = rope and tuple(table.repeat(self.num_tiles, 1) for table in rope)
        self._lay_out(None)
        self.positions = rope or (None, None)
        if self.visible_ids is not None:
            self.bank.prune(self.visible_ids)
            states = self.join(special, self.bank.read())
        return states

    def end(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        special, patches = self.split(states)
        self.bank.write(patches)
        return special[:, : self.config.num_queries], self.bank.states.view(self.num_tiles, self.tile_patches, -1)

    def _reactivate(self) -> None:
        self.bank.reactivate(self.visible_ids)

    def split(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.tile_lengths is None:
            return states[:, : self.num_special], states[:, self.num_special :].reshape(1, self.num_patches, -1)
        special = states[0, ~self._is_patch].view(self.num_tiles, self.num_special, -1)
        return special, states[:, self._is_patch]

    def join(self, special: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        self.num_special = special.shape[1]
        self._lay_out(self.bank.active_ids)
        if self.tile_lengths is None:
            self.positions = (None, None) if self.rope is None else tuple(t[: self.tile_patches] for t in self.rope)
            return torch.cat((special, patches.view(self.num_tiles, self.tile_patches, -1)), dim=1)
        states = patches.new_empty(1, len(self._is_patch), patches.shape[-1])
        states[:, self._is_patch] = patches
        states[:, ~self._is_patch] = special.reshape(1, -1, special.shape[-1]).to(states.dtype)
        self.positions = (None, None) if self.rope is None else self._packed_positions()
        return states

    def _lay_out(self, ids: torch.Tensor | None) -> None:
        """Where the tokens of each tile are in the packed sequence, for active patch tokens `(1, num_active)`."""
        self.tile_lengths = None
        if ids is None:
            return
        counts = torch.bincount(ids[0] // self.tile_patches, minlength=self.num_tiles)
        self.tile_lengths = (counts + self.num_special).tolist()
        pattern = torch.tensor([False, True], device=ids.device).repeat(self.num_tiles)
        runs = torch.stack((torch.full_like(counts, self.num_special), counts), dim=1).flatten()
        self._is_patch = pattern.repeat_interleave(runs)

    def _packed_positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary cos and sin of the packed sequence, `(1, 1, num_tokens, head_dim)`; special tokens are not turned."""
        cos, sin = (self.bank.follow(table) for table in self.rope)
        packed = [
            table.new_full((1, len(self._is_patch), table.shape[-1]), fill) for table, fill in ((cos, 1), (sin, 0))
        ]
        for whole, table in zip(packed, (cos, sin), strict=True):
            whole[:, self._is_patch] = table
        if self.context_rope is not None:
            for whole, table in zip(packed, self.context_rope, strict=True):
                special = whole[:, ~self._is_patch].view(self.num_tiles, self.num_special, -1)
                special[:, -self.num_context :] = table
                whole[:, ~self._is_patch] = special.view(1, -1, special.shape[-1])
        return packed[0][:, None], packed[1][:, None]

    def _count_tokens(self, states: torch.Tensor) -> list[int]:
        return self.tile_lengths or [states.shape[1]] * self.num_tiles

    def _num_kept(self, stage: int) -> int:
        return sum(self.counts[stage])

    def _keep_best(self, scores: torch.Tensor, stage: int, pool_ids: torch.Tensor | None) -> torch.Tensor:
        if pool_ids is None:
            pool_ids = torch.arange(self.num_patches, device=scores.device)[None]
            scores = scores.masked_fill(~self.visible, -torch.inf)
        firsts = torch.tensor(self.groups, device=scores.device).cumsum(0) * self.tile_patches
        sizes = torch.searchsorted(pool_ids[0], firsts).diff(prepend=firsts.new_zeros(1)).tolist()
        kept, first = [], 0
        for size, count in zip(sizes, self.counts[stage], strict=True):
            kept.append(scores[:, first : first + size].topk(min(count, size), dim=1).indices + first)
            first += size
        # Sorted: tile by tile, as they are packed.
        return pool_ids.gather(1, torch.cat(kept, dim=1)).sort(dim=1).values

    def _record_keep_mask(self, patches: torch.Tensor, kept_ids: torch.Tensor | None) -> None:
        kept = self.visible.clone() if kept_ids is None else torch.zeros_like(self.visible)
        if kept_ids is not None:
            kept[kept_ids[0]] = True
        self.keep_masks.append(kept.view(self.num_tiles, *self.grid_size))


def follow_tokens(
    model: nn.Module,
    grid_size: tuple[int, int],
    keep_rates: float | tuple[float, ...] | None,
    labels: torch.Tensor | None,
    patch_offsets: torch.Tensor | None,
    output_keep_masks: bool,
    output_token_ids: bool,
    pixel_mask: torch.Tensor | None = None,
) -> TokenPruning:
    """
    What follows the tokens of one forward pass, by image where the configuration says so (`allocation`) and it is
    known how the tiles lie, else by tile; arguments as in [`Reg4PruForSemanticSegmentation.forward`].

    Raises:
        `ValueError`: if ids are asked for that are no rectangle: tiles that share a budget have unequal numbers.
    """
    if patch_offsets is None or model.training or (keep_rates is None and pixel_mask is None):
        return TokenPruning(model, grid_size, keep_rates, labels, None, output_keep_masks, output_token_ids)
    shares = blend_shares(patch_offsets, model.config.patch_size, grid_size[0])
    if pixel_mask is not None:
        shares = shares * visible_patches(pixel_mask.to(shares.device), model.config.patch_size)
    competes = shares_budget(model.config, keep_rates)
    if not competes and (pixel_mask is None or model.config.allocation == "tile"):
        weighs = model.config.blend_share_weight > 0 or pixel_mask is not None
        shares = shares if weighs else None
        return TokenPruning(model, grid_size, keep_rates, labels, shares, output_keep_masks, output_token_ids)
    if torch.compiler.is_exporting():
        raise ValueError("A graph has tiles of equal numbers of tokens: export with `allocation='tile'`.")
    if output_token_ids:
        raise ValueError(
            "`output_token_ids=True` needs `allocation='tile'`: tiles of one budget keep unequal numbers."
        )
    groups = [len(shares)]
    if competes:
        groups = [size for rows in split_images(patch_offsets) for size in budget_groups(rows)]
    return ImageTokenPruning(model, grid_size, keep_rates, shares, groups, output_keep_masks)


def shares_budget(config: Reg4PruConfig, keep_rates: float | Sequence[float] | str | None) -> bool:
    """Whether at these keep rates, as in the model's forward, the tiles of an image compete with one another."""
    if config.allocation == "tile":
        return False
    rates = config.keep_rates if isinstance(keep_rates, str) else keep_rates
    return min(expand_keep_rates(rates, config.num_stages), default=1) < 1


def budget_groups(patch_offsets: torch.Tensor) -> list[int]:
    """
    How many tiles of an image, which follow one another, share each budget: all of them, or of an image with more
    than `BUDGET_TILES` as many at a time, so that an image of any size takes no more memory than these.

    Args:
        patch_offsets (`torch.Tensor` of shape `(num_tiles, 9)`): Rows of one image.

    Raises:
        `ValueError`: if tiles of a budget are missing: without them the others would keep what they should not.
    """
    _, _, _, tile_size, height, width, _, _, overlap = patch_offsets[0].tolist()
    grid, corners = (
        tile_grid(height, width, tile_size, overlap),
        [tuple(row) for row in patch_offsets[:, 1:3].tolist()],
    )
    first = grid.index(corners[0])
    end = first + len(corners)
    if corners != grid[first:end] or first % BUDGET_TILES or (end < len(grid) and end % BUDGET_TILES):
        raise ValueError(
            f"Got {len(corners)} of the {len(grid)} tiles of an image of {height}x{width} pixels, but they share one "
            "budget (`allocation='image'`): give all of them, in their order, in one batch, or set "
            "`config.allocation = 'tile'`."
        )
    return [min(BUDGET_TILES, len(corners) - begin) for begin in range(0, len(corners), BUDGET_TILES)]
