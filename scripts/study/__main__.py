"""
Train and evaluate every variant of a study with every seed, and write tables and figures of the results.

STUDY is a YAML file or the name of a study that comes with the package. A study can be stopped and started again at
any time: finished runs are kept, and an interrupted training continues from its latest checkpoint. table.csv holds all
numbers, table.md means and standard deviations over the seeds, per_image.csv the numbers of every image, and paired.md
their differences between variants. When all runs are finished, costs are measured (cost.csv, cost.md, recipes.md) and
figures are drawn. study/definition.py describes the format of a study, study/run_folder.py the files of a run.

Example:
    reg4pru study synthetic --output_dir results/synthetic --runs_dir runs/synthetic
"""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..common.cli import CommandParser, check_at_least_1, set_up_logging
from ..common.output_checks import check_writable
from ..common.recipes import find_yaml

logger = logging.getLogger("study")


@dataclass(kw_only=True)
class StudyArguments:
    """Where a study writes, and how much of it runs at a time."""

    _argument_group_name = "study"

    output_dir: str = field(metadata={"help": "Folder for tables and figures."})
    runs_dir: str = field(metadata={"help": "Folder of the runs."})
    num_parallel: int = field(
        default=1, metadata={"help": "Runs at the same time; with more than one, each uses one thread."}
    )
    num_processes: int = field(default=1, metadata={"help": "Processes per run (accelerate launch)."})
    cost_rounds: int = field(default=20, metadata={"help": "Number of interleaved rounds when costs are measured."})
    only: list[str] | None = field(default=None, metadata={"help": "Run only these variants."})
    seeds: list[int] | None = field(default=None, metadata={"help": "Run only these seeds."})


def main(argv: list[str] | None = None) -> int:
    """Run a study; exit status 1 if a run failed, 2 for a wrong call."""
    parser = CommandParser(StudyArguments, __doc__, "STUDY")
    parser.add_argument("study", help="YAML file, or the name of a study that comes with the package.")
    arguments, named = parser.read_flags(argv)
    set_up_logging()
    from .definition import read_study
    from .results import write_costs_and_figures, write_tables
    from .runs import complete_runs

    if arguments.num_parallel > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # of the runs; our own bar is not affected
    output_dir, runs_dir = Path(arguments.output_dir), Path(arguments.runs_dir)
    try:
        check_at_least_1(arguments, "num_parallel", "num_processes", "cost_rounds")
        check_writable(output_dir, "--output_dir")
        check_writable(runs_dir, "--runs_dir")
        study = read_study(find_yaml(named.study, "studies")).part(arguments.only, arguments.seeds)
        num_failed = complete_runs(study, runs_dir, arguments.num_parallel, arguments.num_processes)
    except ValueError as error:
        parser.error(str(error))
    rows = write_tables(study, runs_dir, output_dir)
    if not num_failed:
        write_costs_and_figures(study, runs_dir, output_dir, rows, arguments.cost_rounds)
    logger.info("\n%s\nWritten to %s.", (output_dir / "table.md").read_text(encoding="utf-8").strip(), output_dir)
    if num_failed:
        logger.error("%d runs failed: run the same command again to repeat them.", num_failed)
    return 1 if num_failed else 0
