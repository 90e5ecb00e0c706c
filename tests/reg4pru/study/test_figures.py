"""Figures of a study that need no trained model; those that do are made in test_study.py."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reg4pru.study import figures as study_figures
from reg4pru.study.definition import Study

RATES = [1.0, 0.5]


def study_of(num_variants: int) -> tuple[Study, list[dict]]:
    """A study without runs, and a result for every variant, seed and keep rate."""
    variants = {
        f"variant{index}": {"label": f"variant {index}", "config": {}, "flags": {}} for index in range(num_variants)
    }
    study = Study("many", {}, [0, 1], RATES, {"as trained": {}}, variants, [])
    draw = np.random.default_rng(0)
    rows = [
        {"variant": variant, "seed": seed, "evaluation": "as trained", "keep_rate": str(rate)}
        | {metric: draw.uniform(0.7, 0.8) for metric in ("average_precision", "dice")}
        for variant in variants
        for seed in study.seeds
        for rate in RATES
    ]
    return study, rows


def test_lines_while_they_can_be_told_apart(tmp_path):
    """Up to nine variants share the height of one plot; more of them have a row each."""
    heights = {}
    for num_variants in (2, 9, 10, 13):
        study_figures.draw_figures(*study_of(num_variants)[:1], Path(), tmp_path, study_of(num_variants)[1], {})
        with Image.open(tmp_path / "keep_rates.png") as figure:
            heights[num_variants] = figure.height
    assert heights[2] == heights[9]
    assert heights[13] - heights[10] == pytest.approx(3 * 0.3 * study_figures.DPI, abs=1)


def test_every_variant_has_its_row(tmp_path):
    heights = []
    for num_variants in (9, 18):
        study_figures.draw_many_variants(*study_of(num_variants), tmp_path / "variants.png")
        with Image.open(tmp_path / "variants.png") as figure:
            heights.append(figure.height)
            assert len(figure.getcolors(1 << 20)) > 10
    assert heights[1] - heights[0] == pytest.approx(round(9 * 0.3 * study_figures.DPI), abs=1)


def test_a_panel_a_data_set(tmp_path):
    study, rows = study_of(3)
    study.evaluations["other"] = {"dataset": "somewhere"}
    other = [{**row, "evaluation": "other", "average_precision": 0.5} for row in rows if row["variant"] != "variant2"]
    study_figures.draw_figures(study, Path(), tmp_path, [*rows, *other], {})
    with Image.open(tmp_path / "data_sets.png") as both, Image.open(tmp_path / "keep_rates.png") as one:
        assert both.width == one.width
        assert both.height > one.height
