"""
Train a Reg4Pru model.

A recipe is a YAML file, or the name of one that comes with the package; it comes first, and flags override it. A run
that was killed continues with `--resume_from_checkpoint latest`. SIGTERM lets it finish its step and save a full
state; the exit code is 143.

Example:
    reg4pru train tiny_synthetic --output_dir outputs/tiny
    accelerate launch -m reg4pru train fives_vits16_1024 --dataset path/to/fives --output_dir runs/vits16
"""

import logging
import sys

from .hub.arguments import PushArguments
from .training.command_line import make_parser, parse_arguments

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    told = *_, arguments = parse_arguments(argv, __doc__)
    from .hub.publishing import check_before_training, push_trained
    from .training.interruption import TERMINATED, TrainingError
    from .training.run import check_start, train

    push = None
    try:
        start = check_start(*told)
        if arguments.push_to_hub:
            target = {name: vars(arguments)[name] for name in ("hub_model_id", "hub_private_repo", "overwrite_repo")}
            push = PushArguments(model_name_or_path=arguments.output_dir, **target)
            check_before_training(push)
        checkpoint, finished, is_main = train(*told, *start)
    except ValueError as error:
        make_parser().error(str(error))
    except TrainingError as error:
        sys.exit(f"Training has stopped. {error}")
    if not finished:
        logger.warning("Ended by SIGTERM; continue with --resume_from_checkpoint latest.")
        sys.exit(TERMINATED)
    if push and is_main:
        push.model_name_or_path = str(checkpoint)
        push_trained(push)
