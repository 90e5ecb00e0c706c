"""
Find the vessels in photographs.

    reg4pru predict --model_name_or_path outputs/tiny --images photographs/ "more/*.jpg" --output_dir outputs/masks
    reg4pru predict --model_name_or_path outputs/tiny --dataset user/photographs --side test --output_dir outputs/masks
    accelerate launch -m reg4pru predict ...        shares the photographs out over the devices

writes for every photograph, at its own size, `<name>_mask.png` (0 and 255), `<name>_probability.png` (16 bits: 65535
is probability 1) and `<name>_overlay.png` (the vessels drawn over the photograph, inside the field of view only), and
a row of `predictions.csv`. Mask and probability are as the model predicts them, outside the field of view, too. With
several keep rates every name ends in the rate. Photographs whose row stands in the table already are left out, so a
run that was stopped goes on where it was; one that cannot be read is reported at the end. With `--parquet` masks and
probabilities also become a data set in `dataset/`, which `--push_to_hub` uploads.
"""

import csv
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

from ..console import read_flags, set_up_logging
from ..hub.transfer import TransferError, check_target, push_folder
from .keep_rates import check_keep_rates, fixed_draws, rate_name
from .loading import fast_dtype, load_checkpoint
from .panels import blank_outside, mask_picture, overlay_panel, probability_picture, stage_panel
from .photographs import Photograph, list_files, list_stored
from .prediction_dataset import TAG, write_dataset

logger = logging.getLogger(__name__)

COLUMNS = ("file", "keep_rate", "vessel_fraction", "skeleton_length", "skeleton_density", "num_tokens", "seconds")


@dataclass
class PredictionArguments:
    """What is predicted, by which model, and where the result goes."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder for the pictures and predictions.csv."})
    images: list[str] = field(
        default_factory=list, metadata={"help": f"Files, folders or patterns ({', '.join(SUFFIXES)})."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Instead of files: a Hub id, a folder with Parquet files or a saved data set."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub data set."})
    side: str = field(default="test", metadata={"help": "The side of the data set: train, validation or test."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    keep_rates: list[float] | None = field(
        default=None,
        metadata={"help": "Keep rates to compare, each for all stages; default: the checkpoint's."},
    )
    stage_map: bool = field(default=False, metadata={"help": "Also show at which stage every token was pruned."})
    threshold: float = field(default=0.5, metadata={"help": "A pixel is vessel if its probability is above it."})
    batch_size: int = field(default=4, metadata={"help": "Tiles per forward pass."})
    parquet: bool = field(default=False, metadata={"help": "Also write masks and probabilities as a data set."})
    push_to_hub: bool = field(default=False, metadata={"help": "Upload that data set, as one commit."})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "Repository for it, user/name."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Make the repository private."})
    overwrite_repo: bool = field(
        default=False, metadata={"help": "Replace what the repository holds, even if it is something else."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Predict anew what an earlier run has done."})
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})
    fast: bool = field(
        default=False, metadata={"help": "Compute in bfloat16 where this machine can; it says so where it cannot."}
    )
    seed: int = field(default=0, metadata={"help": "Seed, for a checkpoint that selects tokens at random."})


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

    def begun(self) -> set[str]:
        """Photographs whose pictures are of a run of this command, those of a run that was killed at them, too."""
        listed = [path.read_text(encoding="utf-8").splitlines() for path in self.folder.glob(".predictions*.begun")]
        return {name for names in listed for name in names} | {name for name, _ in self.done()}

    def begin(self, name: str) -> None:
        """Say, before there are pictures of it, that a photograph is worked on."""
        with (self.folder / f".{self.table.stem}.begun").open("a", encoding="utf-8") as file:
            file.write(f"{name}\n")

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
        "mask": mask_picture(vessels),
        "probability": probability_picture(probability),
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
    tasks: list[tuple[Photograph, float | None]],
    results: ResultFolder,
    arguments: PredictionArguments,
) -> Iterator[str]:
    """Predict files at keep rates, and yield what could not be read."""
    several = arguments.keep_rates is not None and len(arguments.keep_rates) > 1
    for photograph, rate in tasks:
        start = time.perf_counter()
        try:
            image = read_photograph(photograph.content())
        except ValueError as error:
            yield f"{photograph.name}: {error}"
            continue
        with fixed_draws(model, arguments.seed):
            prediction = predict_photograph(
                model, processor, image, rate, batch_size=arguments.batch_size, output_stages=arguments.stage_map
            )
        suffix = f"_{rate_name(rate)}" if several else ""
        made = pictures(image, prediction, arguments.threshold, model.config.num_stages)
        results.begin(photograph.name)
        for kind, picture in made.items():
            results.save(f"{photograph.stem}_{kind}{suffix}.png", picture)
        results.add_row(
            {
                "file": photograph.name,
                "keep_rate": _rate_column(rate),
                **measures(image, made["mask"] > 0),
                "num_tokens": prediction.num_tokens,
                "seconds": f"{time.perf_counter() - start:.3f}",
            }
        )


def _rate_column(rate: float | None) -> str:
    return "checkpoint" if rate is None else rate_name(rate)


def _check(arguments: PredictionArguments) -> list[Photograph]:
    if not 0 < arguments.threshold < 1:
        raise ValueError(f"--threshold is {arguments.threshold}: it must lie between 0 and 1, both excluded.")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size is {arguments.batch_size}: it must be at least 1.")
    if arguments.fast and arguments.dtype != "float32":
        raise ValueError(f"--fast chooses the data type, and --dtype is {arguments.dtype}: give one of them.")
    if arguments.keep_rates is not None:
        check_keep_rates(arguments.keep_rates)
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir is {output_dir}, which is a file.")
    if bool(arguments.images) == bool(arguments.dataset):
        raise ValueError("Give --images or --dataset, one of them.")
    if arguments.push_to_hub:
        if not arguments.hub_dataset_id:
            raise ValueError("--push_to_hub needs --hub_dataset_id.")
        private, overwrite = arguments.hub_private_repo, arguments.overwrite_repo
        check_target(arguments.hub_dataset_id, "dataset", private=private, overwrite=overwrite, tag=TAG)
    if arguments.dataset:
        photographs = list_stored(arguments.dataset, arguments.dataset_revision, arguments.side)
    else:
        photographs = list_files(arguments.images)
        if any(output_dir.resolve() == Path(photograph.name).resolve().parent for photograph in photographs):
            raise ValueError(f"--output_dir is {output_dir}, the folder of the photographs: choose another.")
    known = ResultFolder(output_dir).begun()
    foreign = [
        path
        for photograph in photographs
        if photograph.name not in known and (path := output_dir / f"{photograph.stem}_mask.png").exists()
    ]
    if foreign and not arguments.overwrite:
        raise ValueError(
            f"{foreign[0]} exists and is not of a run of this command that predictions.csv tells of: choose another "
            "--output_dir, or add --overwrite to replace it."
        )
    return photographs


def main(argv: list[str] | None = None) -> int:
    """Predict as the command line says; exit status 1 if a photograph could not be read."""
    state = PartialState()
    set_up_logging(logging.INFO if state.is_main_process else logging.WARNING)
    parser = HfArgumentParser(PredictionArguments)
    (arguments,) = read_flags(parser, argv)
    device = arguments.device or (str(state.device) if state.num_processes > 1 else None)
    try:
        photographs = _check(arguments)
        dtype = fast_dtype(device) if arguments.fast else arguments.dtype
        if arguments.fast and dtype == "float32":
            logger.warning("--fast changes nothing: this machine has no instructions for bfloat16.")
        model, processor = load_checkpoint(arguments.model_name_or_path, arguments.model_revision, device, dtype)
    except ValueError as error:
        parser.error(str(error))
    except TransferError as error:
        sys.exit(str(error))

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
    tasks = [(photograph, rate) for photograph in photographs for rate in arguments.keep_rates or [None]]
    left = [task for task in tasks if (task[0].name, _rate_column(task[1])) not in done]
    state.wait_for_everyone()  # nobody writes while somebody still looks what is done
    with state.split_between_processes(list(range(len(left)))) as mine:
        bar = tqdm(
            [left[place] for place in mine],
            desc="Predicting",
            unit="photograph",
            disable=not state.is_local_main_process,
        )
        problems = list(predict_files(model, processor, bar, results, arguments))
    logger.info("Written to %s: %d predictions; %d were there already.", output_dir, len(left), len(tasks) - len(left))
    for problem in problems:
        print(f"Not predicted: {problem}", file=sys.stderr)
    state.wait_for_everyone()
    if (arguments.parquet or arguments.push_to_hub) and state.is_main_process:
        _publish(output_dir, photographs, arguments)
    return 1 if problems else 0


def _publish(output_dir: Path, photographs: list[Photograph], arguments: PredictionArguments) -> None:
    """The predictions as a data set, and on the Hub."""
    folder, repo_id = output_dir / "dataset", arguments.hub_dataset_id
    write_dataset(folder, output_dir, photographs, arguments.model_name_or_path)
    logger.info("Written to %s: a data set of masks and probabilities.", folder)
    if arguments.push_to_hub:
        try:
            commit = push_folder(
                folder,
                repo_id,
                repo_type="dataset",
                commit_message="Upload predictions",
                private=arguments.hub_private_repo,
                overwrite=arguments.overwrite_repo,
                tag=TAG,
            )
        except (ValueError, TransferError) as error:
            sys.exit(str(error))
        logger.info("Uploaded to %s, commit %s.", repo_id, commit)
