"""
Train a Reg4Pru model.

    reg4pru train tiny_synthetic --output_dir outputs/tiny
    accelerate launch -m reg4pru train fives_vits16_1024 --dataset path/to/fives --output_dir runs/vits16

A recipe is a YAML file, or the name of one that comes with the package. Flags override the recipe; a killed run goes
on with `--resume_from_checkpoint latest`.
"""

import logging
import shutil
import sys
from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed

from ..console import set_up_logging
from ..hub.publishing import PushArguments, push_trained
from ..hub.transfer import TransferError, check_target
from .arguments import DataArguments, ModelArguments, TrainArguments, parse_arguments
from .building import build_model
from .checkpoints import find_checkpoint
from .data import load_data
from .distillation import check_distillation
from .loop import TrainingRun
from .processes import leave_processes


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    model_arguments, data_arguments, arguments = parse_arguments(argv)
    output_dir = Path(arguments.output_dir)
    resume_from = find_checkpoint(output_dir, arguments.resume_from_checkpoint)
    # A state of another run may be the start of this one, but then this folder is new, too.
    goes_on = resume_from is not None and output_dir.resolve() in Path(resume_from).resolve().parents
    if not goes_on and output_dir.exists() and any(output_dir.iterdir()) and not arguments.overwrite_output_dir:
        raise ValueError(f"{output_dir} is not empty: resume it, choose another or pass --overwrite_output_dir.")

    if arguments.push_to_hub:  # refused before training, not after it
        private, overwrite = arguments.hub_private_repo, arguments.overwrite_repo
        try:
            check_target(arguments.hub_model_id, "model", private=private, overwrite=overwrite)
        except (TransferError, ValueError) as error:
            sys.exit(f"{error}\nNothing was trained.")

    accelerator, best = _run(model_arguments, data_arguments, arguments, resume_from, goes_on)
    leave_processes(accelerator)
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
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainArguments,
    resume_from: str | None,
    goes_on: bool,
) -> tuple[Accelerator, str]:
    """Train; returns the accelerator, which nothing else holds on to, and the name of the checkpoint to use."""
    output_dir = Path(arguments.output_dir)
    set_seed(arguments.seed)
    model = build_model(model_arguments)
    if arguments.distillation:
        check_distillation(model.config)
    data = load_data(data_arguments, model.config.image_size, arguments.seed)
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
        shutil.rmtree(output_dir, ignore_errors=True)
    accelerator.wait_for_everyone()
    output_dir.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(model, data, model_arguments, data_arguments, arguments, accelerator, resume_from)
    run.train()
    return accelerator, "last" if run.validation_loader is None else "best"
