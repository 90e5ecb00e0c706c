"""
Which keep rates by stage, reactivation layers and selection pools are worth measuring: all uniform rates, and a greedy
walk from unpruned to the lowest rates. What is best is not decided here, but by what is measured of them all.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Setting(NamedTuple):
    """How a checkpoint prunes: the keep rate of every stage, and the fields of its configuration of these names."""

    keep_rates: tuple[float, ...]
    reactivation_layer: int
    selection_pool: str

    @property
    def is_uniform(self) -> bool:
        """Whether one rate holds for all stages."""
        return len(set(self.keep_rates)) == 1


def uniform_settings(num_stages: int, grid: Sequence[float], layers: Sequence[int], pools: Sequence[str]) -> list:
    """
    One rate for all stages, from unpruned down, under every reactivation layer and pool; unpruned these are the same.

    Args:
        num_stages (`int`): Pruning stages.
        grid (`Sequence[float]`): Keep rates, 1 among them.
        layers (`Sequence[int]`), pools (`Sequence[str]`): Reactivation layers and selection pools.

    Returns:
        `list[Setting]`
    """
    pruned = [
        Setting((rate,) * num_stages, layer, pool)
        for rate in sorted(set(grid), reverse=True)
        for layer in layers
        for pool in pools
        if rate < 1
    ]
    return [Setting((1.0,) * num_stages, layers[0], pools[0]), *pruned]


def walk_length(num_stages: int, grid: Sequence[float], layers: Sequence[int], pools: Sequence[str]) -> int:
    """The most settings that a walk can measure."""
    return (num_stages * (len(grid) - 1) + len(layers) - 1) * (num_stages + len(layers) - 1 + len(pools) - 1)


def greedy_walk(
    num_stages: int,
    grid: Sequence[float],
    layers: Sequence[int],
    pools: Sequence[str],
    quality: Callable[[Setting], float],
    cost: Callable[[Setting], float],
) -> list[Setting]:
    """
    From unpruned to the lowest rates. In every step one stage gets its next lower rate, or tokens are put back after
    a later layer, whichever loses least quality for what it saves; then the other pools are tried there.

    Args:
        num_stages, grid, layers, pools: See [`uniform_settings`]; the layers ascend.
        quality (`Callable`): Measures a setting; higher is better.
        cost (`Callable`): Known without measuring, such as operations: clocks would make another walk of every run,
            and one that was interrupted could not be gone on with.

    Returns:
        `list[Setting]`: where the walk stood after every step.
    """
    current = Setting((1.0,) * num_stages, layers[0], pools[0])
    path = [current]
    while moves := _moves(current, grid, layers, cost):
        spared, before = cost(current), quality(current)
        best = min(moves, key=lambda move: (before - quality(move)) / (spared - cost(move)))
        others = [best._replace(selection_pool=pool) for pool in pools if pool != best.selection_pool]
        current = max([best, *others], key=quality)
        path.append(current)
    return path


def _moves(
    current: Setting, grid: Sequence[float], layers: Sequence[int], cost: Callable[[Setting], float]
) -> list[Setting]:
    """One step down in every direction; counts of tokens are rounded, so that the next rate may save nothing."""
    steps = [
        [
            current._replace(keep_rates=(*current.keep_rates[:stage], rate, *current.keep_rates[stage + 1 :]))
            for rate in sorted(grid, reverse=True)
            if rate < own
        ]
        for stage, own in enumerate(current.keep_rates)
    ]
    steps.append(
        [current._replace(reactivation_layer=layer) for layer in layers if layer > current.reactivation_layer]
    )
    now = cost(current)
    return [move for step in steps if (move := next((move for move in step if cost(move) < now), None)) is not None]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """
    Indices of the points (time, quality) that no other one beats in both, from the fastest on.

    Args:
        points (`Sequence[tuple[float, float]]`): Less time and more quality are better.
    """
    front, best = [], -math.inf
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front
