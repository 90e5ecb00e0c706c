"""
Train a Reg4Pru model.

    reg4pru train tiny_synthetic --output_dir outputs/tiny
    accelerate launch -m reg4pru train fives_vits16_1024 --dataset path/to/fives --output_dir runs/vits16

A recipe is a YAML file, or the name of one that comes with the package. Flags override the recipe; a killed run goes
on with `--resume_from_checkpoint latest`. SIGTERM lets it finish its step and save a full state; the exit code is 143.
"""

import logging
import sys
from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import parse_flag_from_env, set_seed

from modeling_reg4pru import Reg4PruForSemanticSegmentation

from .common.cli import set_up_logging
from .common.devices import warn_of_emulation
from .hub.publishing import PushArguments, push_trained
from .hub.transfer import TransferError, check_target
from .training.arguments import DataArguments, ModelArguments, TrainArguments, make_parser, parse_arguments
from .training.checkpoints import find_checkpoint
from .training.distillation import check_distillation
from .training.interruption import (
    TERMINATED,
    TrainingError,
    check_processes,
    check_writable,
    is_begun,
    leave_processes,
    sole_run,
)
from .training.loop import TrainingRun
from .training.run_record import check_overwriting, check_state, lies_in, remove_run, settings_of
from .training.setup import build_model, load_data

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    told = model_arguments, data_arguments, arguments = parse_arguments(argv)
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator begins it
    output_dir = Path(arguments.output_dir)
    try:
        start = check(settings_of(state.num_processes, *told), state.num_processes)
        if arguments.push_to_hub:  # refused before training, not after it
            _check_hub(arguments)
        if state.is_main_process:
            warn_of_emulation(arguments.mixed_precision, str(state.device))
        set_seed(arguments.seed)
        model = build_model(model_arguments)
        if arguments.distillation:
            check_distillation(model.config)
        data = load_data(data_arguments, arguments.seed)
        state.wait_for_everyone()  # all have seen the folder as it was
        with sole_run(output_dir, state.is_main_process):
            accelerator, best, finished = _run(model, data, *told, *start)
            del model  # the accelerator's own
            leave_processes(accelerator)
    except ValueError as error:
        make_parser().error(str(error))
    except TrainingError as error:
        sys.exit(f"Training has stopped. {error}")
    if not finished:
        logger.warning("Ended by SIGTERM; go on with --resume_from_checkpoint latest.")
        sys.exit(TERMINATED)
    if arguments.push_to_hub and accelerator.is_main_process:
        push_trained(
            PushArguments(
                model_name_or_path=str(output_dir / best),
                hub_model_id=arguments.hub_model_id,
                hub_private_repo=arguments.hub_private_repo,
                overwrite_repo=arguments.overwrite_repo,
            )
        )


def check(settings: dict, num_processes: int) -> tuple[str | None, bool]:
    """
    Refuse what cannot work before anything is loaded.

    Args:
        settings (`dict`): All flags, from [`~reg4pru.training.run_record.settings_of`].
        num_processes (`int`): How many train together.

    Returns:
        `tuple`: Folder of the full state to resume from, or `None`, and whether the run in the output folder goes on.

    Raises:
        `ValueError`: for processes, a folder, a full state or settings that do not fit.
    """
    output_dir = Path(settings["output_dir"])
    check_processes(num_processes)
    check_writable(output_dir)
    resume_from = find_checkpoint(output_dir, settings["resume_from_checkpoint"])
    # A state of another run may be the start of this one, but then this folder is new, too.
    goes_on = resume_from is not None and lies_in(Path(resume_from), output_dir)
    if not goes_on and is_begun(output_dir):
        if not settings["overwrite_output_dir"]:
            raise ValueError(
                f"--output_dir is {output_dir}, which is not empty: resume it, choose another or pass "
                "--overwrite_output_dir."
            )
        sources = ("model_name_or_path", "backbone_name_or_path", "dataset", "split", "resume_from_checkpoint")
        check_overwriting(output_dir, {flag: settings[flag] for flag in sources})
    if resume_from is not None:
        began = output_dir if goes_on else Path(resume_from).absolute().parents[1]
        check_state(Path(resume_from), began, goes_on, settings)
    return resume_from, goes_on


def _check_hub(arguments: TrainArguments) -> None:
    private, overwrite = arguments.hub_private_repo, arguments.overwrite_repo
    try:
        check_target(arguments.hub_model_id, "model", private=private, overwrite=overwrite)
    except (TransferError, ValueError) as error:
        sys.exit(f"{error}\nNothing was trained.")


def _run(
    model: Reg4PruForSemanticSegmentation,
    data: dict,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainArguments,
    resume_from: str | None,
    goes_on: bool,
) -> tuple[Accelerator, str, bool]:
    """
    Train; returns the accelerator, which nothing else holds on to, the name of the checkpoint to use, and whether all
    steps were done.
    """
    output_dir = Path(arguments.output_dir)
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=arguments.report_to or None,
        project_dir=output_dir,
        # An untrained selector (train_pruning="none") has no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_up_logging(logging.INFO if accelerator.is_main_process else logging.WARNING)
    run = TrainingRun(model, data, model_arguments, data_arguments, arguments, accelerator, resume_from, goes_on)
    # Only now, when nothing can be refused any more.
    if not goes_on and arguments.overwrite_output_dir and accelerator.is_main_process:
        remove_run(output_dir)
    accelerator.wait_for_everyone()
    finished = run.train()
    return accelerator, "last" if run.validation_loader is None else "best", finished
