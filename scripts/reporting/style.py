"""Colours, markers and axes that all figures share."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# The palette of Okabe and Ito, and two more; colour-blind readers tell them apart.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7F7F7F", "#882255")
MARKERS = "osD^vPX*h"
DASHES = (
    "-",
    "--",
    "-.",
    (0, (1, 1)),
    (0, (5, 1)),
    (0, (3, 1, 1, 1)),
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
    (0, (4, 4)),
)
DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure on white, its sides in inches; no display and no global state of pyplot is needed."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend_below(figure: Figure, handles: list, ncols: int) -> None:
    """One legend for all panels."""
    ncols = min(len(handles), ncols)
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9)


def hide_axes(axis: Axes) -> None:
    """No ticks and no frame, for images; labels stay."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def tidy(axis: Axes) -> None:
    """A grid behind the lines, and no frame above and on the right."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
