"""The images that flags ask for."""

import datasets

from datasets_fives import load_vessels

from .arguments import DatasetArguments


def load_sides(
    arguments: DatasetArguments, seed: int, streaming: bool = False
) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """
    Images by side (`train`, `validation`, `test`), with their fingerprints.

    Args:
        arguments (`DatasetArguments`): Source, split, sizes.
        seed (`int`): Of the split, and of synthetic images.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read the images while they download.

    Raises:
        `ValueError`: if there is no such source or split.
    """
    return load_vessels(
        arguments.dataset,
        split=arguments.split,
        seed=seed,
        working_size=arguments.working_size,
        condition_pattern=arguments.condition_pattern,
        vessel_labels=arguments.vessel_labels,
        revision=arguments.dataset_revision or None,
        streaming=streaming,
        synthetic_counts=tuple(arguments.synthetic_counts),
        fingerprints=True,
    )
