"""
Push a checkpoint to the Hub: weights, configuration, image processor, code for remote use, results and a model card.

    reg4pru push --model_name_or_path runs/vits16/best --metrics runs/vits16-evaluated/metrics.json \
        --hub_model_id user/reg4pru-vits16-fives

All of it arrives as one commit or not at all. `--output_dir` writes the same folder here, to look at before.
"""

import logging
import sys
from pathlib import Path

from transformers import HfArgumentParser

from ..console import set_up_logging
from .publishing import PushArguments, push_checkpoint, stage_checkpoint
from .transfer import TransferError

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Push, or only write, as the command line says."""
    set_up_logging()
    parser = HfArgumentParser(PushArguments)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    try:
        if arguments.output_dir is not None:
            stage_checkpoint(arguments, Path(arguments.output_dir))
            logger.info("Written to %s; nothing was pushed.", arguments.output_dir)
            return
        commit = push_checkpoint(arguments)
    except ValueError as error:
        parser.error(str(error))
    except TransferError as error:
        sys.exit(str(error))
    logger.info("Pushed to %s, commit %s.", arguments.hub_model_id, commit)
