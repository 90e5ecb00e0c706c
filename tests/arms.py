"""The ways of training that the tests of several processes go through, as fields of the configuration."""

ARMS = {
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
