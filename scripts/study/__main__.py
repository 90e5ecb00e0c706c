"""
Train and measure every variant of a study, and put the results into tables and figures.

    reg4pru study synthetic --output_dir results/synthetic --runs_dir runs/synthetic

A study can be stopped and started again at any time: its trainings end with it, finished runs are kept, an
interrupted training goes on from its latest checkpoint. `table.csv` holds every number, `table.md` mean and spread
over the seeds, `per_image.csv` the numbers of every image, `paired.md` their differences between variants; when no
run is missing, the costs are measured (`cost.csv`, `cost.md`, `recipes.md`) and the figures drawn. `--only` and
`--seeds` take a part of a study for the whole. plan.py tells the form of a study, run_folder.py what is kept of a run.
"""

import argparse
import json
import logging
import multiprocessing
import os
import sys
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from ..common.cli import set_up_logging
from ..common.devices import warn_of_emulation
from ..common.provenance import provenance
from ..common.recipes import find_yaml
from .cost import measure_study, training_time
from .definition import Study, read_study
from .figures import draw_figures
from .paired import collect_images, paired_markdown, write_images
from .race import write_race
from .run import complete_run, end_with_parent
from .run_folder import RunFolder
from .tables import collect, markdown, recipes_markdown, write_costs, write_csv

logger = logging.getLogger("study")

POLL_SECONDS = 2.0


def complete_runs(study: Study, runs_dir: Path, num_parallel: int, num_processes: int) -> int:
    """
    Bring all runs to their end. A run that fails is reported, and the others go on.

    Returns:
        `int`: number of runs that failed.

    Raises:
        `ValueError`: if a run was begun with other settings than the study has now; before any run starts.
    """
    runs = study.runs()
    trains_in_bf16 = False
    for variant, seed in runs:
        folder, recipe = RunFolder(runs_dir, variant, seed), study.run_recipe(variant, seed)
        folder.check_recipe(recipe)
        trains_in_bf16 |= not folder.is_trained and recipe.get("mixed_precision") == "bf16"
    if trains_in_bf16:
        warn_of_emulation("bf16")
    num_failed = 0
    # Processes, not threads: random selection draws from torch's global generator.
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(num_parallel, mp_context=spawn, initializer=end_with_parent) as pool,
        tqdm(total=len(runs), desc=study.name, unit="run") as bar,
    ):
        futures = {
            pool.submit(complete_run, study, runs_dir, variant, seed, num_processes): (variant, seed)
            for variant, seed in runs
        }
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                variant, seed = futures[future]
                bar.update()
                if future.exception() is not None:
                    num_failed += 1
                    bar.write(f"{variant} seed {seed} failed: {future.exception()}", file=sys.stderr)
            # A run takes minutes: say where each one stands. What is next in the pool counts as running, too, but has
            # no recipe yet.
            folders = {
                futures[future]: RunFolder(runs_dir, *futures[future]) for future in pending if future.running()
            }
            begun = [
                f"{variant}: {folder.stands()}" for (variant, _), folder in folders.items() if folder.recipe.is_file()
            ]
            bar.set_postfix_str(", ".join(begun))
    return num_failed


def write_tables(study: Study, runs_dir: Path, output_dir: Path) -> list[dict]:
    """Collate what has been measured: tables, rows of images and `provenance.json`; the rows of `table.csv`."""
    rows = collect(study, runs_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_csv(output_dir / "table.csv", rows)
    (output_dir / "table.md").write_text(markdown(study, rows))
    images = collect_images(study, runs_dir)
    write_images(output_dir / "per_image.csv", images)
    (output_dir / "paired.md").write_text(paired_markdown(study, images))
    trainings = {
        f"{variant}/seed-{seed}": json.loads((folder.training / "train_results.json").read_text())["provenance"]
        for variant, seed in study.runs()
        if (folder := RunFolder(runs_dir, variant, seed)).is_trained
    }
    content = {"study": provenance(), "runs": trainings}
    (output_dir / "provenance.json").write_text(json.dumps(content, indent=2) + "\n")
    return rows


def write_pictures(study: Study, runs_dir: Path, output_dir: Path, rows: list[dict], cost_rounds: int) -> None:
    """Measure the costs, and draw the figures, of runs that are all finished."""
    cost = measure_study(study, runs_dir, cost_rounds)
    write_costs(study, cost, output_dir)
    times = {variant: training_time(study, variant, cost) for variant in study.variants}
    (output_dir / "recipes.md").write_text(recipes_markdown(study, rows, times))
    draw_figures(study, runs_dir, output_dir, rows, cost)
    if any("working_size" in settings for settings in study.evaluations.values()):
        write_race(study, runs_dir, output_dir, rows, cost)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="YAML file, or the name of a study that comes with the package.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder for tables and figures.")
    parser.add_argument("--runs_dir", type=Path, required=True, help="Folder for the runs, one each.")
    parser.add_argument("--num_parallel", type=int, default=1, help="Runs at a time; above 1 each has one CPU thread.")
    parser.add_argument("--num_processes", type=int, default=1, help="Processes of one run (accelerate launch).")
    parser.add_argument("--cost_rounds", type=int, default=20, help="Interleaved rounds when costs are measured.")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="Train, evaluate and show these variants only.")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="Likewise: these seeds only.")
    arguments = parser.parse_args(argv)
    for name in ("num_parallel", "num_processes", "cost_rounds"):
        if vars(arguments)[name] < 1:
            parser.error(f"--{name} is {vars(arguments)[name]}: it must be at least 1.")
    return arguments


def main(argv: list[str] | None = None) -> int:
    set_up_logging()
    arguments = parse(argv)
    if arguments.num_parallel > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # the bars of the runs; ours has been set up
    try:
        study = read_study(find_yaml(arguments.study, "studies")).part(arguments.only, arguments.seeds)
        num_failed = complete_runs(study, arguments.runs_dir, arguments.num_parallel, arguments.num_processes)
    except ValueError as error:
        logger.error("reg4pru study: error: %s", error)
        return 2
    rows = write_tables(study, arguments.runs_dir, arguments.output_dir)
    if not num_failed:
        write_pictures(study, arguments.runs_dir, arguments.output_dir, rows, arguments.cost_rounds)
    logger.info("\n%s\nWritten to %s.", (arguments.output_dir / "table.md").read_text().strip(), arguments.output_dir)
    if num_failed:
        logger.error("%d runs failed; start the study again to repeat them.", num_failed)
    return 1 if num_failed else 0
