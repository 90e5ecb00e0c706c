"""The photographs of a training, by side, as its arguments want them."""

import datasets
import numpy as np

from datasets_fives import load_vessels
from datasets_fives.masks import check_foreground
from datasets_fives.samples import hold_in_memory
from datasets_fives.tiling import cut_into_tiles

from .arguments import DataArguments


def load_data(
    arguments: DataArguments, input_size: int, seed: int
) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """
    Photographs by side (`train`, `validation`, `test`), cut into tiles where the recipe wants tiles. Under
    `--streaming` the training side is a stream, and the photographs of the validation side are held in memory.

    Args:
        arguments (`DataArguments`): Source, split, sizes.
        input_size (`int`): Side of the model's input.
        seed (`int`): Of the split, and of synthetic photographs.

    Raises:
        `ValueError`: if the source or the split does not exist, or there is nothing to train on.
    """
    sides = load_vessels(
        arguments.dataset,
        split=arguments.split,
        seed=seed,
        photograph_size=arguments.photograph_size,
        revision=arguments.dataset_revision or None,
        streaming=arguments.streaming,
        synthetic_counts=tuple(arguments.synthetic_counts),
        fingerprints=True,
    )
    if "train" not in sides:
        raise ValueError(
            f"The data set {arguments.dataset} has no training photographs under split {arguments.split!r}."
        )
    if not arguments.streaming:  # of a stream nothing is known ahead
        check_foreground((np.asarray(mask) for mask in sides["train"]["mask"]), f"{arguments.dataset}, side train")
    if arguments.streaming:
        sides = {side: hold_in_memory(rows) if side == "validation" else rows for side, rows in sides.items()}
    # Validation sees what the model can take in at once: tiles where training sees tiles or crops.
    tile = input_size if arguments.random_crop else arguments.tile_size
    return {
        side: cut_into_tiles(rows, tile)
        if tile and (side == "validation" or (side == "train" and arguments.tile_size))
        else rows
        for side, rows in sides.items()
    }
