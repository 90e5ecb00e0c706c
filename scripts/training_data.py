"""The stream of training samples: seeded per sample, resumable at any step."""

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import torch
import yaml
from torch.utils.data import Dataset, Sampler

from datasets_fives import load_fives
from datasets_fives.tiling import cut_into_tiles
from datasets_fives.transforms import TrainTransform

from arguments import DataArguments  # isort: skip


def load_data(arguments: DataArguments, input_size: int, seed: int) -> datasets.DatasetDict:
    """Photographs by side (`train`, `validation`, `test`), cut into tiles where the recipe wants tiles."""
    split: str | dict = arguments.dataset_split
    if split.endswith((".yaml", ".yml", ".json")):
        split = yaml.safe_load(Path(split).read_text())
    sides = load_fives(
        arguments.dataset,
        split=split,
        seed=seed,
        image_size=arguments.photograph_size,
        revision=arguments.dataset_revision or None,
        synthetic_counts=tuple(arguments.synthetic_counts),
    )
    if "train" not in sides:
        raise ValueError(f"The data set {arguments.dataset} has no training photographs under split {split!r}.")
    # Validation sees what the model can take in at once: tiles where training sees tiles or crops.
    tile = input_size if arguments.random_crop else arguments.tile_size
    return datasets.DatasetDict(
        {
            side: cut_into_tiles(rows, tile)
            if tile and (side == "validation" or (side == "train" and arguments.tile_size))
            else rows
            for side, rows in sides.items()
        }
    )


class SeededSamples(Dataset):
    """
    Training samples addressed by (epoch, row): all randomness of a sample follows from (seed, epoch, row), whichever
    process prepares it and wherever a run was resumed.
    """

    def __init__(self, rows: datasets.Dataset, transform: TrainTransform, seed: int):
        self.rows, self.transform, self.seed = rows, transform, seed

    def __getitem__(self, address: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, row = address
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, epoch, row)) % 2**63)
            sample = self.transform(self.rows[row : row + 1])
        return {"pixel_values": sample["pixel_values"][0], "labels": sample["labels"][0]}


class ResumableSampler(Sampler):
    """
    Addresses (epoch, row) of `total` samples in an order that follows from the seed, beginning at any of them.

    Args:
        num_rows (`int`): Rows of the data set.
        visits (`int`): How often an epoch visits each row.
        total (`int`): Samples of the whole training.
        start (`int`): Samples that a resumed run has already seen.
        seed (`int`): Seed of the order.
    """

    def __init__(self, num_rows: int, visits: int, total: int, start: int, seed: int):
        self.num_rows, self.visits, self.total, self.start, self.seed = num_rows, visits, total, start, seed

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        permutation: Callable | None = None
        known_epoch = -1
        for position in range(self.start, self.total):
            epoch, place = divmod(position, self.num_rows * self.visits)
            if epoch != known_epoch:
                generator = torch.Generator().manual_seed(hash((self.seed, epoch)) % 2**63)
                permutation = torch.randperm(self.num_rows * self.visits, generator=generator)
                known_epoch = epoch
            visit, row = divmod(int(permutation[place]), self.num_rows)
            yield epoch * self.visits + visit, row
