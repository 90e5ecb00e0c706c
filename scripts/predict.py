"""
Segment images.

For every image, at its own size, writes <name>_mask.png (0 and 255), <name>_probability.png (16 bits: 65535 is
probability 1), <name>_overlay.png (the prediction drawn over the image) and a row of predictions.csv. For vessels the
overlay shows the field of view only; mask and probability cover the whole image. With more than two classes
<name>_mask.png is a label map (a palette image whose indices are the classes), the overlay has a legend, there is no
probability, and the table counts the pixels of each class. With --keep_rates every name ends with the rate.

Images that already have a row in the table are skipped, so a run that was stopped continues when it is started again.
Images that cannot be read or predicted are reported at the end, and the exit status is then 1. A folder holds the
predictions of one model with one set of settings, recorded in predictions.json; anything else is refused. An image
whose file has been replaced is predicted again, and a second run waits until the first has ended. Where files in
several folders have the same name, the names of their results start with those of the folders.
`accelerate launch -m reg4pru predict` distributes the images over the devices.

Example:
    reg4pru predict --model_name_or_path outputs/tiny/last --images images/ "more/*.jpg" --output_dir outputs/masks
    reg4pru predict --model_name_or_path outputs/tiny/last --dataset user/images --side test --output_dir outputs/masks
"""

import contextlib
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .common.arguments import CheckpointArguments, DatasetUploadArguments
from .common.cli import CommandParser, check_at_least_1, check_threshold, set_up_logging
from .common.keep_rates import check_keep_rates

if TYPE_CHECKING:
    from modeling_reg4pru import Reg4PruConfig

logger = logging.getLogger(__name__)
DATASET_FOLDER = "dataset"
PREDICTED_WITH = ("threshold", "skip_outside", "stage_map", "batch_size", "seed")


@dataclass(kw_only=True)
class PredictionArguments(DatasetUploadArguments, CheckpointArguments):
    """What is predicted, by which model, and where the result goes."""

    _argument_group_name = "prediction"

    output_dir: str = field(metadata={"help": "Folder for the result images, predictions.csv and predictions.json."})
    images: list[str] = field(default_factory=list, metadata={"help": "Files, folders or patterns."})
    dataset: str | None = field(
        default=None, metadata={"help": "Instead of files: a Hub id, a folder with Parquet files or a saved data set."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub data set."})
    side: str = field(default="test", metadata={"help": "Part of the data set: train, validation or test."})
    keep_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": "Keep rates to compare, each for all stages; the names of result images end in them. Default: the "
            "checkpoint's, and names without any."
        },
    )
    allocation: Literal["tile", "image"] | None = field(
        default=None,
        metadata={
            "help": "Whether a keep rate holds for each tile or for the image; default: that of the checkpoint."
        },
    )
    skip_outside: bool = field(
        default=False,
        metadata={
            "help": "Leave out what is outside the field of view, which is found in the image "
            "(vessels). Where a keep rate holds for the image, nothing is computed there."
        },
    )
    stage_map: bool = field(default=False, metadata={"help": "Also draw at which stage each token was pruned."})
    threshold: float = field(
        default=0.5, metadata={"help": "With two classes: probability above which a pixel is foreground."}
    )
    batch_size: int = field(default=4, metadata={"help": "Tiles per forward pass."})
    fast: bool = field(
        default=False,
        metadata={"help": "Compute in bfloat16 where the machine supports it; a message says where it does not."},
    )
    seed: int = field(default=0, metadata={"help": "Seed, for a checkpoint that selects tokens at random."})
    parquet: bool = field(default=False, metadata={"help": "Also write masks and probabilities as a data set."})
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Predict anew what an earlier run has done of these images and keep rates; what it did of "
            "others stays, and is refused if it was made with another model or other settings."
        },
    )


def check(arguments: PredictionArguments) -> None:
    """Raises `ValueError` for flags that cannot work, before anything is read."""
    check_threshold(arguments.threshold)
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
    if arguments.push_to_hub and not arguments.hub_dataset_id:
        raise ValueError("--push_to_hub needs --hub_dataset_id.")


def settings_of(arguments: PredictionArguments, dtype: str) -> dict:
    """What determines a prediction, but for model, image and keep rate; JSON can hold it."""
    dataset = arguments.dataset
    return {
        "model_name_or_path": arguments.model_name_or_path,
        "model_revision": arguments.model_revision,
        "dtype": dtype,
        "threshold": arguments.threshold,
        "skip_outside": arguments.skip_outside or None,  # as in folders from before there was this flag
        "stage_map": arguments.stage_map,
        "seed": arguments.seed,
        "dataset": str(Path(dataset).resolve()) if dataset and Path(dataset).exists() else dataset,
        "dataset_revision": arguments.dataset_revision,
    }


def list_tasks(arguments: PredictionArguments) -> tuple[list, list, list[str]]:
    """The images, the tasks of those whose results can be named, and what is wrong with the names of the others."""
    from .inference.input_images import list_files, list_stored
    from .inference.output_folder import Task

    if arguments.dataset:
        images = list_stored(arguments.dataset, arguments.dataset_revision, arguments.side)
    else:
        images = list_files(arguments.images, Path(arguments.output_dir))
    tasks = [Task(image, rate) for image in images for rate in arguments.keep_rates or [None]]
    unnameable = {task.image.name: problem for task in tasks if (problem := task.name_problem())}
    shown = {name: name.encode("utf-8", "backslashreplace").decode() for name in unnameable}
    problems = [f"{shown[name]}: {problem}" for name, problem in unnameable.items()]
    return images, [task for task in tasks if task.image.name not in unnameable], problems


def load(arguments: PredictionArguments, device: str | None) -> tuple:
    """The model, its image processor, the settings of its predictions, and the former fingerprint of its weights."""
    from .common.devices import fast_dtype
    from .common.weight_fingerprints import fingerprint_checkpoint, fingerprint_configuration, fingerprint_tensors
    from .inference.loading import load_checkpoint
    from .inference.model_classes import check_skip_applies, check_threshold_applies

    dtype = fast_dtype(device) if arguments.fast else arguments.dtype
    if arguments.fast and dtype == "float32":
        logger.warning("--fast changes nothing: this machine has no instructions for bfloat16.")
    model, processor = load_checkpoint(arguments.model_name_or_path, arguments.model_revision, device, dtype)
    check_threshold_applies(arguments.threshold, model.config)
    check_skip_applies(arguments.skip_outside, model.config)
    if arguments.allocation:
        model.config.allocation = arguments.allocation
    settings = settings_of(arguments, dtype) | {
        "weights": fingerprint_checkpoint(arguments.model_name_or_path, arguments.model_revision),
        "configuration": fingerprint_configuration(model, processor),
    }
    return model, processor, settings, fingerprint_tensors(model)


def made_kinds(arguments: PredictionArguments, config: "Reg4PruConfig") -> tuple[str, ...]:
    """The kinds of result images that a model of these classes makes."""
    from .inference.prediction_results import results_of

    return results_of(config, arguments.threshold).kinds + (("stages",) if arguments.stage_map else ())


def main(argv: list[str] | None = None) -> int:
    """Predict as the command line says; exit status 1 if an image could not be predicted."""
    parser = CommandParser(PredictionArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from .common.output_checks import check_writable
    from .hub.transfer import TransferError
    from .inference.output_folder import KINDS, ResultFolder
    from .inference.prediction import predict_missing

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # else processes without a GPU share nothing
    set_up_logging(logging.INFO if state.is_main_process else logging.WARNING)
    device = arguments.device or (str(state.device) if state.num_processes > 1 else None)
    output_dir = Path(arguments.output_dir)
    own = "" if state.num_processes == 1 else f"-{state.process_index}"
    results = ResultFolder(output_dir, f"predictions{own}.csv")
    kinds = tuple(kind for kind in KINDS if kind != "stages" or arguments.stage_map)
    try:
        check(arguments)
        if arguments.parquet or arguments.push_to_hub:
            check_publishing(arguments)
        images, tasks, problems = list_tasks(arguments)
        if not state.is_main_process:
            problems = []  # they are reported once
        if not arguments.overwrite:
            results.unless_busy(results.refuse_foreign_results, tasks, kinds)
        model, processor, settings, former_weights = load(arguments, device)
        made = made_kinds(arguments, model.config)
        results.unless_busy(results.refuse_other_settings, tasks, settings, arguments.overwrite, former_weights)
        check_writable(output_dir, "--output_dir")
    except ValueError as error:
        parser.error(str(error))
    except TransferError as error:
        sys.exit(str(error))

    output_dir.mkdir(parents=True, exist_ok=True)
    with results.alone() if state.is_main_process else contextlib.nullcontext():
        state.wait_for_everyone()
        try:  # once more: what another run has written until this one was alone
            if not arguments.overwrite:
                results.refuse_foreign_results(tasks, kinds)
            results.refuse_other_settings(tasks, settings, arguments.overwrite, former_weights)
        except ValueError as error:
            parser.error(str(error))
        state.wait_for_everyone()  # nobody changes the folder while somebody still checks it
        if state.is_main_process:
            results.prepare(tasks, settings, made, arguments.overwrite)
        state.wait_for_everyone()
        chosen = {name: vars(arguments)[name] for name in PREDICTED_WITH}
        there = len(results.done(tasks))
        num_predicted, own_problems = predict_missing(state, model, processor, tasks, results, **chosen)
        logger.info("Written to %s: %d predictions; %d were there already.", output_dir, num_predicted, there)
        problems += own_problems
        for problem in problems:
            print(f"Not predicted: {problem}", file=sys.stderr)
        state.wait_for_everyone()
        if (arguments.parquet or arguments.push_to_hub) and state.is_main_process:
            publish(output_dir, images, arguments)
    return 1 if problems else 0


def check_publishing(arguments: PredictionArguments) -> None:
    """Raises `ValueError` where the data set of the predictions would replace something else, here or on the Hub."""
    from .hub.prediction_dataset import TAG, check_replaceable
    from .hub.transfer import check_target

    check_replaceable(Path(arguments.output_dir) / DATASET_FOLDER)
    if arguments.push_to_hub:
        private, overwrite = arguments.hub_private_repo, arguments.overwrite_repo
        check_target(arguments.hub_dataset_id, "dataset", private=private, overwrite=overwrite, tag=TAG)


def publish(output_dir: Path, images: list, arguments: PredictionArguments) -> None:
    """Write the predictions as a data set, and upload it if that was asked for."""
    from .hub.prediction_dataset import TAG, write_dataset
    from .hub.transfer import TransferError, push_folder

    folder, repo_id = output_dir / DATASET_FOLDER, arguments.hub_dataset_id
    write_dataset(folder, output_dir, images, arguments.model_name_or_path)
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
