"""The ways of training that tests go through, as fields of the configuration, and what makes corrections felt."""

import torch

VARIANTS = {
    "dense": {"train_pruning": "none", "routing": False},
    "soft": {"train_pruning": "soft", "routing": False},
    "soft-routing": {"train_pruning": "soft"},
    "hard": {"train_pruning": "hard", "routing": False},
    "learned-query": {"selector": "learned_query", "train_pruning": "hard", "routing": False},
    "half-routed": {"selector": "learned_query", "train_pruning": "hard", "routing_probability": 0.5},
    # Of the recipes on pretrained backbones, which distil, too.
    "default": {
        "selector": "foreground_mlp",
        "train_pruning": "hard",
        "routing": False,
        "drift_correction": True,
    },
}


def give_corrections_weights(model: torch.nn.Module, std: float = 1.0) -> None:
    """Drift corrections begin as zero, and nothing comes through them."""
    for correction in model.drift_corrections:
        torch.nn.init.normal_(correction.fc2.weight, std=std)
