"""Large photographs in pieces to train on; only ever after splitting."""

import numpy as np
from datasets import Dataset

from .pixels import encode_png


def cut_into_tiles(dataset: Dataset, tile_size: int, stride: int | None = None) -> Dataset:
    """
    Cut photographs and masks into square tiles; only ever after splitting, so that no photograph is on two sides.

    Args:
        dataset (`Dataset`): Rows as [`load_fives`] gives them.
        tile_size (`int`): Side of the tiles; half of the photograph's side gives its quadrants.
        stride (`int`, *optional*, defaults to `tile_size`):
            Distance of neighbouring tiles. The last ones are shifted inwards where they would not fit.

    Returns:
        `Dataset`: A row per tile, named `"<name>#<row>-<column>"`.

    Raises:
        ValueError: If the tile size or the stride is wrong, or a photograph is smaller than a tile.
    """
    stride = tile_size if stride is None else stride
    _check_tiles(tile_size, tile_size - stride)
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
    if min(image.size) < tile_size:
        raise ValueError(f"{name} has {image.size} pixels (width, height), less than a tile of {tile_size}.")
    masks = {key: np.asarray(batch[key][0]) for key in ("mask", "field_of_view") if key in batch}
    tops, lefts = (_starts(length, tile_size, stride) for length in masks["mask"].shape)
    rows: dict[str, list] = {key: [] for key in batch}
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            rows["image"].append(encode_png(image.crop((left, top, left + tile_size, top + tile_size))))
            for key, pixels in masks.items():
                rows[key].append(encode_png(pixels[top : top + tile_size, left : left + tile_size]))
            rows["name"].append(f"{name}#{row}-{column}")
            for key in batch.keys() - {"image", "name", *masks}:
                rows[key] += batch[key]
    return rows


def _starts(length: int, tile: int, stride: int) -> list[int]:
    last = max(0, length - tile)
    return [*range(0, last, stride), last]


def _check_tiles(tile: int, overlap: int) -> None:
    if tile < 1:
        raise ValueError(f"The side of a tile must be at least 1, got {tile}.")
    if not 0 <= overlap < tile:
        raise ValueError(f"Neighbouring tiles of side {tile} may share 0 to {tile - 1} pixels, got {overlap}.")
