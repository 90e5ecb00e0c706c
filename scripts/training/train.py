"""
Train a Reg4Pru model.

    reg4pru train tiny_synthetic --output_dir outputs/tiny
    accelerate launch -m reg4pru train fives_vits16_1024 --dataset path/to/fives --output_dir runs/vits16

A recipe is a YAML file, or the name of one that comes with the package. Flags override the recipe; a killed run goes
on with `--resume_from_checkpoint latest`. SIGTERM lets it finish its step and save a full state; the exit code is 143.
"""

import logging
import shutil
import sys
from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import parse_flag_from_env, set_seed

from modeling_reg4pru import Reg4PruForSemanticSegmentation

from ..console import set_up_logging
from ..hub.publishing import PushArguments, push_trained
from ..hub.transfer import TransferError, check_target
from .arguments import DataArguments, ModelArguments, TrainArguments, parse_arguments
from .building import build_model
from .checkpoints import find_checkpoint
from .data import load_data
from .distillation import check_distillation
from .loop import TrainingRun
from .processes import LOCK, check_processes, check_writable, is_begun, leave_processes, sole_run
from .stopping import TERMINATED, TrainingError

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    model_arguments, data_arguments, arguments = parse_arguments(argv)
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator begins it
    check_processes(state.num_processes)
    output_dir = Path(arguments.output_dir)
    check_writable(output_dir)
    resume_from = find_checkpoint(output_dir, arguments.resume_from_checkpoint)
    # A state of another run may be the start of this one, but then this folder is new, too.
    goes_on = resume_from is not None and output_dir.resolve() in Path(resume_from).resolve().parents
    if not goes_on and is_begun(output_dir) and not arguments.overwrite_output_dir:
        raise ValueError(f"{output_dir} is not empty: resume it, choose another or pass --overwrite_output_dir.")

    if arguments.push_to_hub:  # refused before training, not after it
        private, overwrite = arguments.hub_private_repo, arguments.overwrite_repo
        try:
            check_target(arguments.hub_model_id, "model", private=private, overwrite=overwrite)
        except (TransferError, ValueError) as error:
            sys.exit(f"{error}\nNothing was trained.")

    set_seed(arguments.seed)
    model = build_model(model_arguments)
    if arguments.distillation:
        check_distillation(model.config)
    data = load_data(data_arguments, arguments.seed)
    state.wait_for_everyone()  # all have seen the folder as it was
    try:
        with sole_run(output_dir, state.is_main_process):
            start = (resume_from, goes_on)
            accelerator, best, finished = _run(model, data, model_arguments, data_arguments, arguments, *start)
            del model  # the accelerator's own
            leave_processes(accelerator)
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
    if not goes_on and arguments.overwrite_output_dir and accelerator.is_main_process:
        _empty(output_dir)
    accelerator.wait_for_everyone()
    run = TrainingRun(model, data, model_arguments, data_arguments, arguments, accelerator, resume_from)
    finished = run.train()
    return accelerator, "last" if run.validation_loader is None else "best", finished


def _empty(output_dir: Path) -> None:
    for path in output_dir.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
