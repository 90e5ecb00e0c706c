"""Masks from queries and upscaled features, as a whole and in bands."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import EomtDinov3ScaleBlock

from modeling_reg4pru import segmentation_head
from modeling_reg4pru.segmentation_head import query_masks
from modeling_reg4pru.upscale_block import Reg4PruScaleBlock


class Upscale(Reg4PruScaleBlock):
    """One which notes the shapes that it is given; biases and norms are as far from zero as in a trained one."""

    def __init__(self, num_blocks):
        super().__init__(SimpleNamespace(hidden_size=8, num_upscale_blocks=num_blocks, hidden_act="gelu"))
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter)
        self.shapes = []

    def forward(self, hidden_states, matrices=None):
        self.shapes.append(tuple(hidden_states.shape))
        return super().forward(hidden_states, matrices)


@pytest.fixture
def features():
    return torch.randn(3, 8, 7, 5), torch.randn(3, 2, 8)


def test_the_scale_block_is_that_of_eomt(features):
    ours = Upscale(2)
    eomt = EomtDinov3ScaleBlock(SimpleNamespace(hidden_size=8, num_upscale_blocks=2, hidden_act="gelu"))
    eomt.load_state_dict(ours.state_dict())
    results = []
    for block in (ours, eomt):
        states = features[0].clone().requires_grad_()
        upscaled = block(states)
        results.append([upscaled, *torch.autograd.grad(upscaled.square().mean(), [states, *block.parameters()])])
    assert results[0][0].shape == (3, 8, 28, 20)
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_blocks", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [1, 3, 7, 17])
def test_masks_by_bands_equal_masks_at_once(monkeypatch, features, num_blocks, rows):
    features, queries = features
    upscale = Upscale(num_blocks)
    monkeypatch.setattr(segmentation_head, "BAND_BYTES", rows * 4**num_blocks * 5 * 8 * 4)
    whole = query_masks(queries, features, upscale)  # with gradients
    assert upscale.shapes == [(3, 8, 7, 5)]
    with torch.inference_mode():
        banded = query_masks(queries, features, upscale)
    torch.testing.assert_close(banded, whole.detach(), atol=1e-5, rtol=1e-5)
    heights = {1: [2, 3, 3, 3, 3, 3, 2], 3: [4, 5, 2], 7: [7], 17: [7]}[rows]
    images = [2, 1] if rows == 17 else [1, 1, 1]
    assert upscale.shapes[1:] == [(count, 8, height, 5) for count in images for height in heights]


def test_masks_are_computed_at_once_in_training_and_when_compiled(monkeypatch, features):
    features, queries = features
    upscale = Upscale(1)
    monkeypatch.setattr(segmentation_head, "BAND_BYTES", 1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.inference_mode():
        query_masks(queries, features, upscale)
    assert upscale.shapes == [(3, 8, 7, 5)]
