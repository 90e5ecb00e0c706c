"""Publishing a checkpoint: the folder with everything that belongs to it, and its upload."""

import json
import logging
import sys
import tempfile
from pathlib import Path

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.speed_budget import SPEED_FILE, check_tuned_weights, fingerprint_weights, per_image

from ..common.data_overlap import read_training_images, refuse_trained, write_training_images
from ..common.former_names import with_present_names
from ..inference.model_classes import VESSEL_CLASSES
from ..reporting.agreement import PRUNE_RESULTS
from .arguments import PushArguments
from .card_text import class_names
from .measured import check_measured, stage_measured
from .model_card import eval_results_yaml, measured_id, read_checkpoint, render_card
from .space import write_space
from .transfer import TransferError, check_target, copy_files, push_folder

logger = logging.getLogger(__name__)


def push_checkpoint(arguments: PushArguments) -> str:
    """
    Push a checkpoint with its card.

    Returns:
        `str`: The commit.

    Raises:
        `ValueError`: If a file is missing or the repository must not be pushed to; then nothing was sent.
        [`TransferError`]: If the transfer failed.
    """
    if arguments.space:  # the model would be there already when its Space is refused
        check_target(arguments.space, "space", private=arguments.hub_private_repo, overwrite=arguments.overwrite_repo)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        stage_checkpoint(arguments, folder)
        return push_folder(
            folder,
            arguments.hub_model_id,
            repo_type="model",
            commit_message=arguments.commit_message,
            private=arguments.hub_private_repo,
            overwrite=arguments.overwrite_repo,
        )


def push_space(arguments: PushArguments) -> str:
    """
    Push the Space with a demo of the checkpoint.

    Returns:
        `str`: The commit.

    Raises:
        `ValueError`, [`TransferError`]: See [`push_checkpoint`].
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "space"
        config, _ = read_checkpoint(Path(arguments.model_name_or_path))
        write_space(folder, arguments.hub_model_id, class_names(config))
        return push_folder(
            folder,
            arguments.space,
            repo_type="space",
            commit_message="Upload app",
            private=arguments.hub_private_repo,
            overwrite=arguments.overwrite_repo,
        )


def check_before_training(arguments: PushArguments) -> None:
    """Leave, with a message, if the repository must not be pushed to: not after hours of training."""
    private, overwrite = arguments.hub_private_repo, arguments.overwrite_repo
    try:
        check_target(arguments.hub_model_id, "model", private=private, overwrite=overwrite)
    except (TransferError, ValueError) as error:
        sys.exit(f"{error}\nNothing was trained.")


def push_trained(arguments: PushArguments) -> None:
    """Push what has just been trained; if that fails, end with a message that says how to push it again."""
    try:
        commit = push_checkpoint(arguments)
    except (TransferError, ValueError) as error:
        sys.exit(
            f"The training is complete and saved in {arguments.model_name_or_path}, but the push failed.\n{error}\n"
            "To push it without training again: reg4pru push "
            f"--model_name_or_path {arguments.model_name_or_path} --hub_model_id {arguments.hub_model_id}"
        )
    logger.info("Pushed to %s, commit %s.", arguments.hub_model_id, commit)


def stage_checkpoint(arguments: PushArguments, folder: Path) -> None:
    """
    Write the folder that is pushed.

    Args:
        arguments ([`PushArguments`]): What goes into it.
        folder (`Path`): A new or empty folder.

    Raises:
        `ValueError`: If a file is missing or damaged, a result is not known to be that of these weights, or the folder
            is not empty.
    """
    checkpoint = Path(arguments.model_name_or_path)
    if not (checkpoint / "config.json").is_file() or not list(checkpoint.glob("*.safetensors")):
        raise ValueError(f"--model_name_or_path is {checkpoint}: it has to contain config.json and *.safetensors.")
    train_results_path = _find_train_results(arguments)
    train_results = _read_json(train_results_path)
    metrics = _read_json(arguments.metrics)
    benchmark = _read_json(arguments.benchmark)
    tuned = _read_json(checkpoint / SPEED_FILE if (checkpoint / SPEED_FILE).exists() else None)
    if tuned is not None:
        check_tuned_weights(checkpoint, tuned)
        tuned = per_image(tuned)
    pruned = _read_pruned(checkpoint / PRUNE_RESULTS)
    for flag, content in (("metrics", metrics), ("benchmark", benchmark)):
        if content is not None:
            check_measured(flag, getattr(arguments, flag), content, checkpoint)
    if metrics and "images" not in metrics:
        logger.warning(
            "%s does not list the images: evaluate again to check that none was trained on.", arguments.metrics
        )
    elif metrics:
        trained = read_training_images(str(checkpoint))
        images, allowed = metrics.get("images", {}), arguments.allow_training_images
        metrics["trained_on"] = refuse_trained(images, trained, str(checkpoint), allowed)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)

    # Saved rather than copied, so that the code beside the weights is the code that has loaded them.
    model = Reg4PruForSemanticSegmentation.from_pretrained(checkpoint)
    model.save_pretrained(folder)
    Reg4PruImageProcessor.from_pretrained(checkpoint).save_pretrained(folder)
    copy_files([train_results_path] if train_results_path else [], folder)
    write_training_images(folder, read_training_images(str(checkpoint)))
    if tuned is not None:  # the same weights, but the files may differ
        tuned["weights"] = fingerprint_weights(folder)
        (folder / SPEED_FILE).write_text(json.dumps(tuned, indent=1) + "\n", encoding="utf-8")
    if pruned is not None:
        pruned["weights"] = fingerprint_weights(folder)
        (folder / PRUNE_RESULTS).write_text(json.dumps(pruned, indent=1) + "\n", encoding="utf-8")
    if metrics:
        _stage_metrics(Path(arguments.metrics), metrics, measured_id(metrics, arguments.hub_dataset_id), folder)
    if benchmark:
        stage_measured(Path(arguments.benchmark), benchmark, folder)
    card = render_card(
        *read_checkpoint(folder),
        arguments.hub_model_id,
        train_results=train_results,
        metrics=metrics,
        benchmark=benchmark,
        tuned=tuned,
        pruned=pruned,
        dataset_id=arguments.hub_dataset_id,
        base_model=arguments.base_model,
        license=arguments.license,
        figure=_figure(folder, "figure.png"),
        class_figure=_figure(folder, "classes.png"),
    )
    card.save(folder / "README.md")


def _read_pruned(path: Path) -> dict | None:
    """What `reg4pru prune` wrote beside the weights; raises `ValueError` if they are others now."""
    pruned = _read_json(path if path.exists() else None)
    if pruned is not None and pruned["weights"] != fingerprint_weights(path.parent):
        raise ValueError(
            f"{path} was measured with other weights than {path.parent} holds now: prune anew, or remove it."
        )
    return pruned


def _figure(folder: Path, name: str) -> str | None:
    return f"results/{name}" if (folder / "results" / name).exists() else None


def _stage_metrics(path: Path, metrics: dict, dataset_id: str | None, folder: Path) -> None:
    stage_measured(path, metrics, folder)
    copy_files([path.parent / name for name in ("per_image.csv", "figure.png", "classes.png")], folder / "results")
    if dataset_id:
        (folder / ".eval_results").mkdir()
        config, _ = read_checkpoint(folder)
        text = eval_results_yaml(metrics, dataset_id, class_names(config) == VESSEL_CLASSES)
        (folder / ".eval_results" / f"{dataset_id.split('/')[-1]}.yaml").write_text(text, encoding="utf-8")


def _find_train_results(arguments: PushArguments) -> Path | None:
    if arguments.train_results:
        return Path(arguments.train_results)
    checkpoint = Path(arguments.model_name_or_path).resolve()
    found = [folder / "train_results.json" for folder in (checkpoint, checkpoint.parent)]
    return next((path for path in found if path.is_file()), None)


def _read_json(path: str | Path | None) -> dict | None:
    if path is None:
        return None
    try:
        return with_present_names(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
