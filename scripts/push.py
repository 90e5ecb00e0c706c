"""
Push a checkpoint to the Hub: weights, configuration, image processor, code for remote use, results and a model card.

Everything is pushed in one commit, or nothing is. --output_dir only writes the same files to a folder, for inspection.
--space also pushes a Space where the checkpoint can be tried (with --output_dir, it is written to <output_dir>-space).

Example:
    reg4pru push --model_name_or_path runs/vits16/best --metrics runs/vits16-evaluated/metrics.json \\
        --hub_model_id user/reg4pru-vits16-fives --space user/vessels
"""

import logging
import sys
from pathlib import Path

from .common.cli import CommandParser, set_up_logging
from .common.output_checks import check_writable
from .hub.arguments import PushArguments

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Push, or only write, as the command line says."""
    parser = CommandParser(PushArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    set_up_logging()
    from .hub.publishing import push_checkpoint, push_space, stage_checkpoint
    from .hub.space import write_space
    from .hub.transfer import TransferError

    try:
        if arguments.output_dir is not None:
            check_writable(Path(arguments.output_dir), "--output_dir")
            stage_checkpoint(arguments, Path(arguments.output_dir))
            if arguments.space:
                write_space(Path(f"{arguments.output_dir}-space"), arguments.hub_model_id)
            logger.info("Written to %s; nothing was pushed.", arguments.output_dir)
            return
        commit = push_checkpoint(arguments)
        logger.info("Pushed to %s, commit %s.", arguments.hub_model_id, commit)
        if arguments.space:
            logger.info("Pushed the Space %s, commit %s.", arguments.space, push_space(arguments))
    except ValueError as error:
        parser.error(str(error))
    except TransferError as error:
        sys.exit(str(error))
