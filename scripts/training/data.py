"""The photographs of a training, by side, as its arguments want them."""

import datasets
import numpy as np

from datasets_fives import load_vessels
from datasets_fives.masks import check_foreground
from datasets_fives.samples import hold_in_memory
from datasets_fives.tiling import cut_into_tiles

from .arguments import DataArguments


def load_data(arguments: DataArguments, seed: int) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """
    Photographs by side (`train`, `validation`, `test`), those to train on in tiles where the recipe wants tiles. Under
    `--streaming` the training side is a stream, and the photographs of the validation side are held in memory.

    Args:
        arguments (`DataArguments`): Source, split, sizes.
        seed (`int`): Of the split, and of synthetic photographs.

    Raises:
        `ValueError`: if the source or the split does not exist, or there is nothing to train on.
    """
    sides = load_vessels(
        arguments.dataset,
        split=arguments.split,
        seed=seed,
        photograph_size=arguments.photograph_size,
        condition_pattern=arguments.condition_pattern,
        vessel_labels=arguments.vessel_labels,
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
    if arguments.tile_size:
        sides["train"] = cut_into_tiles(sides["train"], arguments.tile_size)
    return dict(sides)
