"""The images that flags ask for."""

import datasets

from datasets_fives import load_segmentation

from .arguments import DatasetArguments


def read_classes_flag(classes: list[str] | None) -> list[str] | str | None:
    """What `--classes` asks for: names, or the one file that holds them."""
    return classes[0] if classes is not None and len(classes) == 1 else classes


def load_sides(
    arguments: DatasetArguments, seed: int, streaming: bool = False, validation_fraction: float = 0.1
) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """
    Images by side (`train`, `validation`, `test`), with their fingerprints.

    Args:
        arguments (`DatasetArguments`): Source, split, sizes.
        seed (`int`): Of the split, and of synthetic images.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read the images while they download.
        validation_fraction (`float`, *optional*, defaults to 0.1): Fraction of the training images that validate where
            no published part of the data set does.

    Raises:
        `ValueError`: if there is no such source or split.
    """
    return load_segmentation(
        arguments.dataset,
        classes=read_classes_flag(arguments.classes),
        ignore_value=arguments.ignore_value,
        reduce_labels=arguments.reduce_labels or None,
        split=arguments.split,
        seed=seed,
        validation_fraction=validation_fraction,
        working_size=arguments.working_size,
        condition_pattern=arguments.condition_pattern,
        group_pattern=arguments.group_pattern,
        vessel_labels=arguments.vessel_labels,
        revision=arguments.dataset_revision or None,
        streaming=streaming,
        synthetic_counts=tuple(arguments.synthetic_counts),
        fingerprints=True,
    )
