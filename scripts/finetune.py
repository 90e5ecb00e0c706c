"""
Fine-tune a Reg4Pru checkpoint with the `Trainer` of transformers.

All flags of transformers' `TrainingArguments` are accepted as well, among them --output_dir, --max_steps,
--learning_rate, --per_device_train_batch_size, --eval_strategy, --push_to_hub and --hub_model_id; see
https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments.

Samples, their order, random draws, learning rates, keep-rate warm-up and weight average are those of `reg4pru train`:
on one CPU both end with the same weights, provided that the batches of a step divide the samples of an epoch. A run
that was killed continues, with the same result, with `--resume_from_checkpoint latest`. On SIGTERM or Ctrl-C the
current step is finished, a full state is saved, and the exit status is 143 or 130; a second Ctrl-C stops at once.

Example:
    reg4pru finetune --model_name_or_path user/reg4pru-vits16-fives --dataset user/fives --random_crop \\
        --output_dir runs/finetuned --max_steps 1000 --per_device_train_batch_size 4
"""

import sys

from .common.cli import CommandParser, set_up_logging
from .hub.arguments import PushArguments
from .training.arguments import DataArguments, FinetuneArguments, StartArguments

FLAGS = (StartArguments, DataArguments, FinetuneArguments)


def main(argv: list[str] | None = None) -> None:
    """Fine-tune as the command line says."""
    if {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
        CommandParser(FLAGS, __doc__, "--output_dir OUTPUT_DIR").parse_args(["--help"])  # without TrainingArguments
    from transformers import TrainingArguments

    from .hub.publishing import check_before_training, push_trained
    from .hub.transfer import TransferError, fetch_checkpoint
    from .training.finetuning import check_start, finetune
    from .training.interruption import TrainingError, exit_stopped

    parser = CommandParser((*FLAGS, TrainingArguments), __doc__)
    # As in `reg4pru train`: the seed also says which images validate, and those must not be trained on here.
    parser.set_defaults(seed=0)
    try:
        flags = start, _, _, training = parser.read_flags(argv)
    except ValueError as error:  # of `TrainingArguments`
        parser.error(str(error))
    set_up_logging()
    push = None
    try:
        resumed = check_start(*flags, parser.given_flags(argv))
        if training.push_to_hub:
            # Pushed once and whole at the end, with our card, not folder by folder while training.
            training.push_to_hub = False
            push = PushArguments(
                model_name_or_path=training.output_dir,
                hub_model_id=training.hub_model_id,
                hub_private_repo=bool(training.hub_private_repo),
                overwrite_repo=start.overwrite_repo,
                commit_message="Upload fine-tuned checkpoint",
            )
            check_before_training(push)
        folder = fetch_checkpoint(start.model_name_or_path, start.model_revision)
        stopped_by = finetune(folder, *flags, *resumed)
    except ValueError as error:
        parser.error(str(error))
    except TransferError as error:
        sys.exit(str(error))
    except TrainingError as error:
        sys.exit(f"Training has stopped. {error}")
    if stopped_by:
        exit_stopped(stopped_by)
    if push and training.process_index == 0:
        push_trained(push)
