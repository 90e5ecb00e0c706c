"""
Prune a segmentation ViT that was never trained for it, on images without labels.

Takes an EoMT checkpoint (DINOv2 or DINOv3, any classes) or one of this project. Its weights stay as they are; a
selector and a drift correction for each pruning stage are fitted to what they compute, in minutes. With --level
distill all weights then learn to predict the same with fewer tokens. Writes a checkpoint that runs at any keep rate,
an adapter with what is new alone, and a report: how far the pruned prediction agrees with the unpruned one on images
that nothing was fitted to, what that saves here, and where they differ. A run that was killed continues when it is
started again.

Example:
    reg4pru prune --model_name_or_path tue-mps/ade20k_semantic_eomt_large_512 --images images/ --output_dir out/pruned
    reg4pru prune --model_name_or_path runs/dense/last --dataset user/images --side train --output_dir out/pruned
"""

import logging
from pathlib import Path

from .common.cli import CommandParser, check_at_least_1, set_up_logging
from .common.keep_rates import check_keep_rates
from .common.output_checks import check_writable
from .pruning.arguments import UNFINISHED, PruneArguments

logger = logging.getLogger(__name__)


def check(arguments: PruneArguments) -> None:
    """Raises `ValueError` for flags that cannot work, before anything is read."""
    check_keep_rates(arguments.keep_rates)
    check_at_least_1(arguments, "num_tiles", "working_size", "max_steps", "report_limit")
    if bool(arguments.images) == bool(arguments.dataset):
        raise ValueError("Give --images or --dataset, one of them.")
    if arguments.report_side and not arguments.dataset:
        raise ValueError(f"--report_side is {arguments.report_side}: it is a side of --dataset, which is not given.")
    if arguments.report_side == arguments.side:
        raise ValueError(f"--report_side and --side are both {arguments.side}: report on images to fit nothing to.")
    if arguments.report_limit and not arguments.report_side:
        raise ValueError("--report_limit is for --report_side, which is not given.")
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir is {output_dir}, which is a file.")
    names = {path.name for path in output_dir.iterdir()} if output_dir.is_dir() else set()
    if names and UNFINISHED not in names:  # it goes last, so a run that was killed is known by it
        raise ValueError(f"--output_dir is {output_dir}, which is not empty: choose another.")
    check_writable(output_dir, "--output_dir")


def main(argv: list[str] | None = None) -> None:
    """Prune as the command line says."""
    parser = CommandParser(PruneArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    set_up_logging()
    from .pruning.run import prune_checkpoint
    from .reporting.agreement import report_text

    try:
        check(arguments)
        results = prune_checkpoint(arguments)
    except ValueError as error:
        parser.error(str(error))
    print(report_text(results))
    logger.info(
        "Written to %s: the checkpoint, adapter, table.md, figure.png, prune_results.json", arguments.output_dir
    )
