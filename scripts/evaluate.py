"""
Measure the accuracy of a checkpoint at several keep rates.

Writes metrics.json, per_image.csv, table.md and figure.png, and prints the table; with more than two classes also
classes.png, the IoU of each class. Images are measured one at a time, so a test set of any size fits in memory. Images
that the checkpoint was trained on are refused, even if they have been renamed.

Example:
    reg4pru evaluate --model_name_or_path outputs/tiny/last --synthetic_counts 64 2 10 --output_dir outputs/evaluated
"""

import logging
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from .common.cli import CommandParser, check_at_least_1, check_threshold, set_up_logging
from .common.keep_rates import check_keep_rates
from .common.output_checks import check_writable
from .inference.arguments import EvaluationDataArguments

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EvaluationArguments(EvaluationDataArguments):
    """What is measured, and where the result goes."""

    _argument_group_name = "evaluation"

    output_dir: str = field(metadata={"help": "Folder for metrics.json, per_image.csv, table.md and figure.png."})
    side: str = field(default="test", metadata={"help": "Part of the data set to measure: train, validation or test."})
    at_working_size: bool = field(
        default=False, metadata={"help": "Measure at the model's working size rather than at the images' own."}
    )
    keep_rates: list[float] = field(
        default_factory=lambda: [1.0, 0.7, 0.5, 0.3],
        metadata={"help": "Keep rates to measure; each holds for every pruning stage, and stages compound."},
    )
    selection_pool: Literal["active", "all"] | None = field(
        default=None, metadata={"help": "What a stage chooses among; default: that of the checkpoint."}
    )
    allocation: Literal["tile", "image"] | None = field(
        default=None,
        metadata={
            "help": "Whether a keep rate holds for each tile or for the image; default: that of the checkpoint."
        },
    )
    selector: Literal["random"] | None = field(
        default=None,
        metadata={"help": "'random' selects tokens at random instead of with the trained selectors, as a control."},
    )
    skip_outside: bool = field(
        default=False,
        metadata={
            "help": "Leave out what is outside the field of view, which is found in the image "
            "(vessels). Where a keep rate holds for the image, nothing is computed there."
        },
    )
    field_of_view: bool = field(default=True, metadata={"help": "Measure inside the field of view only (vessels)."})
    threshold: float = field(
        default=0.5, metadata={"help": "With two classes: probability above which a pixel is foreground."}
    )
    batch_size: int = field(default=4, metadata={"help": "Tiles per forward pass."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Allow an output folder that is not empty."})


def check(arguments: EvaluationArguments) -> None:
    """Raises `ValueError` for what cannot work, before anything is loaded."""
    check_keep_rates(arguments.keep_rates)
    check_threshold(arguments.threshold)
    check_at_least_1(arguments, "batch_size", "limit")
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir is {output_dir}, which is a file.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not arguments.overwrite_output_dir:
        raise ValueError(
            f"--output_dir is {output_dir}, which is not empty: choose another, or add --overwrite_output_dir to "
            "replace the results in it."
        )
    if arguments.at_working_size and arguments.working_size:
        raise ValueError("Give --at_working_size or --working_size, not both.")
    check_writable(output_dir, "--output_dir")


def load(arguments: EvaluationArguments) -> tuple:
    """The model, with the selection that the flags ask for, and its image processor, which completes the flags."""
    from .inference.loading import load_checkpoint, select_at_random
    from .inference.model_classes import check_skip_applies, check_threshold_applies, is_of_vessels

    model, processor = load_checkpoint(
        arguments.model_name_or_path, arguments.model_revision, arguments.device, arguments.dtype
    )
    check_threshold_applies(arguments.threshold, model.config)
    check_skip_applies(arguments.skip_outside, model.config)
    arguments.field_of_view = arguments.field_of_view and is_of_vessels(model.config)
    if arguments.at_working_size:
        arguments.working_size = processor.working_size
    if arguments.selection_pool:
        model.config.selection_pool = arguments.selection_pool
    if arguments.allocation:
        model.config.allocation = arguments.allocation
    if arguments.selector == "random":
        select_at_random(model)
    return model, processor


def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says; exit status 1 if the results are written and a figure is not."""
    parser = CommandParser(EvaluationArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    set_up_logging()
    from .common.data_overlap import describe_data
    from .common.provenance import provenance
    from .common.weight_fingerprints import fingerprint_checkpoint
    from .inference import binary_evaluation, class_evaluation
    from .inference.evaluation_data import load_images, refuse_trained_on
    from .inference.model_classes import check_same_classes
    from .reporting.evaluation import write_results

    try:
        check(arguments)
        model, processor = load(arguments)
        weights = fingerprint_checkpoint(arguments.model_name_or_path, arguments.model_revision)
        images = load_images(arguments, arguments.side)
        check_same_classes(model.config, images, arguments.dataset)
        hashes, trained_on = refuse_trained_on(arguments, images)
    except ValueError as error:
        parser.error(str(error))

    common, inside = {"batch_size": arguments.batch_size, "seed": arguments.seed}, {}
    if model.config.num_labels == 2:
        kind, inside = binary_evaluation, {"inside_field_of_view": arguments.field_of_view}
        common |= {"threshold": arguments.threshold, "skip_outside": arguments.skip_outside}
    else:
        kind = class_evaluation
    try:
        measured = kind.measure_model(model, processor, images, arguments.keep_rates, **inside, **common)
    except ValueError as error:  # numbers of the other images alone would pass for those of all
        sys.exit(f"Not measured: {error}")
    output_dir = Path(arguments.output_dir)
    size = f"{arguments.working_size} pixels" if arguments.working_size else "their own size"
    table = kind.results_table(measured, size)
    print(table)  # first of all: whatever happens to the disk, it is not lost
    try:
        write_results(
            output_dir,
            measured,
            table,
            provenance=provenance(model.device, arguments.seed),
            settings=asdict(arguments),
            weights=weights,
            data=describe_data({arguments.side: images}),
            images=hashes,
            trained_on=trained_on,
        )
    except OSError as error:
        sys.exit(f"Measured, but {output_dir} could not be written to: {error}")
    shown = next((rate for rate in arguments.keep_rates if rate < 1), arguments.keep_rates[0])
    files = "metrics.json, per_image.csv, table.md"
    try:
        kind.draw_figures(output_dir, model, processor, images, shown, measured, **common)
    except Exception as error:  # the results are there; nothing that fails in a figure takes them back
        logger.error("Written to %s: %s; no %s: %s", output_dir, files, " and ".join(kind.FIGURES), error)
        return 1
    logger.info("Written to %s: %s", output_dir, ", ".join([files, *kind.FIGURES]))
    return 0
