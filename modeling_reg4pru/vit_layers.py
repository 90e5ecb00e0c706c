"""The plain ViT underneath: embeddings with rotary or learned positions, and a layer that takes a policy."""

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
        """States `(batch, num_tokens, hidden_size)` to states; `cos` and `sin` belong to the last of the tokens."""
        rope = None if cos is None else (cos, sin)
        attention = {"policy": policy, "query_mask": query_mask, "tile_lengths": tile_lengths}
        return super().forward(hidden_states, None, rope, **attention, **kwargs)
