"""
Measure how far a checkpoint, at several keep rates, agrees with another one unpruned.

The report of reg4pru prune has this for what it made of a dense model; this is for a training of its own.

Example:
    python -m reg4pru.pruning.agreement_with --dense_name_or_path runs/dense/last \
        --model_name_or_path runs/default/last --dataset path/to/fives --split sample --output agreement.json
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..common.cli import CommandParser, check_at_least_1, set_up_logging
from ..common.keep_rates import check_keep_rates
from ..common.output_checks import check_writable
from ..inference.arguments import AsSeenArguments


@dataclass(kw_only=True)
class AgreementArguments(AsSeenArguments):
    """Two checkpoints, and the test images that they are compared on."""

    _argument_group_name = "agreement"

    dense_name_or_path: str = field(metadata={"help": "The checkpoint that is compared with, unpruned."})
    output: str = field(metadata={"help": "JSON file to write; it must not exist."})
    keep_rates: list[float] = field(
        default_factory=lambda: [1.0, 0.7, 0.5, 0.3], metadata={"help": "Keep rates of the other checkpoint."}
    )


def check(arguments: AgreementArguments) -> None:
    """Raises `ValueError` for what cannot work, before anything is loaded."""
    check_keep_rates(arguments.keep_rates)
    check_at_least_1(arguments, "limit", "working_size")
    if Path(arguments.output).exists():
        raise ValueError(f"--output is {arguments.output}, which exists: choose another.")
    check_writable(Path(arguments.output).parent, "--output")


def main(argv: list[str] | None = None) -> None:
    """Write `mean_iou` by keep rate, and what made it."""
    parser = CommandParser(AgreementArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    set_up_logging()
    from ..common.atomic_files import replace_text
    from ..common.keep_rates import rate_name
    from ..common.provenance import provenance
    from ..inference.evaluation_data import load_as_seen
    from ..inference.loading import load_checkpoint
    from ..inference.model_classes import check_same_classes
    from .agreement import Reported, measure_agreement

    try:
        check(arguments)
        model, processor = load_checkpoint(
            arguments.model_name_or_path, arguments.model_revision, arguments.device, arguments.dtype
        )
        dense, _ = load_checkpoint(arguments.dense_name_or_path, None, arguments.device, arguments.dtype)
        rows = load_as_seen(arguments, processor, "test")
        for each in (model, dense):
            check_same_classes(each.config, rows, arguments.dataset)
    except ValueError as error:
        parser.error(str(error))

    reported = Reported([row["image"] for row in rows])
    rates = {"other": arguments.keep_rates}
    _, found = measure_agreement(dense, {"other": model}, processor, reported, rates, arguments.seed)
    content = {
        "mean_iou": {rate_name(rate): row["mean_iou"] for rate, row in found["other"].items()},
        "num_images": len(rows),
        "settings": asdict(arguments),
        "provenance": provenance(model.device, arguments.seed),
    }
    replace_text(Path(arguments.output), json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
