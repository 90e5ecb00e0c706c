"""Prune a checkpoint: dense states, corrections, selectors, report; killed, it goes on where it stopped."""

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch.utils.data import Subset

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.pruning_adapter import add_pruning, fingerprint_without_pruning, save_pruning_adapter

from ..common.atomic_files import replace_text
from ..common.data_overlap import read_training_images, write_training_images
from ..common.devices import usable_device
from ..common.provenance import provenance
from ..common.weight_fingerprints import fingerprint_checkpoint
from ..inference.input_images import list_files, list_stored
from ..reporting.agreement import write_report
from .agreement import measure_agreement, verdict
from .arguments import UNFINISHED, PruneArguments
from .base_model import read_base, read_processor
from .calibration import fit_correction, fit_selector
from .distillation import distill
from .images import UnlabelledImages, check_scale, divide_images
from .tile_states import SampledTiles, TileStates

logger = logging.getLogger(__name__)

SETTINGS, ADAPTER = "settings.json", "adapter"
FITTED = {
    "selector": "divergence", "drift_correction": True, "train_pruning": "hard", "routing": False,
    "blend_share_weight": 2.0, "allocation": "image",
}  # fmt: skip
# What dropping tokens at random does to a model that nothing was fitted for.
UNTRAINED = {
    "selector": "random", "drift_correction": False, "train_pruning": "none", "routing": False,
    "blend_share_weight": 0.0, "allocation": "tile", "context_grid": 0,
}  # fmt: skip
FEWEST_TILES = 32


def prune_checkpoint(arguments: PruneArguments) -> dict:
    """
    Make a checkpoint that runs at any keep rate from a dense one, on images without labels.

    Args:
        arguments ([`PruneArguments`]): What is pruned, at which level, on which images, and where the result goes.

    Returns:
        `dict`: the numbers of the report, also in `prune_results.json`.

    Raises:
        `ValueError`: for a checkpoint, images or flags that do not fit, before anything is written.
    """
    output_dir = Path(arguments.output_dir)
    device = usable_device(arguments.device)
    base = read_base(arguments.model_name_or_path, arguments.model_revision).to(device)
    if arguments.dataset:
        inputs = list_stored(arguments.dataset, arguments.dataset_revision, arguments.side)
    else:
        inputs = list_files(arguments.images, output_dir)
    images = UnlabelledImages(inputs)
    processor = read_processor(
        arguments.model_name_or_path, base.config, images.sizes, arguments.model_revision, arguments.working_size
    )
    check_scale(images.sizes, processor.working_size)
    model, results = fit_and_measure(base, processor, images, arguments)
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    trained_on = read_training_images(arguments.model_name_or_path, arguments.model_revision)
    write_training_images(output_dir, trained_on)
    if arguments.level == "calibrate":  # else all weights are new
        save_pruning_adapter(model, output_dir / ADAPTER, arguments.model_name_or_path)
    results = {
        "provenance": provenance(device, arguments.seed),
        "arguments": asdict(arguments),
        "weights": fingerprint_checkpoint(str(output_dir)),
        "images": dict(zip(images.names, images.hashes, strict=True)),
        **results,
    }
    write_report(output_dir, results)
    shutil.rmtree(output_dir / UNFINISHED)
    return results


def fit_and_measure(
    base: Reg4PruForSemanticSegmentation,
    processor: Reg4PruImageProcessor,
    images: UnlabelledImages,
    arguments: PruneArguments,
) -> tuple[Reg4PruForSemanticSegmentation, dict]:
    """
    The pruned model of a level, and the numbers of the report; a part of the images is kept for the latter.

    Args:
        base ([`Reg4PruForSemanticSegmentation`]): The dense model.
        processor ([`Reg4PruImageProcessor`]): Its image processor.
        images ([`UnlabelledImages`]): The images.
        arguments ([`PruneArguments`]): Level, stages, keep rates, and where unfinished work is kept.

    Raises:
        `ValueError`: if the images have too few tiles, or a field does not fit.
    """
    seed, keep_rates, output_dir = arguments.seed, arguments.keep_rates, Path(arguments.output_dir)
    fields = {
        "pruning_layers": arguments.pruning_layers or base.config.pruning_layers or None,
        "reactivation_layer": arguments.reactivation_layer or base.config.reactivation_layer,
        "context_grid": arguments.context_grid,
        "keep_rates": keep_rates[0],
    }
    try:
        models = {"untrained": add_pruning(base, seed, **{**fields, **UNTRAINED})}
        model = models["calibrated"] = add_pruning(base, seed, **FITTED, **fields)
    except StrictDataclassError as error:  # it wraps what is wrong with a field
        raise ValueError(str(error.__cause__ or error)) from error
    fitted_on, reported = (Subset(images, places) for places in divide_images(len(images), seed))
    tiles = SampledTiles(fitted_on, processor, arguments.num_tiles, seed)
    if len(tiles) < FEWEST_TILES:
        raise ValueError(
            f"{len(fitted_on)} images to fit on have {len(tiles)} tiles of {model.config.image_size} pixels, and at "
            f"least {FEWEST_TILES} are needed: give more images."
        )
    work = output_dir / UNFINISHED
    settings = {
        "tiles": tiles.places, "images": images.hashes, "seed": seed, "weights": fingerprint_without_pruning(base),
        "fields": fields, "working_size": processor.working_size, "level": arguments.level,
        "max_steps": arguments.max_steps,
    }  # fmt: skip
    _continue_or_begin(work, settings)
    errors = {"calibrated": _calibrate(model, tiles, work / "calibrated", seed)}
    if arguments.level == "distill":
        calibrated, model = model, add_pruning(base, seed, **FITTED, **fields)
        model.load_state_dict(calibrated.state_dict())
        pixels = TileStates(work / "calibrated", model, len(tiles)).pixels
        errors["distillation"] = distill(model, base, pixels, arguments.max_steps, seed, work / "distillation.pt")
        errors["distilled"] = _calibrate(model, tiles, work / "distilled", seed)
        models["distilled"] = model
    dense, agreement = measure_agreement(
        base, models, processor, reported, keep_rates, seed, output_dir / "figure.png"
    )
    level = list(models)[-1]
    return model, {
        "verdict": verdict(agreement[level], agreement["untrained"]),
        "num_tiles": len(tiles),
        "num_images": {"fitted_on": len(fitted_on), "reported_on": len(reported)},
        "dense": dense,
        "agreement": agreement,
        "errors": errors,
    }


def _continue_or_begin(work: Path, settings: dict) -> None:
    """What a run with other settings has left unfinished is of no use to this one."""
    path, text = work / SETTINGS, json.dumps(settings, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        logger.info("Continues what was interrupted in %s.", work.parent)
        return
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    replace_text(path, text)


def _calibrate(model: Reg4PruForSemanticSegmentation, tiles: SampledTiles, work: Path, seed: int) -> dict[str, float]:
    """Fit corrections and selectors, stage after stage; what was fitted before an interruption is read back."""
    states, errors = TileStates(work, model, len(tiles)), {}
    states.compute(tiles)
    for stage in range(model.config.num_stages):
        for kind, module, fit in (
            ("correction", model.drift_corrections[stage], fit_correction),
            ("selector", model.selectors[stage], fit_selector),
        ):
            name = f"{kind}-{stage}"
            weights, record = work / f"{name}.safetensors", work / f"{name}.json"
            if record.exists():
                module.load_state_dict(load_file(weights))
                errors[name] = json.loads(record.read_text(encoding="utf-8"))
                continue
            errors[name] = fit(model, states, stage, seed + stage)
            save_file({key: tensor.cpu() for key, tensor in module.state_dict().items()}, weights)
            replace_text(record, json.dumps(errors[name]))  # last: without it the fit is done again
    return errors
