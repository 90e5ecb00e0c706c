"""
A figure of what the app shows: an image with and without pruning, where tokens were pruned, and several keep rates.

    python -m reg4pru.maintenance.gallery --model runs/sample/last --output results/app/gallery.png

The image is a synthetic one of a retina, unless `--image` names another, which models of other things need.
"""

import argparse
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from datasets_fives.sources.synthetic import draw_image
from modeling_reg4pru.image_reading import open_image, read_image

from ..app.class_view import ClassView
from ..app.comparison import Comparer, OpenImage, shown_overlays, shown_panels
from ..app.prediction import Prediction
from ..inference.loading import load_checkpoint
from ..inference.model_classes import is_of_vessels, model_classes
from ..reporting.panels import stage_colours
from ..reporting.style import hide_axes, new_figure

STRIP = (1.0, 0.7, 0.5, 0.3)
SHOWN_RATE = 0.5
_SIDE, _SEED = 512, 4071


def draw_gallery(image: OpenImage, strip: dict[float, Prediction], num_stages: int) -> Figure:
    """
    Draw the figure: unpruned, pruned and stage of pruning above, what differs by keep rate below.

    Args:
        image ([`OpenImage`]): The image.
        strip (`dict[float, Prediction]`): Predictions by keep rate, among them that of [`SHOWN_RATE`].
        num_stages (`int`): Number of pruning stages.
    """
    figure = new_figure(9.6, 7.4)
    above, below = figure.subfigures(2, 1, height_ratios=[4.2, 3])
    shown = image, strip[SHOWN_RATE]
    panels = shown_overlays(*shown) | shown_panels(*shown, num_stages)
    titles = {"unpruned": "unpruned", "pruned": f"keep rate {SHOWN_RATE:g}", "stages": "where tokens were pruned"}
    axes = above.subplots(1, len(titles))
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        _show(axis, panels[name], title)
    names = [f"stage {stage + 1}" for stage in range(num_stages)] + ["never"]
    colours = stage_colours(num_stages) / 255
    axes[-1].legend(
        handles=[Patch(facecolor=colour, label=name) for colour, name in zip(colours, names, strict=True)],
        loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(names), fontsize=8, frameon=False, handlelength=1,
        columnspacing=1,
    )  # fmt: skip
    tokens = sum(image.dense.token_counts)
    (score, heading), *_ = image.view.scores.items()
    for axis, (rate, prediction) in zip(below.subplots(1, len(strip)), strip.items(), strict=True):
        panel = shown_panels(image, prediction, num_stages)["differences"]
        agreement = image.view.agreement(prediction, image.dense.labels, image.inside)[score]
        share = 100 * sum(prediction.token_counts) / tokens
        _show(axis, panel, f"keep rate {rate:g}\n{share:.0f} % of the tokens, {heading} {agreement:.3f}")
    if isinstance(image.view, ClassView):
        colours = "grey: the same class; vermillion: another class with pruning"
    else:
        colours = "grey: with and without pruning; vermillion: only without; blue: only with pruning"
    below.supxlabel(colours, fontsize=8)
    return figure


def _show(axis, panel: np.ndarray, title: str) -> None:
    axis.imshow(panel)
    axis.set_title(title, fontsize=9)
    hide_axes(axis)


def main(argv: list[str] | None = None) -> int:
    """Draw the figure of a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Checkpoint: a folder or a Hub id.")
    parser.add_argument("--output", required=True, type=Path, help="The PNG file to write.")
    parser.add_argument("--image", type=Path, help="An image; default: a synthetic one of a retina.")
    arguments = parser.parse_args(argv)
    try:
        comparer = Comparer(*load_checkpoint(arguments.model))
        if arguments.image is None and not is_of_vessels(comparer.model.config):
            names = ", ".join(model_classes(comparer.model.config))
            raise ValueError(
                f"--image is not given, but the model finds {names}, and the synthetic image is of vessels."
            )
        if arguments.image is None:
            pixels, _ = draw_image(_SIDE, "N", np.random.SeedSequence(_SEED))
        else:
            pixels = read_image(open_image(arguments.image))
    except ValueError as error:
        parser.error(str(error))
    image = comparer.open("shown", Image.fromarray(pixels))
    strip = {rate: comparer.predict(pixels, rate) for rate in STRIP}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    draw_gallery(image, strip, comparer.model.config.num_stages).savefig(drawn, dpi=110)
    # 128 colours look the same and need a third of the space.
    few = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(arguments.output, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
