"""Every recipe and study that the project ships is one that the commands take."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from modeling_reg4pru import Reg4PruConfig
from reg4pru.common.recipes import PACKAGE
from reg4pru.study.definition import read_study
from reg4pru.training.command_line import config_fields, parse_arguments

RECIPES = sorted((PACKAGE / "recipes").glob("*.yaml"))
STUDIES = sorted((PACKAGE / "studies").glob("*.yaml"))


def check(path: Path, recipe: dict) -> None:
    """The recipe arrives as it is written, and its configuration is valid and has no field that there is not."""
    model, data, training = parse_arguments([str(path), "--output_dir", "out"])
    arguments = {**asdict(model), **asdict(data), **asdict(training)}
    overrides = config_fields(model.config_overrides)
    assert overrides == recipe.get("config_overrides", {})
    assert set(overrides) <= set(Reg4PruConfig().to_dict())
    for name, value in recipe.items():
        if name != "config_overrides":
            assert arguments[name] == value
            assert type(arguments[name]) is type(value)
    config = Reg4PruConfig(**overrides)
    side = data.tile_size or (config.image_size if data.random_crop else data.working_size)
    assert side == config.image_size
    assert data.working_size is None or data.working_size >= side


def test_there_are_recipes_and_studies():
    assert RECIPES
    assert STUDIES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    check(path, yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_is_valid_and_so_are_its_runs(path, monkeypatch, tmp_path):
    monkeypatch.setenv("FIVES_DIR", str(tmp_path / "images"))
    monkeypatch.setenv("CAMVID_DIR", str(tmp_path / "images"))
    monkeypatch.setenv("DINOV2_DIR", str(tmp_path / "dinov2"))
    study = read_study(path)
    assert len(study.runs()) == sum(len(study.seeds_of(variant)) for variant in study.variants)
    assert {variant for variant, seed in study.runs() if seed == study.seeds[0]} == study.variants.keys()
    for variant in study.variants:
        recipe = study.run_recipe(variant, study.seeds[0])
        assert "$" not in recipe.get("dataset", "")
        written = tmp_path / f"{variant}.yaml"
        written.write_text(yaml.safe_dump(recipe))
        check(written, recipe)
