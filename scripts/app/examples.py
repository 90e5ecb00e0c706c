"""Images to begin with: drawn by the synthetic generator, so no patient and no burned-in characters."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets_fives.sources.synthetic import draw_image

SIDE = 512
_NAMES = {"N": "healthy", "D": "diabetic", "A": "macular", "G": "glaucoma"}
_SEED = 20260  # images of the demo's training have seed 0


class Example(NamedTuple):
    """An image with its true mask `(height, width)`, `bool`."""

    name: str
    image: Image.Image
    mask: np.ndarray


def draw_examples(side: int = SIDE) -> list[Example]:
    """One example of each condition, `side` pixels a side."""
    examples = []
    for index, (condition, name) in enumerate(_NAMES.items()):
        pixels, mask = draw_image(side, condition, np.random.SeedSequence((_SEED, index)))
        examples.append(Example(name, Image.fromarray(pixels), mask > 0))
    return examples
