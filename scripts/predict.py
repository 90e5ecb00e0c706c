"""
Find the vessels in images.

    reg4pru predict --model_name_or_path outputs/tiny --images images/ "more/*.jpg" --output_dir outputs/masks
    reg4pru predict --model_name_or_path outputs/tiny --dataset user/images --side test --output_dir outputs/masks
    accelerate launch -m reg4pru predict ...        shares the images out over the devices

writes for every image, at its own size, `<name>_mask.png` (0 and 255), `<name>_probability.png` (16 bits: 65535
is probability 1) and `<name>_overlay.png` (the vessels drawn over the image, inside the field of view only), and
a row of `predictions.csv`. Mask and probability are as the model predicts them, outside the field of view, too. With
`--keep_rates` every name ends in the rate. Images whose row stands in the table already are left out, so a run
that was stopped goes on where it was; one that cannot be read is reported at the end. A folder holds the predictions
of one model made one way, as `predictions.json` says, and others are refused. With `--parquet` masks and
probabilities also become a data set in `dataset/`, which `--push_to_hub` uploads.
"""

import logging
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm import tqdm
from transformers import BaseImageProcessor, HfArgumentParser

from modeling_reg4pru import Reg4PruForSemanticSegmentation

from .common.cli import check_at_least_1, read_flags, set_up_logging
from .common.devices import fast_dtype
from .common.keep_rates import check_keep_rates
from .common.weight_fingerprints import fingerprints
from .hub.prediction_dataset import TAG, check_replaceable, write_dataset
from .hub.transfer import TransferError, check_target, push_folder
from .inference.input_images import InputImage, list_files, list_stored
from .inference.loading import load_checkpoint
from .inference.output_folder import KINDS, ResultFolder, Task
from .inference.prediction import PredictionArguments, predict_files

logger = logging.getLogger(__name__)
DATASET_FOLDER = "dataset"


def settings_of(
    arguments: PredictionArguments, dtype: str, model: Reg4PruForSemanticSegmentation, processor: BaseImageProcessor
) -> dict:
    """What determines a prediction, but for image and keep rate; JSON can hold it."""
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


def _check(arguments: PredictionArguments) -> list[InputImage]:
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
        images = list_stored(arguments.dataset, arguments.dataset_revision, arguments.side)
    else:
        images = list_files(arguments.images)
        if any(output_dir.resolve() == Path(image.name).resolve().parent for image in images):
            raise ValueError(f"--output_dir is {output_dir}, the folder of the images: choose another.")
    return images


def main(argv: list[str] | None = None) -> int:
    """Predict as the command line says; exit status 1 if an image could not be read."""
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
        images = _check(arguments)
        tasks = [Task(image, rate) for image in images for rate in arguments.keep_rates or [None]]
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
            unit="image",
            disable=not state.is_local_main_process,
        )
        problems = list(predict_files(model, processor, bar, results, arguments))
    logger.info("Written to %s: %d predictions; %d were there already.", output_dir, len(left), len(tasks) - len(left))
    for problem in problems:
        print(f"Not predicted: {problem}", file=sys.stderr)
    state.wait_for_everyone()
    if (arguments.parquet or arguments.push_to_hub) and state.is_main_process:
        _publish(output_dir, images, arguments)
    return 1 if problems else 0


def _publish(output_dir: Path, images: list[InputImage], arguments: PredictionArguments) -> None:
    """The predictions as a data set, and on the Hub."""
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
