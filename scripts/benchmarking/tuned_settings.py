"""Settings of a checkpoint between which `reg4pru tune` compares, and which of them no other beats."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..common.devices import DTYPES
from .arguments import ENGINES
from .engines import why_not


class Setting(NamedTuple):
    """
    How a checkpoint runs: fields of its configuration, with a keep rate for each stage; the overlap of its tiles in
    pixels; and what computes, one of `DTYPES` (PyTorch) or of `ENGINES`.
    """

    keep_rates: tuple[float, ...]
    reactivation_layer: int
    selection_pool: str
    # Unfinished measurements of before do not tell the rest.
    allocation: str = "tile"
    tile_overlap: int | None = None
    engine: str = "float32"


CONFIG_FIELDS = ("keep_rates", "reactivation_layer", "selection_pool", "allocation")


def settings_to_measure(
    num_stages: int,
    keep_rates: Sequence[float],
    layers: Sequence[int],
    pools: Sequence[str],
    allocations: Sequence[str],
    overlaps: Sequence[int],
    engines: Sequence[str],
) -> list[Setting]:
    """
    One keep rate for all stages, from unpruned down, in every combination of the others; unpruned, where only overlap
    and engine make a difference, once with each of these. Engines but PyTorch know no budget of an image.

    Args:
        num_stages (`int`): Number of pruning stages.
        keep_rates (`Sequence[float]`): Keep rates, 1 among them.
        layers (`Sequence[int]`), pools, allocations (`Sequence[str]`), overlaps (`Sequence[int]`), engines
            (`Sequence[str]`): Values of these fields.
    """
    settings = []
    for engine, overlap in itertools.product(engines, overlaps):
        known = allocations if engine in DTYPES else ["tile"]
        settings.append(Setting((1.0,) * num_stages, layers[0], pools[0], known[0], overlap, engine))
        settings += [
            Setting((rate,) * num_stages, layer, pool, allocation, overlap, engine)
            for rate in sorted(set(keep_rates), reverse=True)
            for layer, pool, allocation in itertools.product(layers, pools, known)
            if rate < 1
        ]
    return settings


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """
    Indices of the points (time, quality) that no other point beats in both, the fastest first.

    Args:
        points (`Sequence[tuple[float, float]]`): Less time and more quality are better.
    """
    front, best = [], -math.inf
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front


def engines_to_measure(dtype: str, engines: Sequence[str] | None, device: torch.device) -> list[str]:
    """
    What computes: PyTorch in the data type of the weights, then the engines of `--engines`; unset, bfloat16 where the
    device has instructions for it.

    Raises:
        `ValueError`: for an engine that there is not, or that cannot run here.
    """
    if engines is None:
        engines = [] if why_not("bfloat16", device) else ["bfloat16"]
    if unknown := [name for name in engines if name not in ENGINES]:
        raise ValueError(f"--engines has {', '.join(unknown)}: they are some of {', '.join(ENGINES)}.")
    for name in engines:
        if name not in DTYPES and dtype != "float32":
            raise ValueError(f"--engines has {name}: it needs --dtype float32.")
        if name != dtype and (reason := why_not(name, device)):
            raise ValueError(f"--engines has {name}: {reason}.")
    return list(dict.fromkeys([dtype, *engines]))
