"""The stream of training samples: seeded per sample, resumable at any step."""

from collections.abc import Iterator
from itertools import islice

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

from .features import FEATURES
from .images import encode_png
from .masks import IGNORED
from .transforms import TrainTransform, cut_box

# What a derived seed is for: the draws of one are not those of another.
SAMPLE, ORDER, STEP = range(3)
# Images that a stream holds to draw from: 16 of 2048 x 2048 are 80 MB.
SHUFFLE_BUFFER = 16


def derived_seed(seed: int, *key: int) -> int:
    """
    A seed for one of many draws that have to repeat, below 2³², by NumPy's `SeedSequence`.

    Args:
        seed (`int`): Seed of the whole run, at least 0.
        key (`int`): What the draw is for ([`SAMPLE`], [`ORDER`], [`STEP`]), and which one it is.
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])


def hold_in_memory(rows: datasets.IterableDataset) -> datasets.Dataset:
    """All images of a stream, encoded as their files are."""
    return datasets.Dataset.from_list(list(_undecoded(rows)), features=rows.features)


def _undecoded(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    return rows.cast_column("image", datasets.Image(decode=False)).cast_column("mask", datasets.Image(decode=False))


def count_rows(rows: datasets.Dataset | datasets.IterableDataset) -> int:
    """Number of images, of a stream as well."""
    if isinstance(rows, datasets.IterableDataset):
        (split,) = rows.info.splits.values()
        return split.num_examples
    return len(rows)


class SeededSamples(Dataset):
    """
    Training samples addressed by (epoch, row): all randomness of a sample follows from (seed, epoch, row), whichever
    process prepares it and wherever a run was resumed.
    """

    def __init__(self, rows: datasets.Dataset, transform: TrainTransform, seed: int):
        self.rows, self.transform, self.seed = rows, transform, seed

    def __getitem__(self, address: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, row = address
        return _seeded(self.transform, self.rows[row : row + 1], derived_seed(self.seed, SAMPLE, epoch, row))


def _seeded(transform: TrainTransform, batch: dict[str, list], seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sample = transform(batch)
    return {"pixel_values": sample["pixel_values"][0], "labels": sample["labels"][0]}


class StreamedSamples(IterableDataset):
    """
    Training samples of images that are read while they download. The order follows from the seed and the size of
    the shuffle buffer, the randomness of a sample from the seed and its position; a resumed run skips what it has seen
    already, neither decoding nor augmenting it.

    Args:
        rows (`datasets.IterableDataset`): Images, from `load_vessels(..., streaming=True)`.
        transform (`TrainTransform`): Makes a sample of an image.
        total (`int`): Samples of the whole training.
        start (`int`): Samples that a resumed run has already seen.
        seed (`int`): Seed of order and samples.
    """

    def __init__(self, rows: datasets.IterableDataset, transform: TrainTransform, total: int, start: int, seed: int):
        super().__init__()
        self.rows, self.transform = rows, transform
        self.total, self.start, self.seed = total, start, seed

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for position, row in enumerate(self._read(self.start, self.total), self.start):
            images = {name: [FEATURES[name].decode_example(row[name])] for name in ("image", "mask")}
            yield _seeded(self.transform, images, derived_seed(self.seed, SAMPLE, position))

    def names(self, positions: range) -> list[str]:
        """Names of the images of some samples of the training; the stream is read again up to there."""
        return [row["name"] for row in self._read(positions.start, positions.stop)]

    def _read(self, position: int, stop: int) -> Iterator[dict]:
        count = count_rows(self.rows)
        shuffled = _undecoded(self.rows).shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER)
        while position < stop:
            epoch, seen = divmod(position, count)
            shuffled.set_epoch(epoch)
            for row in islice(shuffled, seen, min(count, seen + stop - position)):
                yield row
                position += 1
            if position % count and position < stop:
                raise ValueError(f"The stream ended after {position % count} of {count} images.")


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
        per_epoch = self.num_rows * self.visits
        for position in range(self.start, self.total):
            epoch, place = divmod(position, per_epoch)
            if place == 0 or position == self.start:
                order = epoch_order(self.num_rows, self.visits, epoch, self.seed)
            yield order[place]

    def rows(self, positions: range) -> list[int]:
        """The rows of some samples of the training."""
        again = ResumableSampler(self.num_rows, self.visits, positions.stop, positions.start, self.seed)
        return [row for _, row in again]


def epoch_order(num_rows: int, visits: int, epoch: int, seed: int) -> list[tuple[int, int]]:
    """Addresses of all samples of an epoch, `num_rows * visits`, in an order that follows from the seed."""
    generator = torch.Generator().manual_seed(derived_seed(seed, ORDER, epoch))
    drawn = torch.randperm(num_rows * visits, generator=generator).tolist()
    return [(epoch * visits + visit, row) for visit, row in (divmod(place, num_rows) for place in drawn)]


def cut_into_tiles(dataset: datasets.Dataset, tile_size: int, stride: int | None = None) -> datasets.Dataset:
    """
    Cut images and masks into square tiles; only ever after splitting, so that no image is in two splits. Where a tile
    reaches beyond its image, pixels are mirrored and labels are 255, as at inference.

    Args:
        dataset (`Dataset`): Rows as [`~datasets_fives.load_segmentation`] returns them.
        tile_size (`int`): Side of the tiles; half of the image's side gives its quadrants.
        stride (`int`, *optional*, defaults to `tile_size`):
            Distance of neighbouring tiles. The last ones are shifted inwards where they would not fit.

    Returns:
        `Dataset`: A row per tile, named `"<name>#<row>-<column>"`.

    Raises:
        ValueError: If the tile size or the stride is wrong.
    """
    stride = tile_size if stride is None else stride
    if tile_size < 1:
        raise ValueError(f"The side of a tile must be at least 1, got {tile_size}.")
    if not 0 < stride <= tile_size:
        overlap = tile_size - stride
        raise ValueError(
            f"Neighbouring tiles of side {tile_size} may share 0 to {tile_size - 1} pixels, got {overlap}."
        )
    return dataset.map(
        _cut,
        batched=True,
        batch_size=1,
        writer_batch_size=64,
        fn_kwargs={"tile_size": tile_size, "stride": stride},
        features=dataset.features,
        desc="Cutting tiles",
    )


def _cut(batch: dict[str, list], tile_size: int, stride: int) -> dict[str, list]:
    (image,), (name,) = batch["image"], batch["name"]
    mask = np.asarray(batch["mask"][0])
    tops, lefts = (_starts(length, tile_size, stride) for length in mask.shape)
    rows: dict[str, list] = {key: [] for key in batch}
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            tile, labels = cut_box(image, mask, left, top, tile_size)
            own = {"image": encode_png(tile), "mask": encode_png(labels), "name": f"{name}#{row}-{column}"}
            if "field_of_view" in batch:
                _, inside = cut_box(image, np.asarray(batch["field_of_view"][0]), left, top, tile_size)
                own["field_of_view"] = encode_png(np.where(inside == IGNORED, 0, inside).astype(np.uint8))
            if "classes" in batch:
                own["classes"] = np.unique(labels[labels != IGNORED]).tolist()
            for key in batch:
                rows[key].append(own[key] if key in own else batch[key][0])
    return rows


def _starts(length: int, tile: int, stride: int) -> list[int]:
    last = max(0, length - tile)
    return [*range(0, last, stride), last]
