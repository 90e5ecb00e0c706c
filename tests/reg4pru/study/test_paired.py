"""Paired differences against numbers worked out by hand."""

import csv

import numpy as np
import pytest

from datasets_fives.metrics.accumulator import METRICS
from reg4pru.maintenance.render_readme import section_of
from reg4pru.study.definition import Study
from reg4pru.study.evaluation import IMAGE_FIELDS
from reg4pru.study.paired import Pairs, bootstrap_interval, collect_images, paired_markdown
from reg4pru.study.run_folder import RunFolder


@pytest.fixture
def study():
    return Study(
        name="small",
        recipe={},
        seeds=[0, 1],
        keep_rates=[1.0, 0.5],
        evaluations={"as trained": {}, "selector=random": {"selector": "random"}, "other": {"dataset": "a"}},
        variants={
            name: {"label": label, "config": {}, "flags": {}}
            for name, label in (("a", "Variant A"), ("b", "Variant B"))
        },
        compare=["b", "a"],
    )


@pytest.fixture
def rows(study, tmp_path):
    """
    Unpruned .9 and .8 of the two images; variant a loses .1 at .5, variant b .1 and .3, and .02 more under seed
    1.
    """
    for variant in "ab":
        for seed in study.seeds:
            folder = RunFolder(tmp_path, variant, seed)
            folder.path.mkdir(parents=True)
            lost = {"1.0": (0, 0), "0.5": (0.1, 0.1) if variant == "a" else (0.1, 0.3 + 0.02 * seed)}
            with folder.per_image.open("w", newline="") as file:
                writer = csv.DictWriter(file, IMAGE_FIELDS)
                writer.writeheader()
                for rate, losses in lost.items():
                    for name, best, loss in zip(("one", "two"), (0.9, 0.8), losses, strict=True):
                        place = {"evaluation": "as trained", "keep_rate": rate, "name": name, "condition": "dr"}
                        writer.writerow({**dict.fromkeys(METRICS, best - loss), **place})
    return collect_images(study, tmp_path)


def test_rows_name_variant_seed_and_image(rows):
    assert len(rows) == 2 * 2 * 2 * 2  # variants, seeds, keep rates, images
    assert rows[-1] == {
        "variant": "b",
        "seed": 1,
        "evaluation": "as trained",
        "keep_rate": "0.5",
        "name": "two",
        "condition": "dr",
        **dict.fromkeys(("average_precision", "dice", "cldice"), pytest.approx(0.48)),
    }


def test_a_image_is_compared_with_itself_under_its_own_seed(rows):
    pairs = Pairs(rows, "average_precision")
    assert pairs.differences("as trained", ("b", 0.5), ("a", 1.0)) == pytest.approx(
        np.array([[-0.1, -0.3], [-0.1, -0.32]])
    )
    # What one of both lacks is left out.
    fewer = [row for row in rows if not (row["variant"] == "a" and row["seed"] == 0 and row["name"] == "two")]
    shared = Pairs(fewer, "average_precision").differences("as trained", ("b", 0.5), ("a", 0.5))
    assert shared == pytest.approx(np.array([[0.0], [0.0]]))
    assert pairs.differences("other", ("b", 0.5), ("a", 0.5)).size == 0


def test_the_interval_holds_what_seeds_and_images_differ_by():
    alike = bootstrap_interval(np.full((3, 27), -0.02))
    assert alike == pytest.approx((-0.02,) * 3)
    # Seeds that differ must widen it, however many images there are: 1/27 of the draws have one seed only.
    mean, lower, upper = bootstrap_interval(np.repeat([[0.0], [0.1], [0.2]], 1000, axis=1))
    assert (mean, lower, upper) == pytest.approx((0.1, 0.0, 0.2))
    # Many images under one seed: about 1.96 standard errors.
    values = np.random.default_rng(1).normal(size=(1, 400))
    mean, lower, upper = bootstrap_interval(values)
    assert (upper - lower) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_interval(np.array([[0.5, np.nan]])) == (0.5, 0.5, 0.5)
    assert np.isnan(bootstrap_interval(np.empty((0, 0)))).all()


def test_markdown_by_hand(study, rows):
    text = paired_markdown(study, rows)
    table = section_of(text, "Average precision against Variant A, unpruned, test images", "").strip().splitlines()
    assert table[2].startswith("| Variant A | 2 × 2 | – | -0.100 [-0.100, -0.100] |")
    assert table[3].startswith("| Variant B | 2 × 2 | +0.000 [+0.000, +0.000] | -0.205 [-0.320, -0.100] |")
    table = section_of(text, "Average precision against Variant B, at the same keep rate, test images", "")
    assert table.strip().splitlines()[2:] == [
        "| Variant A | 2 × 2 | +0.000 [+0.000, +0.000] | +0.105 [+0.000, +0.220] |"
    ]
    assert "random" not in text  # only the model as it was trained
    assert "other" not in text  # nothing measured
