"""All of `reg4pru prune`: images, levels, report, checkpoint; killed, it goes on where it stopped."""

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path

from torch.utils.data import Subset

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.pruning_adapter import save_pruning_adapter

from ..common.data_overlap import read_training_images, write_training_images
from ..common.devices import usable_device
from ..common.provenance import provenance
from ..common.spread import spread
from ..common.weight_fingerprints import fingerprint_checkpoint
from ..inference.input_images import list_files
from ..reporting.agreement import write_report
from .agreement import Reported, measure_agreement, verdict
from .arguments import UNFINISHED, PruneArguments
from .base_model import read_base, read_processor
from .images import UnlabelledImages, check_scale, check_variety, divide_images
from .levels import Fitting
from .sources import ImageSource, read_sides, side_of
from .speed import write_speed

ADAPTER = "adapter"


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
    images, fitted_on, reported = _read_images(base, arguments)
    processor = read_processor(
        arguments.model_name_or_path, base.config, images.sizes, arguments.model_revision, arguments.working_size
    )
    check_scale(images.sizes, processor.working_size)
    model, results = fit_and_measure(base, processor, images, fitted_on, reported, arguments)
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    trained_on = read_training_images(arguments.model_name_or_path, arguments.model_revision)
    if arguments.level == "labels" and trained_on is not None:
        trained_on |= {images.hashes[place] for place in fitted_on}
    write_training_images(output_dir, trained_on)
    if arguments.level == "calibrate":  # else all weights are new
        save_pruning_adapter(model, output_dir / ADAPTER, arguments.model_name_or_path)
    digest = hashlib.blake2b("".join(sorted(images.hashes)).encode(), digest_size=16)
    results = {
        "provenance": provenance(device, arguments.seed),
        "arguments": asdict(arguments),
        "weights": fingerprint_checkpoint(str(output_dir)),
        "fingerprint": digest.hexdigest(),
        "images": dict(zip(images.names, images.hashes, strict=True)),
        **results,
    }
    write_speed(output_dir, model, processor, reported.images[0], results)
    write_report(output_dir, results)
    shutil.rmtree(output_dir / UNFINISHED)
    return results


def _read_images(
    base: Reg4PruForSemanticSegmentation, arguments: PruneArguments
) -> tuple[UnlabelledImages, list[int], Reported]:
    """The images, which of them to fit on, and what to report on: others of them, or those of another side."""
    sides = {}
    if arguments.dataset:
        sides = read_sides(arguments, base.config)
        source = side_of(sides, arguments.side, "--side")
    else:
        source = ImageSource(list_files(arguments.images, Path(arguments.output_dir)))
    if source.rows is None and arguments.level == "labels":
        raise ValueError(f"--level is 'labels', but {arguments.dataset or '--images'} has none: give --dataset.")
    images = UnlabelledImages(source.inputs)
    check_variety(images)
    if not arguments.report_side:
        fitted_on, kept = divide_images(len(images), arguments.seed)
        labels = source.labels([images.names[place] for place in kept])
        return images, fitted_on, Reported(Subset(images, kept), labels)
    other = side_of(sides, arguments.report_side, "--report_side")
    places = spread(len(other.inputs), arguments.report_limit)
    shown = UnlabelledImages([other.inputs[place] for place in places])
    common = sorted(set(images.hashes) & set(shown.hashes))
    if common:
        name = images.names[images.hashes.index(common[0])]
        raise ValueError(
            f"{len(common)} images of --report_side {arguments.report_side} are among those of --side "
            f"{arguments.side}, such as {name}: a report on what was fitted to tells little."
        )
    return images, list(range(len(images))), Reported(shown, other.labels(shown.names))


def fit_and_measure(
    base: Reg4PruForSemanticSegmentation,
    processor: Reg4PruImageProcessor,
    images: UnlabelledImages,
    fitted_on: list[int],
    reported: Reported,
    arguments: PruneArguments,
) -> tuple[Reg4PruForSemanticSegmentation, dict]:
    """
    The pruned model of a level, and the numbers of the report.

    Args:
        base ([`Reg4PruForSemanticSegmentation`]): The dense model.
        processor ([`Reg4PruImageProcessor`]): Its image processor.
        images ([`UnlabelledImages`]): The images.
        fitted_on (`list[int]`): Places of those to fit on.
        reported ([`Reported`]): What the report is on.
        arguments ([`PruneArguments`]): Level, stages, keep rates, and where unfinished work is kept.

    Raises:
        `ValueError`: if the images have too few tiles, or a field does not fit.
    """
    fitting = Fitting(base, processor, images, fitted_on, arguments)
    model = fitting.run()
    level = list(fitting.models)[-1]
    rates = dict.fromkeys(fitting.models, arguments.keep_rates)
    if arguments.level != "calibrate":  # its unpruned prediction is no longer the dense one
        rates[level] = [1.0, *(rate for rate in arguments.keep_rates if rate < 1)]
    figure = Path(arguments.output_dir) / "figure.png"
    dense, agreement = measure_agreement(base, fitting.models, processor, reported, rates, arguments.seed, figure)
    return model, {
        "verdict": verdict(agreement[level], agreement["untrained"], dense),
        "num_tiles": len(fitting.tiles),
        "num_images": {"fitted_on": len(fitted_on), "reported_on": len(reported.images)},
        **fitting.seconds,
        "dense": dense,
        "agreement": agreement,
        "errors": fitting.errors,
    }
