"""Speed and agreement of one image over keep rates."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .comparison import Comparer, OpenImage
from .html_tables import measured_row
from .prediction import Prediction

KEEP_RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_ROUNDS = 3
_TEAL, _ORANGE = "#0f8f86", "#d55e00"


def measure_curve(
    comparer: Comparer,
    image: OpenImage,
    reactivation_layer: int,
    selection_pool: str,
    progress: Callable[[tuple[int, int]], None],
) -> list[dict]:
    """
    Measure an image at all of [`KEEP_RATES`]; times are medians of interleaved rounds.

    Args:
        comparer ([`Comparer`]): The model.
        image ([`OpenImage`]): The image.
        reactivation_layer (`int`), selection_pool (`str`): See [`Comparer.predict`].
        progress (`Callable`): Told after every run how many are done, and of how many.

    Returns:
        `list[dict]`: rows of [`measured_row`], from keep rate 1 down.
    """
    runs: dict[float, list[Prediction]] = {rate: [] for rate in KEEP_RATES}
    for done in range(_ROUNDS * len(KEEP_RATES)):
        rate = KEEP_RATES[done % len(KEEP_RATES)]
        runs[rate].append(comparer.predict(image.pixels, rate, reactivation_layer, selection_pool))
        progress((done + 1, _ROUNDS * len(KEEP_RATES)))
    medians = {
        rate: replace(several[0], seconds=statistics.median(run.seconds for run in several))
        for rate, several in runs.items()
    }
    timed = replace(image, dense=replace(image.dense, seconds=medians[1.0].seconds))
    return [measured_row(timed, median, [rate]) for rate, median in medians.items()]


def speed_figure(rows: list[dict]) -> np.ndarray:
    """Speed-up over the keep rate, opaque, so that it reads the same on a light and a dark page."""
    figure, axes = _axes("Speed-up over no pruning")
    speed_ups = [row["speed_up"] for row in rows]
    axes.plot(_rates(rows), speed_ups, "o-", color=_TEAL)
    axes.axhline(1, color="0.6", linewidth=1, linestyle=":")
    axes.set(ylabel="times", ylim=(0, 1.15 * max(speed_ups)))
    return _as_pixels(figure)


def agreement_figure(rows: list[dict], scores: dict[str, str]) -> np.ndarray:
    """Agreement with the unpruned prediction, and with the truth if there is one, over the keep rate."""
    styles = dict(zip(scores, ("o-", "s--"), strict=True))
    lines = {name: (f"{title} with unpruned", styles[name], _TEAL) for name, title in scores.items()}
    if not np.isnan(rows[0][f"true_{next(iter(scores))}"]):
        lines |= {f"true_{name}": (f"{title} with truth", styles[name], _ORANGE) for name, title in scores.items()}
    figure, axes = _axes("Agreement")
    for column, (label, style, colour) in lines.items():
        axes.plot(_rates(rows), [row[column] for row in rows], style, color=colour, label=label)
    axes.set(ylim=(None, 1.01))
    axes.legend(frameon=False, fontsize=8)
    return _as_pixels(figure)


def _rates(rows: list[dict]) -> list[float]:
    return [float(row["keep_rate"]) for row in rows]


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 3.4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(title=title, xlabel="keep rate per stage (1 is no pruning)")
    axes.invert_xaxis()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _as_pixels(figure: Figure) -> np.ndarray:
    buffer = BytesIO()
    figure.savefig(buffer, dpi=180, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))
