"""
Find the vessels in photographs.

    reg4pru predict --model_name_or_path outputs/tiny --images photographs/ "more/*.jpg" --output_dir outputs/masks
    reg4pru predict --model_name_or_path outputs/tiny --dataset user/photographs --side test --output_dir outputs/masks
    accelerate launch -m reg4pru predict ...        shares the photographs out over the devices

writes for every photograph, at its own size, `<name>_mask.png` (0 and 255), `<name>_probability.png` (16 bits: 65535
is probability 1) and `<name>_overlay.png` (the vessels drawn over the photograph, inside the field of view only), and
a row of `predictions.csv`. Mask and probability are as the model predicts them, outside the field of view, too. With
`--keep_rates` every name ends in the rate. Photographs whose row stands in the table already are left out, so a run
that was stopped goes on where it was; one that cannot be read is reported at the end. A folder holds the predictions
of one model made one way, as `predictions.json` says, and others are refused. With `--parquet` masks and
probabilities also become a data set in `dataset/`, which `--push_to_hub` uploads.
"""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from PIL import Image
from skimage.morphology import skeletonize
from tqdm import tqdm
from transformers import BaseImageProcessor, HfArgumentParser

from datasets_fives.field_of_view import field_of_view
from datasets_fives.reading import SUFFIXES, read_photograph
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import PhotographPrediction, predict_photograph

from ..console import check_at_least_1, read_flags, set_up_logging
from ..hub.transfer import TransferError, check_target, push_folder
from .keep_rates import check_keep_rates, fixed_draws
from .loading import fast_dtype, load_checkpoint
from .panels import blank_outside, mask_picture, overlay_panel, probability_picture, stage_panel
from .photographs import Photograph, list_files, list_stored
from .prediction_dataset import TAG, check_replaceable, write_dataset
from .prediction_folder import KINDS, ResultFolder, Task

logger = logging.getLogger(__name__)

# Of a configuration, what another version, or a copy on the Hub, writes otherwise and no prediction depends on.
IRRELEVANT = ("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype")
DATASET_FOLDER = "dataset"


@dataclass
class PredictionArguments:
    """What is predicted, by which model, and where the result goes."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder for the pictures, predictions.csv and predictions.json."})
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
        metadata={
            "help": "Keep rates to compare, each for all stages; the names of pictures end in them. Default: the "
            "checkpoint's, and names without any."
        },
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
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Predict anew what an earlier run has done of these photographs and keep rates; what it did of "
            "others stays, and is refused if it was made with another model or other settings."
        },
    )
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})
    fast: bool = field(
        default=False, metadata={"help": "Compute in bfloat16 where this machine can; it says so where it cannot."}
    )
    seed: int = field(default=0, metadata={"help": "Seed, for a checkpoint that selects tokens at random."})


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
    tasks: list[Task],
    results: ResultFolder,
    arguments: PredictionArguments,
) -> Iterator[str]:
    """Predict files at keep rates, and yield what could not be read."""
    for task in tasks:
        photograph, rate = task
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
        made = pictures(image, prediction, arguments.threshold, model.config.num_stages)
        results.begin(task)
        for kind, picture in made.items():
            results.save(task.picture(kind), picture)
        file, keep_rate = task.key
        results.add_row(
            {
                "file": file,
                "keep_rate": keep_rate,
                "mask": task.picture("mask"),
                **measures(image, made["mask"] > 0),
                "num_tokens": prediction.num_tokens,
                "seconds": f"{time.perf_counter() - start:.3f}",
            }
        )


def settings_of(
    arguments: PredictionArguments, dtype: str, model: Reg4PruForSemanticSegmentation, processor: BaseImageProcessor
) -> dict:
    """What determines a prediction, but for photograph and keep rate; JSON can hold it."""
    dataset = arguments.dataset
    return {
        "model_name_or_path": arguments.model_name_or_path,
        "model_revision": arguments.model_revision,
        **fingerprints(model, processor),
        "dtype": dtype,
        "threshold": arguments.threshold,
        "stage_map": arguments.stage_map,
        "seed": arguments.seed,
        "dataset": str(Path(dataset).resolve()) if dataset and Path(dataset).exists() else dataset,
        "dataset_revision": arguments.dataset_revision,
    }


def fingerprints(model: Reg4PruForSemanticSegmentation, processor: BaseImageProcessor) -> dict[str, str]:
    """Of the weights as they were loaded, those from the Hub, too, and of what the model does with them."""
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    both = [model.config.to_diff_dict(), processor.to_dict()]
    both = [{name: value for name, value in one.items() if name not in IRRELEVANT} for one in both]
    configuration = hashlib.blake2b(json.dumps(both, sort_keys=True, default=str).encode(), digest_size=16)
    return {"weights": weights.hexdigest(), "configuration": configuration.hexdigest()}


def _check(arguments: PredictionArguments) -> list[Photograph]:
    if not 0 < arguments.threshold < 1:
        raise ValueError(f"--threshold is {arguments.threshold}: it must lie between 0 and 1, both excluded.")
    check_at_least_1(arguments, "batch_size")
    if arguments.fast and arguments.dtype != "float32":
        raise ValueError(f"--fast chooses the data type, and --dtype is {arguments.dtype}: give one of them.")
    if arguments.keep_rates is not None:
        check_keep_rates(arguments.keep_rates)
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir is {output_dir}, which is a file.")
    if bool(arguments.images) == bool(arguments.dataset):
        raise ValueError("Give --images or --dataset, one of them.")
    if arguments.parquet or arguments.push_to_hub:
        check_replaceable(output_dir / DATASET_FOLDER)
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
    return photographs


def main(argv: list[str] | None = None) -> int:
    """Predict as the command line says; exit status 1 if a photograph could not be read."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # else processes without a GPU share nothing
    set_up_logging(logging.INFO if state.is_main_process else logging.WARNING)
    parser = HfArgumentParser(PredictionArguments)
    (arguments,) = read_flags(parser, argv)
    device = arguments.device or (str(state.device) if state.num_processes > 1 else None)
    output_dir = Path(arguments.output_dir)
    own = "predictions.csv" if state.num_processes == 1 else f"predictions-{state.process_index}.csv"
    results = ResultFolder(output_dir, own)
    kinds = tuple(kind for kind in KINDS if kind != "stages" or arguments.stage_map)
    try:
        photographs = _check(arguments)
        tasks = [Task(photograph, rate) for photograph in photographs for rate in arguments.keep_rates or [None]]
        if not arguments.overwrite:
            results.refuse_foreign_pictures(tasks, kinds)
        dtype = fast_dtype(device) if arguments.fast else arguments.dtype
        if arguments.fast and dtype == "float32":
            logger.warning("--fast changes nothing: this machine has no instructions for bfloat16.")
        model, processor = load_checkpoint(arguments.model_name_or_path, arguments.model_revision, device, dtype)
        settings = settings_of(arguments, dtype, model, processor)
        results.refuse_other_settings(tasks, settings, arguments.overwrite)
    except ValueError as error:
        parser.error(str(error))
    except TransferError as error:
        sys.exit(str(error))

    output_dir.mkdir(parents=True, exist_ok=True)
    state.wait_for_everyone()  # nobody changes the folder while somebody still checks it
    if state.is_main_process:
        results.prepare(tasks, settings, kinds, arguments.overwrite)
    state.wait_for_everyone()
    done = results.done()
    left = [task for task in tasks if task.key not in done]
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
    folder, repo_id = output_dir / DATASET_FOLDER, arguments.hub_dataset_id
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
