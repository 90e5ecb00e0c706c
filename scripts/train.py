"""
Train a Reg4Pru model.

The recipe, a YAML file or the name of one that comes with the package, is the first argument; flags override it. A run
that was killed continues with `--resume_from_checkpoint latest`. On SIGTERM or Ctrl-C the current step is finished, a
full state is saved, and the exit status is 143 or 130; a second Ctrl-C stops at once.

Example:
    reg4pru train tiny_synthetic --output_dir outputs/tiny
    accelerate launch -m reg4pru train fives_vits16_1024 --dataset path/to/fives --output_dir runs/vits16
"""

import sys

from .hub.arguments import PushArguments
from .training.command_line import make_parser, parse_arguments


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    flags = *_, arguments = parse_arguments(argv, __doc__)
    from .hub.publishing import check_before_training, push_trained
    from .training.interruption import TrainingError, exit_stopped
    from .training.run import check_start, train

    push = None
    try:
        start = check_start(*flags)
        if arguments.push_to_hub:
            target = {name: vars(arguments)[name] for name in ("hub_model_id", "hub_private_repo", "overwrite_repo")}
            push = PushArguments(model_name_or_path=arguments.output_dir, **target)
            check_before_training(push)
        checkpoint, stopped_by, is_main = train(*flags, *start)
    except ValueError as error:
        make_parser().error(str(error))
    except TrainingError as error:
        sys.exit(f"Training has stopped. {error}")
    if stopped_by:
        exit_stopped(stopped_by)
    if push and is_main:
        push.model_name_or_path = str(checkpoint)
        push_trained(push)
