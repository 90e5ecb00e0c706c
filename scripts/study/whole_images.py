"""
Ways to segment a whole image, of several checkpoints each, in turns: seconds per image, average precision and clDice;
of more than two classes mean IoU and boundary IoU.

The file of `--rows` names them: by label a checkpoint, in which `{seed}` stands for the number of a training, and
optionally `keep_rate` (for every stage), `tile_overlap`, `allocation` and `skip_outside`, as `reg4pru predict` has
them, the `tile_size` in pixels, a `blend_share_weight`, `bfloat16: true`, and an `engine` of `reg4pru benchmark`; or
`unet: true` for the folder of a U-Net of `reg4pru.study.unet`, with a `tile_size` and a `tile_overlap`. Every image is
segmented in all ways one after the other, so that ratios to the first one hold whatever else the machine does, and
twice in each way, of which the second time counts.
Writes whole_images.json, table.md and whole_images.png.

Example:
    python -m reg4pru.study.whole_images --rows rows.yaml --dataset path/to/fives --split sample \\
        --output_dir outputs/whole_images
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from statistics import median
from textwrap import fill

import numpy as np
import yaml
from datasets import Dataset
from PIL import Image
from transformers.image_utils import SizeDict

from datasets_fives.class_names import class_names

from ..benchmarking.arguments import ENGINES
from ..benchmarking.engines import engine_model, why_not
from ..common.arguments import DatasetArguments
from ..common.atomic_files import replace_json, replace_text
from ..common.cli import CommandParser, check_at_least_1
from ..common.dataset_loading import load_sides
from ..common.devices import usable_device
from ..common.keep_rates import rate_name
from ..common.output_checks import check_writable
from ..common.provenance import provenance
from ..common.spread import spread
from ..inference.loading import load_checkpoint
from ..inference.model_classes import check_same_classes, check_skip_applies
from ..inference.onnx_export import check_allocation
from ..inference.predictors import predictor
from ..reporting.style import COLOURS, DPI, MARKERS, new_figure, tidy
from ..reporting.tables import format_mean, markdown_table, mean_and_sd
from .evaluation import measure_by_classes, over_all_pixels
from .metrics import metrics_of
from .unet import unet_predictor

_SHOWN = 0.1  # of the first metric, in the figure


@dataclass(kw_only=True)
class WholeImagesArguments(DatasetArguments):
    """What is compared, and on which test images."""

    _argument_group_name = "comparison"

    rows: str = field(metadata={"help": "YAML file of the ways to compare."})
    output_dir: str = field(metadata={"help": "Folder of the results."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Trainings of each way."})
    working_size: int = field(default=1024, metadata={"help": "Longer side of the images, in pixels."})
    limit: int | None = field(default=None, metadata={"help": "Measure only this many images, spread evenly."})


@dataclass
class Way:
    """
    One way, and what was measured of it.

    Args:
        checkpoint (`str`): Folder, with `{seed}`.
        keep_rate (`float`, *optional*, defaults to 1.0): Of every stage.
        tile_overlap (`float`, *optional*): Part of a tile that neighbours share at least.
        tile_size (`int`, *optional*): Side of a tile, in pixels.
        allocation (`str`, *optional*): `"tile"` or `"image"`.
        skip_outside (`bool`, *optional*, defaults to `False`): Whether what is outside the field of view is left
            out; finding it is part of the time.
        blend_share_weight (`float`, *optional*): Instead of the checkpoint's; 0 is the selection of the paper.
        bfloat16 (`bool`, *optional*, defaults to `False`): Whether weights are loaded in bfloat16, as `reg4pru
            predict --fast` does.
        engine (`str`, *optional*): One of [`~reg4pru.benchmarking.arguments.ENGINES`], of which all but `float32`
            need the allocation `"tile"`.
        unet (`bool`, *optional*, defaults to `False`): Whether the checkpoint is a U-Net, which has two classes, needs
            a `tile_size` and a `tile_overlap`, and takes nothing else.
    """

    checkpoint: str
    keep_rate: float = 1.0
    tile_overlap: float | None = None
    tile_size: int | None = None
    allocation: str | None = None
    skip_outside: bool = False
    blend_share_weight: float | None = None
    bfloat16: bool = False
    engine: str | None = None
    unet: bool = False

    def __post_init__(self):
        if self.engine and self.engine not in ENGINES:
            raise TypeError(f"`engine` is {self.engine!r}: it must be one of {', '.join(ENGINES)}.")
        if self.engine and self.skip_outside:
            raise TypeError("`skip_outside` cannot be combined with `engine`: an engine computes all of a tile.")
        if self.engine and self.bfloat16:
            raise TypeError("`bfloat16` cannot be combined with `engine`, which has a precision of its own.")
        tiles = {"tile_size": self.tile_size, "tile_overlap": self.tile_overlap}
        if self.unet and (None in tiles.values() or replace(self, unet=False) != Way(self.checkpoint, **tiles)):
            raise TypeError("`unet` needs a `tile_size` and a `tile_overlap`, and takes nothing else.")
        self.seconds: list[float] = []
        self.quality: dict[str, list[float]] = {}  # by metric

    def predictor(self, seed: int, folder: str, images: Dataset) -> Callable[[Image.Image, int], np.ndarray]:
        """
        A training as a function of images, see [`~reg4pru.inference.predictors.predictor`].

        Args:
            seed (`int`): Number of the training.
            folder (`str`): For files of an engine.
            images (`Dataset`): What it will be given.

        Raises:
            `ValueError`: if it has other classes than the images, is to skip what is outside a field of view that
                there is not, or its tiles share a budget, which engines do not know.
        """
        checkpoint = self.checkpoint.format(seed=seed)
        if self.unet:
            if len(class_names(images)) > 2:
                raise ValueError(f"{checkpoint} is a U-Net, but there are {len(class_names(images))} classes.")
            return unet_predictor(Path(checkpoint), self.tile_size, self.tile_overlap)
        dtype = "bfloat16" if self.bfloat16 else "float32"
        model, processor = load_checkpoint(checkpoint, dtype=dtype)
        check_same_classes(model.config, images, "the data set")
        check_skip_applies(self.skip_outside, model.config)
        if self.allocation:
            model.config.allocation = self.allocation
        if self.blend_share_weight is not None:
            model.config.blend_share_weight = self.blend_share_weight
        if self.tile_overlap is not None:
            processor.tile_overlap = self.tile_overlap
        if self.tile_size:
            processor.size = SizeDict(height=self.tile_size, width=self.tile_size)
        if not self.engine:
            return predictor(model, processor, self.keep_rate, skip_outside=self.skip_outside)
        check_allocation(model.config)
        model.set_keep_rates(self.keep_rate)
        size = (processor.size.height, processor.size.width)
        # One tile at a time: its states stay in the caches, which PyTorch's heads see to themselves.
        return predictor(engine_model(self.engine, model, size, folder), processor, "config", batch_size=1)


def read_ways(path: Path, seeds: list[int]) -> dict[str, Way]:
    """The ways of a YAML file; raises `ValueError` if one has unknown fields, or a checkpoint is not there."""
    try:
        ways = {label: Way(**row) for label, row in yaml.safe_load(path.read_text(encoding="utf-8")).items()}
    except (OSError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"--rows is {path}: {error}") from None
    folders = [Path(way.checkpoint.format(seed=seed)) for way in ways.values() for seed in seeds]
    for label, way in ways.items():
        runs_in = "bfloat16" if way.bfloat16 else way.engine
        if runs_in and (reason := why_not(runs_in, usable_device())):
            raise ValueError(f"--rows is {path}: {label} cannot be measured, as {reason}.")
    missing = sorted({str(folder) for folder in folders if not folder.is_dir()})
    if missing:
        raise ValueError(f"--rows is {path}: there is no {', '.join(missing)}.")
    return ways


def add_training(ways: dict[str, Way], images: Dataset, seed: int) -> None:
    """Measure one training of every way, all ways of an image one after the other."""
    with tempfile.TemporaryDirectory(prefix="reg4pru-engines-") as folder:
        predict = {label: way.predictor(seed, folder, images) for label, way in ways.items()}
        timed = {label: _timed(predict[label], way.seconds) for label, way in ways.items()}
        for label, found in measure_by_classes(timed, images, class_names(images)).items():
            values = over_all_pixels(found.compute())
            metrics = metrics_of([values])
            for name in (metrics.main, metrics.raced):
                ways[label].quality.setdefault(name, []).append(values[name])


def _timed(predict: Callable, seconds: list[float]) -> Callable:
    def timed(image: Image.Image, index: int) -> np.ndarray:
        predict(image, index)  # uncounted: whatever ran before left memory and caches as it needed them
        start = time.perf_counter()
        probability = predict(image, index)
        seconds.append(time.perf_counter() - start)
        return probability

    return timed


def ratios(way: Way, first: Way) -> list[float]:
    """How many times as fast as the first way, image by image."""
    return [of_first / own for of_first, own in zip(first.seconds, way.seconds, strict=True)]


def results_table(ways: dict[str, Way]) -> str:
    """A row a way: median seconds per image, median ratio of the same image to the first way, quality."""
    first = next(iter(ways.values()))
    metrics = metrics_of(way.quality for way in ways.values())
    lines = [["way", "keep rate", "seconds per image", "× first", metrics.main_name, metrics.raced_name]]
    for label, way in ways.items():
        quality = [format_mean(*mean_and_sd(way.quality[name])) for name in (metrics.main, metrics.raced)]
        speed = f"{median(ratios(way, first)):.2f}"
        lines.append([label, rate_name(way.keep_rate), f"{median(way.seconds):.2f}", speed, *quality])
    return markdown_table(lines)


def draw(ways: dict[str, Way], path: Path) -> None:
    """
    The first metric against seconds per image; ways that differ in their keep rate only are one line. What is more
    than [`_SHOWN`] below the best is named below the figure instead.
    """
    figure = new_figure(9.2, 4.8)
    axis, metrics = figure.subplots(), metrics_of(way.quality for way in ways.values())
    quality = {label: mean_and_sd(way.quality[metrics.main]) for label, way in ways.items()}
    floor = max(mean for mean, _ in quality.values()) - _SHOWN
    lines: dict[tuple, list[str]] = {}
    for label, way in ways.items():
        if quality[label][0] >= floor:
            lines.setdefault(astuple(replace(way, keep_rate=1.0)), []).append(label)
    for place, members in enumerate(lines.values()):
        points = sorted((median(ways[label].seconds), *quality[label]) for label in members)
        again, colour = divmod(place, len(COLOURS))  # the second time round markers are hollow
        style = {"color": COLOURS[colour], "marker": MARKERS[colour % len(MARKERS)], "markersize": 5}
        style |= {"markerfacecolor": "white", "linestyle": "--"} if again else {}
        x, y, sd = zip(*points, strict=True)
        axis.errorbar(x, y, yerr=sd, label=members[0], capsize=2, linewidth=1.2, **style)
    axis.set(xlabel="seconds per image", ylabel=metrics.main_name)
    tidy(axis)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    low = [f"{label} ({mean:.2f})" for label, (mean, _) in quality.items() if mean < floor]
    if low:
        figure.supxlabel(fill(f"Lower still: {'; '.join(low)}", 140), fontsize=7)
    figure.savefig(path, dpi=DPI)


def main(argv: list[str] | None = None) -> None:
    """Compare as the command line says."""
    parser = CommandParser(WholeImagesArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    output_dir = Path(arguments.output_dir)
    try:
        check_at_least_1(arguments, "working_size", "limit")
        check_writable(output_dir, "--output_dir")
        ways = read_ways(Path(arguments.rows), arguments.seeds)
        images = load_sides(arguments, seed=0).get("test", [])
        if not len(images):
            raise ValueError(f"--dataset is {arguments.dataset}, which has no test images.")
    except ValueError as error:
        parser.error(str(error))
    images = images.select(spread(len(images), arguments.limit))
    for seed in arguments.seeds:
        try:
            add_training(ways, images, seed)
        except ValueError as error:
            sys.exit(f"Not measured: {error}")
    output_dir.mkdir(parents=True, exist_ok=True)
    made_by = provenance()
    measured = {label: {**asdict(way), "seconds": way.seconds, **way.quality} for label, way in ways.items()}
    content = {"ways": measured, "settings": asdict(arguments), "provenance": made_by}
    replace_json(output_dir / "whole_images.json", content)
    metrics = metrics_of(way.quality for way in ways.values())
    said = (
        f"Images: {len(images)} of {arguments.working_size} px; trainings: {len(arguments.seeds)}; "
        f"{made_by['device']}. Seconds are medians, and ratios medians of those of the same image; "
        f"{metrics.main_name} and {metrics.raced_name}: mean ± sd over trainings."
    )
    table = results_table(ways)
    replace_text(output_dir / "table.md", f"# Whole images\n\n{said}\n\n{table}\n")
    draw(ways, output_dir / "whole_images.png")
    print(table)


if __name__ == "__main__":
    main()
