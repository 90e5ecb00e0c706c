"""Names of lines beside them instead of in a legend, where they cover as little as possible."""

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# Where a name may stand beside a point: direction (x, y), in the order of preference.
_PLACES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_GAP = 7.0  # points between a marker and a name
_APART = 4.0  # pixels between two names
_ALIGN = {-1: "right", 0: "center", 1: "left"}, {-1: "top", 0: "center", 1: "bottom"}


def label_points(axis: Axes, points: list[tuple[str, list[tuple[float, float]], str]], fontsize: float) -> None:
    """
    Write a name beside one of the points of each line, where it covers fewest lines and other names. Lines must be
    drawn, and the limits of the axis be set.

    Args:
        axis (`Axes`): With everything drawn.
        points (`list`): Of every name, the first ones placed first: the text, points that it may stand beside, and its
            colour.
        fontsize (`float`): Of the names.
    """
    figure = axis.figure
    figure.draw_without_rendering()  # fixes the layout, which the sizes of texts in pixels depend on
    drawn = [_along(axis, line.get_xydata()) for line in axis.lines]
    covered = np.concatenate(drawn) if drawn else np.empty((0, 2))
    taken: list[Bbox] = [text.get_window_extent() for text in axis.texts]
    frame = axis.get_window_extent()
    for name, anchors, colour in points:
        best = None
        for rank, (anchor, place) in enumerate((anchor, place) for anchor in anchors for place in _PLACES):
            text = axis.annotate(
                name,
                anchor,
                xytext=[_GAP * step for step in place],
                textcoords="offset points",
                ha=_ALIGN[0][place[0]],
                va=_ALIGN[1][place[1]],
                color=colour,
                fontsize=fontsize,
            )
            box = text.get_window_extent()
            cost = _cost(box, covered, taken, frame) + 0.01 * rank
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = cost, text, box
            else:
                text.remove()
        taken.append(best[2])


def _along(axis: Axes, points: np.ndarray) -> np.ndarray:
    """Pixels along a line, close to each other."""
    pixels = axis.transData.transform(points)
    if len(pixels) == 1:  # a mark, which covers some
        return np.concatenate([pixels + np.array([x, y]) for x in range(-8, 9, 2) for y in range(-8, 9, 2)])
    steps = np.linspace(0, 1, 200)[:, None]
    return np.concatenate([start + steps * (end - start) for start, end in pairwise(pixels)])


def _cost(box: Bbox, covered: np.ndarray, taken: list[Bbox], frame: Bbox) -> float:
    """How much a name would cover, or stand outside the frame."""
    inside = (covered >= [box.x0 - 2, box.y0 - 2]) & (covered <= [box.x1 + 2, box.y1 + 2])
    overlaps = sum(Bbox.intersection(box.padded(_APART), other) is not None for other in taken)
    outside = max(frame.x0 - box.x0, box.x1 - frame.x1, frame.y0 - box.y0, box.y1 - frame.y1, 0)
    return inside.all(axis=1).sum() + 100 * overlaps + outside
