"""The token bank: pruning, random routing and reactivation as three views of one object (design: "one bank")."""

import torch

from .distributed import draw_for_images


def gather_tokens(tokens: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    """
    Tokens of each image by their ids.

    Args:
        tokens (`torch.Tensor` of shape `(batch, num_tokens, channels)`): The tokens.
        ids (`torch.Tensor` of shape `(batch, num_kept)`, *optional*): Which to take; `None` takes all as they are.

    Returns:
        `torch.Tensor` of shape `(batch, num_kept, channels)`.
    """
    if ids is None:
        return tokens
    return tokens[_places(ids)]


def scatter_tokens(grid: torch.Tensor, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The grid `(batch, num_patches, channels)` with `tokens` `(batch, num_kept, channels)` at their ids."""
    return grid.index_put(_places(ids), tokens.to(grid.dtype))


def _places(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where ids `(batch, num_kept)` are in `(batch, num_patches, ...)`. Whole tokens are copied by this; `gather` and
    `scatter` with ids repeated for every channel take two to three times as long on a CPU.
    """
    return torch.arange(ids.shape[0], device=ids.device)[:, None], ids


def cell_weights(chosen: torch.Tensor, grid_size: tuple[int, int], num_cells: int, dtype: torch.dtype) -> torch.Tensor:
    """
    Weights by which tokens are averaged within cells: `weights @ states` are the means of the chosen tokens of each
    cell, or of all of its tokens where none of them is chosen.

    Args:
        chosen (`torch.Tensor` of shape `(batch, num_patches)`, `bool`): Which tokens are averaged.
        grid_size (`tuple[int, int]`): Rows and columns of patches.
        num_cells (`int`): Cells a side.
        dtype (`torch.dtype`): Of the weights.

    Returns:
        `torch.Tensor` of shape `(batch, num_cells**2, num_patches)`.
    """
    rows, columns = (
        torch.arange(side, device=chosen.device) * num_cells // side * step
        for side, step in zip(grid_size, (num_cells, 1), strict=True)
    )
    cells = torch.arange(num_cells**2, device=chosen.device)
    inside = (rows[:, None] + columns).flatten() == cells[:, None]
    weights = inside & chosen[:, None]
    weights = torch.where(weights.any(-1, keepdim=True), weights, inside).to(dtype)
    return weights / weights.sum(-1, keepdim=True)


class TokenBank:
    """
    The last state of every patch token of the grid, and which of them are active.

    Active tokens run through the layers; the others stay in the bank as preserved representations until they are
    reactivated. Writing the active tokens back, changing the ids and reading again is all there is to nested pruning,
    to selection among all tokens, to reactivation and to Reg4Pru's random routing (arXiv 2602.02163, "Random token
    routing"; the gather and scatter form is TREAD's, arXiv 2501.04765).

    Args:
        states (`torch.Tensor` of shape `(batch, num_patches, hidden_size)`): States of the full grid, in grid order.

    Attributes:
        states (`torch.Tensor` of shape `(batch, num_patches, hidden_size)`): The full grid, as of the last `write`.
        kept_ids (`torch.Tensor` of shape `(batch, num_kept)` or `None`): What pruning has left; `None`: all tokens.
        routed_ids (`torch.Tensor` of shape `(batch, num_routed)` or `None`): Inside a routing window the part of the
            kept tokens that runs through the layers; `None` outside.
        changes (`torch.Tensor` of shape `(batch, num_patches, hidden_size)` or `None`): What is added to the states of
            pruned tokens when they come back; `None`: nothing.
    """

    def __init__(self, states: torch.Tensor):
        self.states = states
        self.kept_ids: torch.Tensor | None = None
        self.routed_ids: torch.Tensor | None = None
        self.changes: torch.Tensor | None = None

    def follow(self, values: torch.Tensor) -> torch.Tensor:
        """
        Values of the active tokens: positions, policies, masks.

        Args:
            values (`torch.Tensor` of shape `(num_patches, channels)` or `(batch, num_patches, channels)`): Grid order.

        Returns:
            `torch.Tensor`: those of the active tokens, `(batch, num_active, channels)`; all of them as they are where
            no token is away.
        """
        if self.active_ids is None:
            return values
        return values[self.active_ids] if values.ndim == 2 else gather_tokens(values, self.active_ids)

    def follow_positions(
        self, rope: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Rotary cos and sin of the active tokens, `(batch, 1, num_active, head_dim)`; `None`s without any."""
        if rope is None or self.active_ids is None:
            return rope or (None, None)
        cos, sin = (self.follow(table)[:, None] for table in rope)
        return cos, sin

    @property
    def active_ids(self) -> torch.Tensor | None:
        """Ids of the tokens in the sequence now, shape `(batch, num_active)`; `None`: all, in grid order."""
        return self.kept_ids if self.routed_ids is None else self.routed_ids

    def list_ids(self) -> torch.Tensor:
        """[`active_ids`], written out where it is all of them."""
        if self.active_ids is not None:
            return self.active_ids
        images, patches = self.states.shape[:2]
        return torch.arange(patches, device=self.states.device).expand(images, -1)

    def write(self, active: torch.Tensor) -> None:
        """Store the states of the active tokens, shape `(batch, num_active, hidden_size)`."""
        self.states = active if self.active_ids is None else scatter_tokens(self.states, self.active_ids, active)

    def read(self) -> torch.Tensor:
        """States of the active tokens, shape `(batch, num_active, hidden_size)`."""
        return gather_tokens(self.states, self.active_ids)

    def leaving_ids(self, kept_ids: torch.Tensor, nested: bool) -> torch.Tensor:
        """
        The active tokens that would be away if only `kept_ids` went on.

        Args:
            kept_ids (`torch.Tensor` of shape `(batch, num_kept)`): Which would go on.
            nested (`bool`): Whether all of them are active now. Only then do equally many leave in each image; else
                all active tokens are listed, those that stay among them.

        Returns:
            `torch.Tensor` of shape `(batch, num_active - num_kept)`, or `(batch, num_active)`.
        """
        active = self.list_ids()
        if not nested:
            return active
        stays = torch.zeros_like(self.states[..., 0], dtype=torch.int32).scatter(1, kept_ids, 1).gather(1, active)
        count = active.shape[1] - kept_ids.shape[1]
        return active.gather(1, stays.topk(count, dim=1, largest=False, sorted=False).indices)

    def prune(
        self,
        kept_ids: torch.Tensor,
        leaving_ids: torch.Tensor | None = None,
        changes: torch.Tensor | None = None,
    ) -> None:
        """
        Let only these tokens go on; the others are preserved.

        Args:
            kept_ids (`torch.Tensor` of shape `(batch, num_kept)`): Which go on.
            leaving_ids (`torch.Tensor` of shape `(batch, num_leaving)`, *optional*): From
                [`~TokenBank.leaving_ids`].
            changes (`torch.Tensor` of shape `(batch, num_leaving, hidden_size)`, *optional*): What is added to the
                states of those when they come back, should they be away from now on.
        """
        if leaving_ids is not None:
            if self.changes is None:
                self.changes = torch.zeros_like(self.states)
            # In place, as a stage changes little of the grid and nothing has read it yet.
            self.changes[_places(leaving_ids)] = changes.to(self.changes.dtype)
            if leaving_ids.shape[1] + kept_ids.shape[1] > self.list_ids().shape[1]:  # some of those listed stay
                self.changes[_places(kept_ids)] = 0.0
        self.kept_ids = kept_ids

    def reactivated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What [`~TokenBank.reactivate`] would bring back, with a gradient for the changes only.

        Returns:
            `tuple`: states `(batch, num_patches, hidden_size)` in float32, and where they are those of pruned tokens,
            `(batch, num_patches)`, `bool`.
        """
        pruned = torch.ones_like(self.states[..., 0], dtype=torch.bool).scatter(1, self.kept_ids, False)
        return self.states.detach().float() + self.changes.float(), pruned

    def reactivate(self, ids: torch.Tensor | None = None) -> None:
        """
        Put preserved tokens back into the sequence (those that a routing window holds come back at its end).

        Args:
            ids (`torch.Tensor` of shape `(batch, num_tokens)`, *optional*): Which tokens are active then; unset, all.
        """
        if self.changes is not None:
            self.states = self.states + self.changes
        self.kept_ids = ids

    @property
    def num_kept(self) -> int:
        """How many tokens pruning has left."""
        return self.states.shape[1] if self.kept_ids is None else self.kept_ids.shape[1]

    def route(self, num_routed: int) -> None:
        """
        Open a routing window: uniformly random ones of the kept tokens of each image go on, the rest waits.

        Args:
            num_routed (`int`): How many go on.
        """
        images, device = self.states.shape[0], self.states.device
        noise = draw_for_images(lambda count: torch.rand(count, self.num_kept, device=device), images)
        chosen = noise.topk(num_routed, dim=1, sorted=False).indices
        self.routed_ids = chosen if self.kept_ids is None else self.kept_ids.gather(1, chosen)

    def rejoin(self) -> None:
        """Close the routing window: the tokens that waited are put back unchanged."""
        self.routed_ids = None


def draw_routing_window(
    num_layers: int, window: tuple[int, int] | None = None, probability: float = 1.0
) -> tuple[int | None, int | None]:
    """
    The layers after which random routing begins and ends in a training forward pass. The draws come from torch's
    global CPU generator, so that a seed repeats them and a checkpoint's random state resumes them, without waiting for
    an accelerator.

    Args:
        num_layers (`int`): Depth L of the model.
        window (`tuple[int, int]`, *optional*): Always these; by default they are drawn anew for every pass.
        probability (`float`, *optional*, defaults to 1.0): Of the pass being routed at all.

    Returns:
        `tuple`: (l, n), or `None`s where nothing is routed.
    """
    if probability < 1 and torch.rand(()).item() >= probability:
        return None, None
    return window or sample_routing_window(num_layers)


def sample_routing_window(num_layers: int) -> tuple[int, int]:
    """
    Draw the layers that routed tokens skip: after layer l ~ U{2..L/2}, up to and with layer n ~ U{l+1..L-2}, once per
    forward pass for the whole batch (Reg4Pru, arXiv 2602.02163).

    Args:
        num_layers (`int`): Depth L of the model.

    Returns:
        `tuple[int, int]`: (l, n).
    """
    earliest, latest = routing_window_range(num_layers)
    start = int(torch.randint(earliest, latest + 1, ()))
    end = int(torch.randint(start + 1, num_layers - 1, ()))
    return start, end


def routing_window_range(num_layers: int) -> tuple[int, int]:
    """
    Smallest and largest layer after which a sampled routing window may begin: 2 and L/2. Below 6 layers the range
    shrinks so that a window l < n <= L - 2 still fits.

    Raises:
        `ValueError`: if the model has fewer than 3 layers, where no window fits.
    """
    latest = min(num_layers // 2, num_layers - 3)
    if latest < 0:
        raise ValueError(
            f"`num_hidden_layers` is {num_layers}: random token routing needs at least 3 layers. "
            "Set `routing=False` or use a deeper model."
        )
    return min(2, latest), latest
