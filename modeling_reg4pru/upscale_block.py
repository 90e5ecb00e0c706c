"""EoMT's scale block, with its transposed convolutions computed as what they are: linear layers of a position each."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import EomtDinov3ScaleLayer


class Reg4PruScaleLayer(EomtDinov3ScaleLayer):
    """
    EoMT's scale layer, with its weights and its numbers. A transposed convolution whose stride is its kernel gives
    every position a block of its own, so that it is a matrix product. On a CPU the backward pass of the convolution
    takes about twice as long, and ONNX Runtime computes the product in 8 bits like every linear layer.
    """

    def matrix(self) -> torch.Tensor:
        """The transposed convolution as a matrix, `(4 * hidden_size, hidden_size)`: a copy of its weights."""
        return self.conv1.weight.permute(2, 3, 1, 0).flatten(0, 2)

    def forward(self, hidden_states: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """
        From `(batch, hidden_size, rows, columns)` to `(batch, hidden_size, 2 * rows, 2 * columns)`; `matrix` is what
        [`~Reg4PruScaleLayer.matrix`] gives.
        """
        batch, channels, rows, columns = hidden_states.shape
        blocks = F.linear(hidden_states.permute(0, 2, 3, 1), matrix, self.conv1.bias.repeat(4))
        blocks = self.activation(blocks).view(batch, rows, columns, 2, 2, channels)
        upscaled = blocks.transpose(2, 3).reshape(batch, 2 * rows, 2 * columns, channels)
        return self.layernorm2d(self.conv2(upscaled.permute(0, 3, 1, 2)))


class Reg4PruScaleBlock(nn.Module):
    """EoMT's scale block, of [`Reg4PruScaleLayer`]."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.block = nn.ModuleList(Reg4PruScaleLayer(config) for _ in range(config.num_upscale_blocks))

    def forward(self, hidden_states: torch.Tensor, matrices: list[torch.Tensor] | None = None) -> torch.Tensor:
        """
        From `(batch, hidden_size, rows, columns)`, rows and columns times `2 ** num_upscale_blocks`. Whoever calls it
        many times gives one list, which the first call fills with the matrices of the layers.
        """
        matrices = [] if matrices is None else matrices
        if not matrices:  # here, as hooks may bring the weights to this device before each call
            matrices.extend(layer.matrix() for layer in self.block)
        for layer, matrix in zip(self.block, matrices, strict=True):
            hidden_states = layer(hidden_states, matrix)
        return hidden_states
