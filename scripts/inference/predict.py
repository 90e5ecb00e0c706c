"""
Find the vessels in photographs.

    reg4pru predict --model_name_or_path outputs/tiny --images photographs/ "more/*.jpg" --output_dir outputs/masks
    accelerate launch -m reg4pru predict ...        shares the photographs out over the devices

writes for every photograph, at its own size, `<name>_mask.png` (0 and 255), `<name>_probability.png` (16 bits: 65535
is probability 1) and `<name>_overlay.png` (the vessels drawn over the photograph, inside the field of view only), and
a row of `predictions.csv`. Mask and probability are as the model predicts them, outside the field of view, too. With
several keep rates every name ends in the rate. Photographs whose row stands in the table already are left out, so a
run that was stopped goes on where it was; one that cannot be read is reported at the end.
"""

import csv
import glob
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from accelerate import PartialState
from PIL import Image
from skimage.morphology import skeletonize
from tqdm import tqdm
from transformers import BaseImageProcessor, HfArgumentParser

from datasets_fives.field_of_view import field_of_view
from datasets_fives.reading import SUFFIXES, read_photograph
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import PhotographPrediction, predict_photograph

from ..console import set_up_logging
from .keep_rates import check_keep_rates, fixed_draws, rate_name
from .loading import load_checkpoint
from .panels import blank_outside, overlay_panel, stage_panel

logger = logging.getLogger(__name__)

COLUMNS = ("file", "keep_rate", "vessel_fraction", "skeleton_length", "skeleton_density", "num_tokens", "seconds")


@dataclass
class PredictionArguments:
    """What is predicted, by which model, and where the result goes."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint: a folder or a Hub id."})
    images: list[str] = field(metadata={"help": f"Files, folders or patterns ({', '.join(SUFFIXES)})."})
    output_dir: str = field(metadata={"help": "Folder for the pictures and predictions.csv."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    keep_rates: list[float] | None = field(
        default=None,
        metadata={"help": "Keep rates to compare, each for all stages; default: the checkpoint's."},
    )
    stage_map: bool = field(default=False, metadata={"help": "Also show at which stage every token was pruned."})
    threshold: float = field(default=0.5, metadata={"help": "A pixel is vessel if its probability is above it."})
    batch_size: int = field(default=4, metadata={"help": "Tiles per forward pass."})
    overwrite: bool = field(default=False, metadata={"help": "Predict anew what an earlier run has done."})
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})
    seed: int = field(default=0, metadata={"help": "Seed, for a checkpoint that selects tokens at random."})


def list_images(patterns: list[str]) -> list[Path]:
    """
    The photographs among files, folders and patterns, in order.

    Args:
        patterns (`list[str]`): Files; folders, of which every file with one of [`SUFFIXES`] is taken; patterns such as
            `"scans/**/*.jpg"`.

    Raises:
        `ValueError`: If one of them finds nothing, or two photographs would be written to the same files.
    """
    images: dict[str, Path] = {}
    for pattern in patterns:
        found = [Path(pattern)]
        if not found[0].is_file():
            inside = sorted(found[0].iterdir() if found[0].is_dir() else map(Path, glob.glob(pattern, recursive=True)))
            found = [path for path in inside if path.is_file() and path.suffix.lower() in SUFFIXES]
        if not found:
            raise ValueError(
                f"{pattern} is no file, and no folder or pattern with photographs ({', '.join(SUFFIXES)})."
            )
        for path in found:
            other = images.setdefault(path.stem, path)
            if other.resolve() != path.resolve():
                raise ValueError(f"{other} and {path} would write to the same files: predict them apart.")
    return list(images.values())


class ResultFolder:
    """
    The pictures and the table of a run. Pictures appear whole or not at all, and the row of a photograph, which says
    that it is done, comes last.

    Args:
        folder (`Path`): Where they go.
        name (`str`): Name of the table; every process has its own.
    """

    def __init__(self, folder: Path, name: str = "predictions.csv"):
        self.folder, self.table = folder, folder / name

    def done(self) -> set[tuple[str, str]]:
        """(file, keep rate) of every row of every table."""
        rows: set[tuple[str, str]] = set()
        for table in self.folder.glob("predictions*.csv"):
            with table.open(newline="", encoding="utf-8") as file:
                rows |= {(row["file"], row["keep_rate"]) for row in csv.DictReader(file) if row["seconds"]}
        return rows

    def save(self, name: str, picture: np.ndarray) -> None:
        """Write a picture beside its place, and move it there."""
        unfinished = self.folder / f".{name}.{os.getpid()}.unfinished"
        Image.fromarray(picture).save(unfinished, format="PNG")
        unfinished.replace(self.folder / name)

    def add_row(self, row: dict) -> None:
        """Add a row to the table, with the heading before the first."""
        begun = self.table.exists()
        with self.table.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if not begun:
                writer.writeheader()
            writer.writerow(row)


def pictures(
    image: Image.Image, prediction: PhotographPrediction, threshold: float, num_stages: int
) -> dict[str, np.ndarray]:
    """The pictures of a prediction by kind: mask, probability, overlay, and stages if they were asked for."""
    probability, pixels = prediction.probabilities[1].numpy(), np.asarray(image)
    vessels, inside = probability > threshold, field_of_view(pixels)
    made = {
        "mask": vessels.astype(np.uint8) * np.uint8(255),
        "probability": np.round(probability * 65535).astype(np.uint16),
        "overlay": blank_outside(overlay_panel(pixels, vessels), inside),
    }
    if prediction.stages is not None:
        made["stages"] = blank_outside(stage_panel(pixels, prediction.stages.numpy(), num_stages), inside)
    return made


def measures(image: Image.Image, vessels: np.ndarray) -> dict[str, str]:
    """
    Share of the field of view that is vessel, length of the vessel skeleton in pixels, and that length by the area of
    the field of view (1 / pixel).
    """
    inside = field_of_view(np.asarray(image))
    area, length = np.count_nonzero(inside), np.count_nonzero(skeletonize(vessels & inside))
    return {
        "vessel_fraction": f"{np.count_nonzero(vessels & inside) / area:.6f}",
        "skeleton_length": str(length),
        "skeleton_density": f"{length / area:.6f}",
    }


def predict_files(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    tasks: list[tuple[Path, float | None]],
    results: ResultFolder,
    arguments: PredictionArguments,
) -> Iterator[str]:
    """Predict files at keep rates, and yield what could not be read."""
    several = arguments.keep_rates is not None and len(arguments.keep_rates) > 1
    for path, rate in tasks:
        start = time.perf_counter()
        try:
            image = read_photograph(path)
        except ValueError as error:
            yield f"{path}: {error}"
            continue
        with fixed_draws(model, arguments.seed):
            prediction = predict_photograph(
                model, processor, image, rate, batch_size=arguments.batch_size, output_stages=arguments.stage_map
            )
        suffix = f"_{rate_name(rate)}" if several else ""
        made = pictures(image, prediction, arguments.threshold, model.config.num_stages)
        for kind, picture in made.items():
            results.save(f"{path.stem}_{kind}{suffix}.png", picture)
        results.add_row(
            {
                "file": str(path),
                "keep_rate": _rate_column(rate),
                **measures(image, made["mask"] > 0),
                "num_tokens": prediction.num_tokens,
                "seconds": f"{time.perf_counter() - start:.3f}",
            }
        )


def _rate_column(rate: float | None) -> str:
    return "checkpoint" if rate is None else rate_name(rate)


def _check(arguments: PredictionArguments) -> list[Path]:
    if not 0 < arguments.threshold < 1:
        raise ValueError(f"--threshold is {arguments.threshold}: it must lie between 0 and 1, both excluded.")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size is {arguments.batch_size}: it must be at least 1.")
    if arguments.keep_rates is not None:
        check_keep_rates(arguments.keep_rates)
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir is {output_dir}, which is a file.")
    images = list_images(arguments.images)
    if any(output_dir.resolve() == image.resolve().parent for image in images):
        raise ValueError(f"--output_dir is {output_dir}, the folder of the photographs: choose another.")
    known = {row[0] for row in ResultFolder(output_dir).done()}
    foreign = [
        path
        for image in images
        if str(image) not in known and (path := output_dir / f"{image.stem}_mask.png").exists()
    ]
    if foreign and not arguments.overwrite:
        raise ValueError(
            f"{foreign[0]} exists and is not of a run of this command that predictions.csv tells of: choose another "
            "--output_dir, or add --overwrite to replace it."
        )
    return images


def main(argv: list[str] | None = None) -> int:
    """Predict as the command line says; exit status 1 if a photograph could not be read."""
    state = PartialState()
    set_up_logging(logging.INFO if state.is_main_process else logging.WARNING)
    parser = HfArgumentParser(PredictionArguments)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    device = arguments.device or (str(state.device) if state.num_processes > 1 else None)
    try:
        images = _check(arguments)
        model, processor = load_checkpoint(
            arguments.model_name_or_path, arguments.model_revision, device, arguments.dtype
        )
    except ValueError as error:
        parser.error(str(error))

    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    own = "predictions.csv" if state.num_processes == 1 else f"predictions-{state.process_index}.csv"
    results = ResultFolder(output_dir, own)
    state.wait_for_everyone()
    if arguments.overwrite and state.is_main_process:
        for table in output_dir.glob("predictions*.csv"):
            table.unlink()
    state.wait_for_everyone()
    done = results.done()
    tasks = [(image, rate) for image in images for rate in arguments.keep_rates or [None]]
    left = [task for task in tasks if (str(task[0]), _rate_column(task[1])) not in done]
    state.wait_for_everyone()  # nobody writes while somebody still looks what is done
    with state.split_between_processes(left) as mine:
        bar = tqdm(mine, desc="Predicting", unit="photograph", disable=not state.is_local_main_process)
        problems = list(predict_files(model, processor, bar, results, arguments))
    logger.info("Written to %s: %d predictions; %d were there already.", output_dir, len(left), len(tasks) - len(left))
    for problem in problems:
        print(f"Not predicted: {problem}", file=sys.stderr)
    return 1 if problems else 0
