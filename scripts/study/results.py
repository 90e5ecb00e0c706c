"""What a study writes of its runs: tables as far as they are measured; costs and figures when all are finished."""

import json
from pathlib import Path

from ..common.provenance import provenance
from .cost import measure_study, training_time
from .definition import Study
from .figures import draw_figures
from .paired import collect_images, paired_markdown, write_images
from .race import write_race
from .run_folder import RunFolder
from .tables import collect, markdown, recipes_markdown, write_costs, write_csv


def write_tables(study: Study, runs_dir: Path, output_dir: Path) -> list[dict]:
    """Write `table`, `per_image`, `paired` and `provenance` from what is measured; returns the rows of `table.csv`."""
    rows = collect(study, runs_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_csv(output_dir / "table.csv", rows)
    (output_dir / "table.md").write_text(markdown(study, rows), encoding="utf-8")
    images = collect_images(study, runs_dir)
    write_images(output_dir / "per_image.csv", images)
    (output_dir / "paired.md").write_text(paired_markdown(study, images), encoding="utf-8")
    trainings = {
        f"{variant}/seed-{seed}": json.loads((folder.training / "train_results.json").read_text(encoding="utf-8"))[
            "provenance"
        ]
        for variant, seed in study.runs()
        if (folder := RunFolder(runs_dir, variant, seed)).is_trained
    }
    content = {"study": provenance(), "runs": trainings}
    (output_dir / "provenance.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return rows


def write_costs_and_figures(
    study: Study, runs_dir: Path, output_dir: Path, rows: list[dict], cost_rounds: int
) -> None:
    """Measure the costs and draw the figures of a study whose runs are all finished."""
    cost = measure_study(study, runs_dir, cost_rounds)
    write_costs(study, cost, output_dir)
    times = {variant: training_time(study, variant, cost) for variant in study.variants}
    (output_dir / "recipes.md").write_text(recipes_markdown(study, rows, times), encoding="utf-8")
    draw_figures(study, runs_dir, output_dir, rows, cost)
    if any("working_size" in settings for settings in study.evaluations.values()):
        write_race(study, runs_dir, output_dir, cost)
