"""What the model made of an image, and at what cost."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Prediction:
    """
    What the model made of an image, and at what cost.

    Args:
        labels (`np.ndarray` of shape `(height, width)`): The class of every pixel.
        probability (`np.ndarray` of shape `(height, width)`, `float32`, *optional*): Of two classes: that of the
            second.
        stages (`np.ndarray` of shape `(height, width)`, *optional*): Stage at which the token of a pixel was pruned.
        token_counts (`list[int]`): Tokens that each layer ran on, of one tile; their mean where tiles differ.
        num_tiles (`int`): Tiles of the image.
        seconds (`float`): Wall clock time from the image to the prediction.
    """

    labels: np.ndarray
    probability: np.ndarray | None
    stages: np.ndarray | None
    token_counts: list[int]
    num_tiles: int
    seconds: float
