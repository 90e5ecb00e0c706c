"""What the dense model makes of tiles, computed once and kept on disk: what everything is fitted to."""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from tqdm import tqdm

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from ..common.atomic_files import replace_text

PROGRESS = "progress.json"
BATCH = 4


class TileStates:
    """
    States of patch tokens in a dense pass over tiles, as memory-mapped files of float32 in a folder. Killed while they
    are computed, they go on where they stopped.

    Args:
        folder (`Path`): Where they are kept.
        model ([`Reg4PruForSemanticSegmentation`]): With its stages; never pruned here.
        num_tiles (`int`): How many tiles.

    Raises:
        `ValueError`: if the disk has no room for them.

    Attributes:
        stages (`list[np.ndarray]`): After the layer of each stage, `(num_tiles, num_patches, hidden_size)`.
        pixels (`np.ndarray`): The tiles, `(num_tiles, 3, height, width)`.
        reactivated (`np.ndarray`): After the reactivation layer, likewise: what drift corrections guess.
        queries (`np.ndarray`): The query tokens after the last layer, `(num_tiles, num_queries, hidden_size)`.
    """

    def __init__(self, folder: Path, model: Reg4PruForSemanticSegmentation, num_tiles: int):
        config = model.config
        self.folder, self.model, self.num_tiles = folder, model, num_tiles
        self.grid_size = tuple(side // config.patch_size for side in config.input_size)
        patches = (num_tiles, self.grid_size[0] * self.grid_size[1], config.hidden_size)
        shapes = {f"stage-{stage}": patches for stage in range(config.num_stages)}
        shapes |= {
            "pixels": (num_tiles, config.num_channels, *config.input_size),
            "reactivated": patches,
            "queries": (num_tiles, config.num_queries, config.hidden_size),
        }
        folder.mkdir(parents=True, exist_ok=True)
        missing = sum(4 * math.prod(shape) for name, shape in shapes.items() if not (folder / f"{name}.npy").exists())
        if missing > shutil.disk_usage(folder).free:
            raise ValueError(
                f"The states of {num_tiles} tiles take {missing / 1e9:.1f} GB, and {folder} has "
                f"{shutil.disk_usage(folder).free / 1e9:.1f} GB left: lower --num_tiles."
            )
        self.files = {name: self._open(name, shape) for name, shape in shapes.items()}
        self.stages = [self.files[f"stage-{stage}"] for stage in range(config.num_stages)]
        self.pixels, self.reactivated, self.queries = (
            self.files[name] for name in ("pixels", "reactivated", "queries")
        )

    def compute(self, tiles: Iterable[np.ndarray]) -> None:
        """
        Run what is still missing through the dense model.

        Args:
            tiles (iterable of `np.ndarray` of shape `(3, height, width)`): All tiles, normalised, in a fixed order.
        """
        done = self._num_done()
        bar = tqdm(total=self.num_tiles, initial=done, desc="Dense states", unit="tile")
        for first, batch in _batches(tiles, self.num_tiles):
            if first + len(batch) <= done:
                continue
            self._run(first, batch)
            for file in self.files.values():
                file.flush()
            replace_text(self.folder / PROGRESS, json.dumps(first + len(batch)) + "\n")
            bar.update(len(batch))
        bar.close()

    @torch.inference_mode()
    def _run(self, first: int, batch: np.ndarray) -> None:
        config, place = self.model.config, slice(first, first + len(batch))
        self.pixels[place] = batch
        pixel_values = torch.from_numpy(batch).to(self.model.device)
        states = self.model(pixel_values, keep_rates=None, output_hidden_states=True).hidden_states
        num_patches = self.reactivated.shape[1]
        for stage, layer in enumerate(config.pruning_layers):
            self.stages[stage][place] = states[layer + 1][:, -num_patches:].cpu().numpy()
        self.reactivated[place] = states[config.reactivation_layer + 1][:, -num_patches:].cpu().numpy()
        self.queries[place] = states[config.num_hidden_layers][:, : config.num_queries].cpu().numpy()

    def _open(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if path.exists():
            return open_memmap(path, mode="r+")
        return open_memmap(path, mode="w+", dtype=np.float32, shape=shape)

    def _num_done(self) -> int:
        path = self.folder / PROGRESS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0


def _batches(tiles: Iterable[np.ndarray], num_tiles: int) -> Iterator[tuple[int, np.ndarray]]:
    batch: list[np.ndarray] = []
    for number, tile in enumerate(tiles):
        batch.append(tile)
        if len(batch) == BATCH or number + 1 == num_tiles:
            yield number + 1 - len(batch), np.stack(batch)
            batch = []


class SampledTiles:
    """
    Tiles drawn from images, as the image processor cuts them everywhere else.

    Args:
        images (sequence of `PIL.Image.Image`): The images.
        sizes (sequence of `tuple[int, int]`): Their width and height, so that none is read for its size.
        processor ([`Reg4PruImageProcessor`]): Of the model.
        num_tiles (`int`): How many at most, drawn evenly over all tiles of all images.
        seed (`int`): Of the draw.
    """

    def __init__(
        self,
        images: Sequence[Image.Image],
        sizes: Sequence[tuple[int, int]],
        processor: Reg4PruImageProcessor,
        num_tiles: int,
        seed: int,
    ):
        self.images, self.processor = images, processor
        counts = {size: len(processor.cut_image(Image.new("RGB", size))) for size in set(sizes)}
        places = [(image, tile) for image, size in enumerate(sizes) for tile in range(counts[size])]
        order = np.random.default_rng(seed).permutation(len(places))[:num_tiles]
        self.places = sorted(places[place] for place in order)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[np.ndarray]:
        opened, tiles = None, None
        for image, tile in self.places:
            if image != opened:
                opened, tiles = image, self.processor.cut_image(self.images[image])
            yield tiles[tile]
