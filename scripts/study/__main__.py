"""
Train and evaluate every variant of a study with every seed, and write tables and figures of the results.

    reg4pru study synthetic --output_dir results/synthetic --runs_dir runs/synthetic

A study can be stopped and started again at any time: finished runs are kept, and an interrupted training continues
from its latest checkpoint. `table.csv` contains all numbers, `table.md` means and standard deviations over the seeds,
`per_image.csv` the numbers of every image, `paired.md` their differences between variants. When all runs are finished,
costs are measured (`cost.csv`, `cost.md`, `recipes.md`) and figures drawn. `--only` and `--seeds` restrict the study
to a part. The format of a study is described in study/definition.py, the files of a run in study/run_folder.py.
"""

import argparse
import logging
import os
from pathlib import Path

logger = logging.getLogger("study")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="YAML file, or the name of a built-in study.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder for tables and figures.")
    parser.add_argument("--runs_dir", type=Path, required=True, help="Folder of the runs.")
    parser.add_argument("--num_parallel", type=int, default=1, help="Simultaneous runs; if above 1, on a thread each.")
    parser.add_argument("--num_processes", type=int, default=1, help="Processes per run (accelerate launch).")
    parser.add_argument("--cost_rounds", type=int, default=20, help="Interleaved rounds of the cost measurement.")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="Only these variants.")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="Only these seeds.")
    arguments = parser.parse_args(argv)
    for name in ("num_parallel", "num_processes", "cost_rounds"):
        if vars(arguments)[name] < 1:
            parser.error(f"--{name} is {vars(arguments)[name]}: it must be at least 1.")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run a study; exit status 1 if a run failed, 2 for a wrong call."""
    arguments = parse(argv)
    # Imported only now: torch takes seconds, and --help does not need it.
    from ..common.cli import set_up_logging
    from ..common.recipes import find_yaml
    from .definition import read_study
    from .results import write_costs_and_figures, write_tables
    from .runs import complete_runs

    set_up_logging()
    if arguments.num_parallel > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # of the runs; our own bar is not affected
    try:
        study = read_study(find_yaml(arguments.study, "studies")).part(arguments.only, arguments.seeds)
        num_failed = complete_runs(study, arguments.runs_dir, arguments.num_parallel, arguments.num_processes)
    except ValueError as error:
        logger.error("reg4pru study: error: %s", error)
        return 2
    rows = write_tables(study, arguments.runs_dir, arguments.output_dir)
    if not num_failed:
        write_costs_and_figures(study, arguments.runs_dir, arguments.output_dir, rows, arguments.cost_rounds)
    logger.info("\n%s\nWritten to %s.", (arguments.output_dir / "table.md").read_text().strip(), arguments.output_dir)
    if num_failed:
        logger.error("%d runs failed: run the same command again to repeat them.", num_failed)
    return 1 if num_failed else 0
