"""Legends of the images of the page, as HTML."""

from collections.abc import Iterable, Sequence
from html import escape

from ..reporting.panels import stage_colours


def legend(entries: Iterable[tuple[Sequence[int], str]]) -> str:
    """Colours and what they mean."""
    spans = (f"<span><i style='background:rgb{tuple(colour)}'></i>{escape(name)}</span>" for colour, name in entries)
    return f'<div class="r4p-legend">{"".join(spans)}</div>'


def stage_legend(num_stages: int) -> str:
    """The colours of the map of stages."""
    names = [f"pruned at stage {stage + 1}" for stage in range(num_stages)] + ["never pruned"]
    return legend(zip(stage_colours(num_stages).tolist(), names, strict=True))
