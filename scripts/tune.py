"""
Choose keep rate, allocation, overlap of tiles and engine of a trained checkpoint for this machine.

One checkpoint serves every keep rate, so nothing is trained. The accuracy of every setting is measured on the
validation images, and its time on the first of them, with all of its tiles, interleaved with all other settings.
speed.json, speed.md and speed.png are written to the checkpoint; they hold the settings that no other setting beats
in both time and accuracy (average precision, or mean IoU with more than two classes). An interrupted measurement
continues when it is started again. --budget_ms then writes the most accurate setting within a budget to the
configurations of the checkpoint and its image processor; if speed.json already exists, nothing is measured again.

Example:
    reg4pru tune --model_name_or_path runs/vits16/best --dataset user/fives --split resplit
    reg4pru tune --model_name_or_path runs/vits16/best --budget_ms 2000
"""

import logging

from .benchmarking.arguments import TuneArguments
from .common.cli import CommandParser, set_up_logging

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Tune as the command line says."""
    parser = CommandParser(TuneArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    set_up_logging()
    import torch

    from modeling_reg4pru.speed_budget import SPEED_FILE

    from .benchmarking.tuning import REPORTS, Tuning, check_arguments, speed_markdown, write_choice
    from .common.former_names import with_present_names
    from .common.output_checks import check_writable
    from .inference.evaluation_data import load_as_seen
    from .inference.loading import load_checkpoint
    from .inference.model_classes import check_same_classes

    try:
        folder = check_arguments(arguments)
        check_writable(folder, "--model_name_or_path")  # the results are written into it
        if arguments.num_threads:
            torch.set_num_threads(arguments.num_threads)
        model, processor = load_checkpoint(str(folder), None, arguments.device, arguments.dtype)
        if (folder / SPEED_FILE).exists() and not arguments.overwrite:
            speed = with_present_names(model.read_speed())
            logger.info("Measured on %s; --overwrite measures again.", speed["provenance"]["date"])
        else:
            images = load_as_seen(arguments, processor, "validation")
            check_same_classes(model.config, images, arguments.dataset)
            speed = Tuning(arguments, folder, model, processor, images).run()
            logger.info("Written to %s: %s", folder, ", ".join(REPORTS))
        print(speed_markdown(speed))
        if arguments.budget_ms is not None:
            write_choice(folder, speed, arguments.budget_ms)
    except ValueError as error:
        parser.error(str(error))
