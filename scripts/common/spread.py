"""Which of many are shown or measured where all would be too many."""

import numpy as np


def spread(count: int, wanted: int | None) -> list[int]:
    """Up to `wanted` evenly spaced indices below `count`, or all: neighbours in a film or of one camera are alike."""
    return np.linspace(0, count - 1, min(count, wanted or count)).round().astype(int).tolist()
