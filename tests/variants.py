"""The tiny model of the tests, the ways of training that they go through, and what makes corrections felt."""

import torch

# 6 layers, 64 patches, stages 0, 2 and 3, queries before layer 4. The wide initialisation makes tokens differ enough
# for scores and softmaxes to matter.
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
    "num_upscale_blocks": 1,
    "num_blocks": 2,
    "train_num_points": 128,
    "masked_attention": True,
    "pos_embed_rescale": 2.0,
    "initializer_range": 0.15,
}
# Every combination of selector, pruning and routing, as fields of the configuration.
VARIANTS = {
    "dense": {"train_pruning": "none", "routing": False},
    "routing": {"train_pruning": "none", "routing": True},
    "soft": {"train_pruning": "soft", "routing": False},
    "reg4pru": {"train_pruning": "soft", "routing": True},
    "hard": {"train_pruning": "hard", "routing": False},
    "hard_routing": {"train_pruning": "hard", "routing": True},
    "learned_query": {"selector": "learned_query", "train_pruning": "hard", "routing": False},
    "learned_query_routing": {"selector": "learned_query", "train_pruning": "hard", "routing": True},
    "half_routed": {"selector": "learned_query", "train_pruning": "hard", "routing_probability": 0.5},
    "learned_query_dense": {"selector": "learned_query", "train_pruning": "none", "routing": False},
    "foreground_mlp": {"selector": "foreground_mlp", "train_pruning": "hard", "routing": False},
    "random": {"selector": "random", "train_pruning": "hard", "routing": False},
    "corrected": {"train_pruning": "hard", "routing": False, "drift_correction": True},
    "corrected_routing": {"train_pruning": "hard", "routing": True, "drift_correction": True},
    "divergence": {"selector": "divergence", "train_pruning": "hard", "routing": False, "drift_correction": True},
    "context": {"train_pruning": "hard", "routing": False, "drift_correction": True, "context_grid": 4},
    "context_routing": {"selector": "random", "train_pruning": "hard", "routing": True, "context_grid": 4},
    # Of the recipes on pretrained backbones, which distil, too.
    "default": {"selector": "foreground_mlp", "train_pruning": "hard", "routing": False, "drift_correction": True},
}


def give_corrections_weights(model: torch.nn.Module, std: float = 1.0) -> None:
    """Drift corrections begin as zero, and nothing comes through them."""
    for correction in model.drift_corrections:
        torch.nn.init.normal_(correction.fc2.weight, std=std)
