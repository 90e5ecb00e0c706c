"""The tables of a study against numbers worked out by hand."""

import csv
import json
import math

import pytest

from datasets_fives.metrics.accumulator import METRICS
from reg4pru.maintenance.render_readme import section_of
from reg4pru.reporting.tables import mean_and_sd
from reg4pru.study.cost import training_time
from reg4pru.study.definition import Study
from reg4pru.study.run_folder import RunFolder
from reg4pru.study.tables import collect, markdown, recipes_markdown, write_costs, write_csv


@pytest.fixture
def study():
    return Study(
        name="small",
        recipe={},
        seeds=[0, 1, 2],
        keep_rates=[1.0, 0.5],
        evaluations={"as trained": {}, "selector=random": {"selector": "random"}},
        variants={
            name: {"label": label, "config": {}, "flags": {}}
            for name, label in (("a", "Variant A"), ("b", "Variant B"))
        },
        compare=[],
    )


@pytest.fixture
def runs_dir(tmp_path):
    """
    Average precision .5, .6, .7 of variant a over the seeds, pruned .1, 0, .2 less; variant b has one seed,
    unpruned.
    """

    def write(variant: str, seed: int, results: dict) -> None:
        folder = RunFolder(tmp_path, variant, seed)
        folder.path.mkdir(parents=True)
        full = {
            evaluation: {rate: dict.fromkeys(METRICS, value) for rate, value in rates.items()}
            for evaluation, rates in results.items()
        }
        folder.evaluation.write_text(json.dumps(full))

    for seed, (precision, pruned) in enumerate(((0.5, 0.4), (0.6, 0.6), (0.7, 0.5))):
        write("a", seed, {"as trained": {"1.0": precision, "0.5": pruned}, "forgotten": {"1.0": 0.9}})
    write("b", 1, {"as trained": {"1.0": 0.25}})
    return tmp_path


def test_mean_and_sd_by_hand():
    assert mean_and_sd([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt((4 + 1 + 9) / 2)))
    assert mean_and_sd([2.0, math.nan])[0] == 2.0
    assert math.isnan(mean_and_sd([2.0])[1])
    assert all(math.isnan(value) for value in mean_and_sd([]))


def test_rows_in_the_order_of_the_study(study, runs_dir, tmp_path):
    rows = collect(study, runs_dir)
    places = [(row["variant"], row["seed"], row["keep_rate"]) for row in rows]
    assert places == [*(("a", seed, rate) for seed in (0, 1, 2) for rate in ("1.0", "0.5")), ("b", 1, "1.0")]
    write_csv(tmp_path / "table.csv", rows)
    with (tmp_path / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == 7
    assert float(read[3]["average_precision"]) == pytest.approx(0.6)
    assert set(METRICS) < set(read[0])


def test_markdown_by_hand(study, runs_dir):
    text = markdown(study, collect(study, runs_dir))
    assert "## Average precision, as trained" in text
    assert "## Dice, as trained" in text
    assert "| Variant A | 0.600 ± 0.100 | 0.500 ± 0.100 |" in text
    assert "| Variant B (1 of 3 seeds) | 0.250 | – |" in text
    assert "random" not in text  # nothing measured


def test_changes_are_taken_within_each_run(study, runs_dir):
    """Over the seeds -.1, 0, -.2: their spread is not that of the runs."""
    section = section_of(markdown(study, collect(study, runs_dir)), "Change of average precision, as trained", "")
    assert section.strip().splitlines() == ["| as trained | 0.5 |", "| --- | ---: |", "| Variant A | -0.100 ± 0.100 |"]


def test_recipes_are_compared_with_the_first_variant_unpruned_under_the_same_seed(study, runs_dir):
    study.variants["b"]["flags"] = {"dense_fraction": 0.25}
    cost = {"training": {"a": {"time_ratio": 1.0}, "b": {"time_ratio": 2.0}}}
    times = {variant: training_time(study, variant, cost) for variant in study.variants}
    assert times == {"a": 1.0, "b": 0.25 + 0.75 * 2}
    text = recipes_markdown(study, collect(study, runs_dir), times)
    assert "| Variant A | 1.00× | +0.000 ± 0.000 | -0.100 ± 0.100 |" in text
    assert "| Variant B | 1.75× | -0.350 | – |" in text  # seed 1 alone: .25 against .6


def test_costs_are_relative_to_the_first_variant(study, tmp_path):
    cost = {
        "training": {
            variant: {"seconds": seconds, "time_ratio": seconds / 2, "memory_bytes": 10, "memory_ratio": 1.0}
            for variant, seconds in (("a", 2.0), ("b", 1.5))
        },
        "inference": {
            variant: {rate: {"images_per_second": 8.0, "ratio": 1.25} for rate in ("1.0", "0.5")} for variant in "ab"
        },
        "training_dtype": "bfloat16",
        "rounds": 20,
        "provenance": {"device": "a device"},
    }
    write_costs(study, cost, tmp_path)
    text = (tmp_path / "cost.md").read_text()
    assert "Relative to Variant A" in text
    assert "on a device" in text
    assert "in bfloat16" in text
    assert "| Variant B | 0.75× | 1.00× | 1.25× | 1.25× |" in text
    with (tmp_path / "cost.csv").open() as file:
        assert [float(row["training_seconds"]) for row in csv.DictReader(file)] == [2.0, 1.5]
