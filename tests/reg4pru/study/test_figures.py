"""Figures of a study that need no trained model; those that do are made in test_study.py."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reg4pru.study import figures as study_figures
from reg4pru.study.definition import Study

RATES = [1.0, 0.5]


def study_of(num_arms: int) -> tuple[Study, list[dict]]:
    """A study without runs, and a result for every arm, seed and keep rate."""
    arms = {f"arm{index}": {"label": f"arm {index}", "config": {}, "flags": {}} for index in range(num_arms)}
    study = Study("many", {}, [0, 1], RATES, {"as trained": {}}, arms, [])
    draw = np.random.default_rng(0)
    rows = [
        {"arm": arm, "seed": seed, "evaluation": "as trained", "keep_rate": str(rate)}
        | {metric: draw.uniform(0.7, 0.8) for metric in ("average_precision", "dice")}
        for arm in arms
        for seed in study.seeds
        for rate in RATES
    ]
    return study, rows


def test_lines_while_they_can_be_told_apart(tmp_path):
    """Up to nine arms share the height of one plot; more of them have a row each."""
    heights = {}
    for num_arms in (2, 9, 10, 13):
        study_figures.draw_figures(*study_of(num_arms)[:1], Path(), tmp_path, study_of(num_arms)[1], {})
        with Image.open(tmp_path / "keep_rates.png") as figure:
            heights[num_arms] = figure.height
    assert heights[2] == heights[9]
    assert heights[13] - heights[10] == pytest.approx(3 * 0.3 * study_figures.DPI, abs=1)


def test_every_arm_has_its_row(tmp_path):
    heights = []
    for num_arms in (9, 18):
        study_figures.draw_many_arms(*study_of(num_arms), tmp_path / "arms.png")
        with Image.open(tmp_path / "arms.png") as figure:
            heights.append(figure.height)
            assert len(figure.getcolors(1 << 20)) > 10
    assert heights[1] - heights[0] == pytest.approx(round(9 * 0.3 * study_figures.DPI), abs=1)


def test_a_panel_a_data_set(tmp_path):
    study, rows = study_of(3)
    study.evaluations["other"] = {"dataset": "somewhere"}
    other = [{**row, "evaluation": "other", "average_precision": 0.5} for row in rows if row["arm"] != "arm2"]
    study_figures.draw_figures(study, Path(), tmp_path, [*rows, *other], {})
    with Image.open(tmp_path / "data_sets.png") as both, Image.open(tmp_path / "keep_rates.png") as one:
        assert both.width == one.width
        assert both.height > one.height
