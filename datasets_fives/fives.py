"""load_fives: the rows of FIVES, and nothing else."""

from pathlib import Path

from datasets import DatasetDict, IterableDatasetDict

from .features import CONDITIONS
from .loading import load_vessels


def load_fives(source: str | Path, **kwargs) -> DatasetDict | IterableDatasetDict:
    """
    [`load_vessels`] for FIVES: the archive, a copy on the Hub, what this project saves, or synthetic images like it.

    `name` is `"<published split>/<n>_<condition>"`, and `condition` A (age-related macular degeneration), D (diabetic
    retinopathy), G (glaucoma) or N (normal).

    Args:
        source (`str` or `Path`): See [`load_vessels`].
        kwargs: Those of [`load_vessels`].

    Raises:
        ValueError: See [`load_vessels`]; also if the source has other conditions than FIVES.
    """
    splits = load_vessels(source, **kwargs)
    names = next(iter(splits.values())).features["condition"].names
    if names != list(CONDITIONS):
        raise ValueError(f"{source} has the conditions {', '.join(names)}, so it is not FIVES: use load_vessels.")
    return splits
