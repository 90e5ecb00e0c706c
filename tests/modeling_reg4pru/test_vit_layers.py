"""A layer computes many sequences in parts; the numbers do not tell."""

import pytest
import torch

from modeling_reg4pru import vit_layers
from modeling_reg4pru.vit_layers import split_sequences


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("lengths", [None, [20, 3, 3, 30, 8, 40]], ids=["batch", "packed"])
def test_parts_are_what_the_whole_is(tiny_model, monkeypatch, positions, lengths):
    model = tiny_model(positions=positions)
    layer, config = model.layers[0], model.config
    shape = (5, 30) if lengths is None else (1, sum(lengths))
    states = torch.randn(*shape, config.hidden_size, generator=torch.Generator().manual_seed(0))
    tables = [None, None]
    if positions == "rotary":
        turns = (1, 1, shape[1]) if lengths else (shape[0], 1, shape[1] - config.num_prefix_tokens)
        angle = torch.randn(*turns, layer.attention.head_dim, generator=torch.Generator().manual_seed(1))
        tables = [angle.cos(), angle.sin()]
    calls = []
    layer.mlp.register_forward_hook(lambda module, inputs, output: calls.append(output.shape[:2]))

    with torch.no_grad():
        whole = layer(states, *tables, tile_lengths=lengths)
        monkeypatch.setattr(vit_layers, "PART_BYTES", 60 * config.intermediate_size * 4)  # 60 tokens
        parts = layer(states, *tables, tile_lengths=lengths)

    assert calls == [shape, *([(2, 30), (2, 30), (1, 30)] if lengths is None else [(1, 56), (1, 48)])]
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


def test_a_sequence_longer_than_a_part_is_one():
    states = torch.zeros(1, 30, 2)
    assert [(part.shape[1], lengths) for part, _, lengths in split_sequences(states, None, [9, 20, 1], 5)] == [
        (9, [9]),
        (20, [20]),
        (1, [1]),
    ]
    assert len(list(split_sequences(torch.zeros(3, 30, 2), None, None, 5))) == 3
