"""A run of `reg4pru train`, from its flags to its last step."""

import logging
from pathlib import Path

from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import parse_flag_from_env, set_seed

from datasets_fives import class_names
from modeling_reg4pru import Reg4PruForSemanticSegmentation

from ..common.cli import set_up_logging
from ..common.devices import warn_of_emulation
from ..common.output_checks import check_writable
from .arguments import DataArguments, ModelArguments, TrainArguments
from .checkpoints import find_checkpoint
from .distillation import check_distillation
from .interruption import end_training
from .loop import TrainingRun
from .output_folder import check_overwriting, holds_files, is_inside, lock_folder, remove_run
from .run_record import check_state, settings_of
from .setup import build_model, check_processes, load_data, read_overrides


def check_start(
    model_arguments: ModelArguments, data_arguments: DataArguments, arguments: TrainArguments
) -> tuple[str | None, bool]:
    """
    Check everything that can be checked before anything is loaded.

    Returns:
        `tuple`: Folder of the full state to resume from, or `None`, and whether it is of the run in the output folder.

    Raises:
        `ValueError`: for processes, a folder, a full state or settings that do not fit.
    """
    num_processes = _processes().num_processes
    settings = settings_of(num_processes, model_arguments, data_arguments, arguments)
    output_dir = Path(arguments.output_dir)
    check_processes(num_processes)
    check_writable(output_dir, "--output_dir")
    resume_from = find_checkpoint(output_dir, arguments.resume_from_checkpoint)
    # A state of another run may start this one, but only in a new folder.
    same_run = resume_from is not None and is_inside(Path(resume_from), output_dir)
    if not same_run and holds_files(output_dir):
        if not arguments.overwrite_output_dir:
            raise ValueError(
                f"--output_dir is {output_dir}, which is not empty: resume it, choose another or pass "
                "--overwrite_output_dir."
            )
        sources = ("model_name_or_path", "backbone_name_or_path", "dataset", "split", "resume_from_checkpoint")
        check_overwriting(output_dir, {flag: settings[flag] for flag in sources})
    if resume_from is not None:
        began = output_dir if same_run else Path(resume_from).absolute().parents[1]
        check_state(Path(resume_from), began, same_run, settings)
    return resume_from, same_run


def train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainArguments,
    resume_from: str | None = None,
    same_run: bool = False,
) -> tuple[Path, int, bool]:
    """
    Train with these flags.

    Args:
        model_arguments (`ModelArguments`), data_arguments (`DataArguments`), arguments (`TrainArguments`): The flags.
        resume_from (`str`, *optional*), same_run (`bool`, *optional*, defaults to `False`): From [`check_start`].

    Returns:
        `tuple`: the folder of the checkpoint to use, the signal that ended the run before its last step (0: none), and
        whether this is the main process.

    Raises:
        `ValueError`: for data or a model that do not fit; before the first step.
        [`TrainingError`]: if a loss is not finite, or the disk cannot be written to.
    """
    state = _processes()
    if state.is_main_process:
        warn_of_emulation(arguments.mixed_precision, str(state.device))
    read_overrides(model_arguments)  # what is wrong there is said before images are read
    data = load_data(data_arguments, arguments.seed)
    set_seed(arguments.seed)
    model = build_model(model_arguments, class_names(data["train"]))
    check_distillation(model.config, arguments.distillation)
    state.wait_for_everyone()  # every process has checked the folder as it was
    with lock_folder(Path(arguments.output_dir), state.is_main_process):
        flags = model_arguments, data_arguments, arguments
        accelerator, best, stopped_by = _run(model, data, *flags, resume_from, same_run)
        del model  # only the accelerator holds it now
        end_training(accelerator)
    return Path(arguments.output_dir) / best, stopped_by, accelerator.is_main_process


def _processes() -> PartialState:
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator begins it


def _run(
    model: Reg4PruForSemanticSegmentation,
    data: dict,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TrainArguments,
    resume_from: str | None,
    same_run: bool,
) -> tuple[Accelerator, str, int]:
    """
    Train; returns the accelerator, which nothing else holds on to, the name of the checkpoint to use, and the
    signal that ended the run before its last step (0: none).
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
    run = TrainingRun(model, data, model_arguments, data_arguments, arguments, accelerator, resume_from, same_run)
    # Only now, when nothing can be refused any more.
    if not same_run and arguments.overwrite_output_dir and accelerator.is_main_process:
        remove_run(output_dir)
    accelerator.wait_for_everyone()
    stopped_by = run.train()
    return accelerator, "best" if run.progress["best_step"] else "last", stopped_by
