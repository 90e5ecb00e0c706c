"""The operations that the benchmark states, against those that torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from reg4pru.benchmarking.baselines import model_config, variant_config
from reg4pru.benchmarking.flops import forward_flops, token_counts

CONFIGURATIONS = [
    {"keep_rates": 1.0},
    {"keep_rates": 0.7},
    {"keep_rates": 0.3, "selection_pool": "all"},
    {"keep_rates": [1.0, 0.5, 1.0], "reactivation_layer": 5},
    {"keep_rates": [0.999, 0.5, 0.7], "selection_pool": "all"},
    {"keep_rates": 0.5, "pruning_layers": [0, 1], "reactivation_layer": 2, "selector": "learned_query"}
    | {"train_pruning": "hard"},
    {"keep_rates": 0.5, "selector": "random", "train_pruning": "hard", "use_gated_mlp": True},
    {"keep_rates": 0.6, "num_queries": 5, "num_labels": 4, "num_upscale_blocks": 2},
    {"keep_rates": [0.5, 1.0, 0.5], "drift_correction": True, "train_pruning": "hard"},
    {"keep_rates": 0.5, "drift_correction": True, "train_pruning": "hard", "selection_pool": "all"},
    {"pruning_layers": [], "keep_rates": 1.0, "drift_correction": True, "train_pruning": "hard"},
    {"pruning_layers": [], "keep_rates": 1.0},
    {"keep_rates": [1.0, 0.5, 0.7], "context_grid": 3},
    {"keep_rates": 0.5, "context_grid": 3, "positions": "learned"},
    {"keep_rates": 1.0, "context_grid": 3},
]


@pytest.mark.parametrize("fields", CONFIGURATIONS)
@torch.no_grad()
def test_formula_agrees_with_the_counter(tiny_model, fields):
    model = tiny_model(**fields)
    model.set_attn_implementation("eager")  # the counter does not know the fused kernel of CPUs
    with FlopCounterMode(display=False) as counter:
        outputs = model(torch.randn(2, 3, 64, 64))
    flops = forward_flops(model.config, (8, 8), batch_size=2)
    assert token_counts(model.config, 64) == list(outputs.token_counts.tolist())
    assert counter.get_total_flops() == sum(flops.values())


def test_sizes_of_the_literature(tiny_config):
    """ViT-S/16 with EoMT's heads at 1024 px: 511 GFLOPs dense, 1.62 and 1.80 times fewer after L-2 and L-1."""
    config = variant_config(model_config("small", 1024), drift_correction=False)
    dense = sum(forward_flops(variant_config(config, keep_rates=1.0), (64, 64)).values())
    assert dense / 1e9 == pytest.approx(511, abs=1)
    for layer, rate, allowed in ((10, 0.7, 1.62), (11, 0.7, 1.80), (10, 0.5, 2.02)):
        pruned = variant_config(config, keep_rates=rate, reactivation_layer=layer)
        assert dense / sum(forward_flops(pruned, (64, 64)).values()) == pytest.approx(allowed, abs=0.03)
