"""The plain ViT underneath: embeddings with rotary or learned positions, and a layer that takes a policy."""

from collections.abc import Iterator
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import (
    EomtDinov3Embeddings,
    EomtDinov3Layer,
    EomtDinov3RotaryEmbedding,
)

from .configuration_reg4pru import Reg4PruConfig
from .policy_attention import Reg4PruAttention

# Of the widest activations of a layer. Larger ones do not stay in the caches of a CPU, and above some 32 MiB its
# allocator takes memory from the system and gives it back, page by page, at every call.
PART_BYTES = 1 << 24


class Reg4PruEmbeddings(EomtDinov3Embeddings):
    """
    [`EomtDinov3Embeddings`] and, where the configuration says so, learned positions.

    Modifications: a table of positions (`position_embeddings`, the name that EoMT on DINOv2 gives it) is added to the
    patches only: the entry that other ViTs have for their CLS token is part of `cls_token` here. No mask token.
    """

    def __init__(self, config: Reg4PruConfig):
        super().__init__(config)
        self.register_parameter("mask_token", None)
        self.position_embeddings = None
        if config.positions == "learned":
            rows, columns = config.position_grid
            self.position_embeddings = nn.Embedding(rows * columns, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images `(batch, channels, height, width)` to prefix and patch tokens `(batch, num_tokens, hidden_size)`."""
        tokens = super().forward(pixel_values)
        if self.position_embeddings is None:
            return tokens
        patch_size = self.config.patch_size
        grid_size = (pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size)
        prefix, patches = tokens.tensor_split((self.num_prefix_tokens,), dim=1)
        return torch.cat((prefix, patches + self.positions(grid_size).to(patches.dtype)), dim=1)

    def positions(self, grid_size: tuple[int, int]) -> torch.Tensor:
        """The table `(1, num_patches, hidden_size)` for a grid, interpolated (bicubic) if it is another one."""
        table = self.position_embeddings.weight
        if tuple(self.config.position_grid) == grid_size:
            return table[None]
        grid = table.float().T.unflatten(1, tuple(self.config.position_grid))[None]
        return (
            F.interpolate(
                grid, size=grid_size, mode="bicubic", align_corners=False, antialias=self.config.position_antialias
            )
            .flatten(2)
            .transpose(1, 2)
        )


class Reg4PruRotaryEmbedding(EomtDinov3RotaryEmbedding):
    """[`EomtDinov3RotaryEmbedding`]; for learned positions there is nothing to rotate."""

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Cos and sin of the patches, `(num_patches, head_dim)` each, or `None`."""
        return super().forward(pixel_values) if self.config.positions == "rotary" else None


class Reg4PruLayer(EomtDinov3Layer):
    """[`EomtDinov3Layer`] with [`Reg4PruAttention`], and positional tensors, as gradient checkpointing wants them."""

    def __init__(self, config: Reg4PruConfig):
        super().__init__(config)
        self.config = config
        self.attention = Reg4PruAttention(config)
        if config.use_gated_mlp and config.positions == "learned":
            self.mlp.act_fn = ACT2FN["silu"]  # DINOv2's, whatever activation EoMT's heads have

    def forward(
        self,
        hidden_states: torch.Tensor,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        policy: torch.Tensor | None = None,
        query_mask: torch.Tensor | None = None,
        tile_lengths: list[int] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        States `(batch, num_tokens, hidden_size)` to states; `cos` and `sin` belong to the last of the tokens. Of many
        sequences a CPU computes some at a time at inference: the same numbers in less time.
        """
        rope = None if cos is None else (cos, sin)
        if policy is not None or query_mask is not None or not self._computes_in_parts(hidden_states):
            attention = {"policy": policy, "query_mask": query_mask, "tile_lengths": tile_lengths}
            return super().forward(hidden_states, None, rope, **attention, **kwargs)
        at_once = PART_BYTES // (self.config.intermediate_size * hidden_states.element_size())
        parts = [
            super(Reg4PruLayer, self).forward(states, None, positions, tile_lengths=lengths, **kwargs)
            for states, positions, lengths in split_sequences(hidden_states, rope, tile_lengths, at_once)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=0 if tile_lengths is None else 1)

    def _computes_in_parts(self, states: torch.Tensor) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return False
        # Eager attention returns its weights, which whoever asks for them gets from a single call.
        return states.device.type == "cpu" and self.config._attn_implementation != "eager"


def split_sequences(
    states: torch.Tensor,
    rope: tuple[torch.Tensor, torch.Tensor] | None,
    tile_lengths: list[int] | None,
    at_once: int,
) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None, list[int] | None]]:
    """
    Several sequences in parts: of each as many as have no more than so many tokens together, or one that has more.

    Args:
        states (`torch.Tensor` of shape `(batch, num_tokens, hidden_size)`): The sequences; or a batch of 1, into which
            they are packed.
        rope (`tuple`, *optional*): Rotary cos and sin, `(num_patches, head_dim)` for every sequence, or
            `(batch, 1, num_patches, head_dim)`.
        tile_lengths (`list[int]`, *optional*): Tokens of each of the packed sequences.
        at_once (`int`): Tokens of a part.

    Yields:
        `tuple`: these three of a part.
    """
    if tile_lengths is None:
        count = max(1, at_once // states.shape[1])
        shared = rope is None or rope[0].ndim == 2
        ropes = repeat(rope) if shared else zip(*(table.split(count) for table in rope), strict=True)
        yield from zip(states.split(count), ropes, repeat(None))
        return
    parts = [[]]
    for length in tile_lengths:
        if parts[-1] and sum(parts[-1]) + length > at_once:
            parts.append([])
        parts[-1].append(length)
    sizes = [sum(part) for part in parts]
    ropes = repeat(None) if rope is None else zip(*(table.split(sizes, dim=2) for table in rope), strict=True)
    yield from zip(states.split(sizes, dim=1), ropes, parts)  # noqa: B905
