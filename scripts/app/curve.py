"""Speed and agreement of one photograph over keep rates."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .comparison import Comparer, OpenPhotograph, Prediction
from .report import measured_row

KEEP_RATES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_ROUNDS = 3
_TEAL, _ORANGE = "#0f8f86", "#d55e00"


def measure_curve(
    comparer: Comparer,
    photograph: OpenPhotograph,
    reactivation_layer: int,
    selection_pool: str,
    progress: Callable[[tuple[int, int]], None],
) -> list[dict]:
    """
    Measure a photograph at all of [`KEEP_RATES`]; times are medians of interleaved rounds.

    Args:
        comparer ([`Comparer`]): The model.
        photograph ([`OpenPhotograph`]): The photograph.
        reactivation_layer (`int`), selection_pool (`str`): See [`Comparer.predict`].
        progress (`Callable`): Told after every run how many are done, and of how many.

    Returns:
        `list[dict]`: rows of [`measured_row`], from keep rate 1 down.
    """
    runs: dict[float, list[Prediction]] = {rate: [] for rate in KEEP_RATES}
    for done in range(_ROUNDS * len(KEEP_RATES)):
        rate = KEEP_RATES[done % len(KEEP_RATES)]
        runs[rate].append(comparer.predict(photograph.pixels, rate, reactivation_layer, selection_pool))
        progress((done + 1, _ROUNDS * len(KEEP_RATES)))
    medians = {
        rate: replace(several[0], seconds=statistics.median(run.seconds for run in several))
        for rate, several in runs.items()
    }
    timed = replace(photograph, dense=replace(photograph.dense, seconds=medians[1.0].seconds))
    return [measured_row(timed, median, [rate]) for rate, median in medians.items()]


def curve_figure(rows: list[dict]) -> np.ndarray:
    """Speed-up and agreement over the keep rate, opaque, so that it reads the same on a light and a dark page."""
    rates = [float(row["keep_rate"]) for row in rows]
    figure = Figure(figsize=(8, 3.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    speed, agreement = figure.subplots(1, 2)
    speed.plot(rates, [row["speed_up"] for row in rows], "o-", color=_TEAL)
    speed.axhline(1, color="0.6", linewidth=1, linestyle=":")
    speed.set(title="Speed-up over no pruning", ylabel="times", ylim=(0, None))
    agreement.plot(rates, [row["dice"] for row in rows], "o-", color=_TEAL, label="Dice with unpruned")
    agreement.plot(rates, [row["cldice"] for row in rows], "s--", color=_TEAL, label="clDice with unpruned")
    if not np.isnan(rows[0]["true_dice"]):
        agreement.plot(rates, [row["true_dice"] for row in rows], "o-", color=_ORANGE, label="Dice with truth")
        agreement.plot(rates, [row["true_cldice"] for row in rows], "s--", color=_ORANGE, label="clDice with truth")
    agreement.set(title="Agreement", ylim=(None, 1.01))
    agreement.legend(frameon=False, fontsize=8)
    for axis in (speed, agreement):
        axis.set_xlabel("keep rate per stage (1 is no pruning)")
        axis.invert_xaxis()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))
