"""Keep rates for a budget, from the `speed.json` beside a checkpoint."""

import copy
import json
import logging
import shutil

import pytest
import torch

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.speed_budget import describe_machine, fingerprint_weights
from reg4pru.common.former_names import FORMER_NAMES


def candidate(milliseconds, precision, rates, layer=4, pool="active", allocation="tile"):
    return {
        "milliseconds": milliseconds, "average_precision": precision, "keep_rates": rates,
        "reactivation_layer": layer, "selection_pool": pool, "allocation": allocation,
    }  # fmt: skip


SPEED = {
    "machine": describe_machine("cpu", torch.float32),
    "frame_size": [128, 128],
    "candidates": [
        candidate(100.0, 0.9, [1.0, 1.0, 1.0]),
        candidate(80.0, 0.85, [0.7, 0.7, 0.7]),
        candidate(79.0, 0.87, [1.0, 0.7, 0.5]),
        candidate(60.0, 0.88, [0.7, 0.7, 0.7], layer=5, pool="all", allocation="image"),
        candidate(50.0, 0.7, [0.5, 0.5, 0.5]),
    ],
}


def write_speed(folder, **others):
    """As `reg4pru tune` leaves it."""
    (folder / "speed.json").write_text(json.dumps(SPEED | {"weights": fingerprint_weights(folder)} | others))


@pytest.fixture
def folder(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "checkpoint")
    write_speed(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def model(folder):
    return Reg4PruForSemanticSegmentation.from_pretrained(folder).eval()


def test_the_most_accurate_rates_within_the_budget(model, pixel_values):
    assert model.keep_rates_for(milliseconds=90) == [1.0, 0.7, 0.5]
    assert model.keep_rates_for(milliseconds=79) == [1.0, 0.7, 0.5]
    assert model.keep_rates_for(milliseconds=78) == [0.5, 0.5, 0.5]
    assert model.keep_rates_for(milliseconds=1000) == [1.0, 1.0, 1.0]
    assert model.config.keep_rates == 0.7, "it only says"
    model(pixel_values, keep_rates=model.keep_rates_for(milliseconds=90))


def test_a_budget_also_sets_layer_pool_and_allocation(model):
    chosen = model.set_speed_budget(milliseconds=90)
    assert chosen["milliseconds"] == 60
    config = model.config
    assert (config.keep_rates, config.reactivation_layer, config.selection_pool) == ([0.7] * 3, 5, "all")
    assert config.allocation == "image"
    config.validate()
    assert model.keep_rates_for(milliseconds=60) == [0.7] * 3


def test_times_of_another_machine_give_a_warning(model, folder, caplog, monkeypatch):
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        model.keep_rates_for(milliseconds=90)
        assert "do not hold here" not in caplog.text
        write_speed(folder, machine=SPEED["machine"] | {"num_threads": 99})
        model.keep_rates_for(milliseconds=90)
    assert "num_threads 99 (here 1)" in caplog.text
    assert "dtype" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model.to(torch.bfloat16).keep_rates_for(milliseconds=90)
    assert "dtype float32 (here bfloat16)" in caplog.text


def test_budgets_that_cannot_be_met_are_refused(model, folder, tiny_model):
    with pytest.raises(ValueError, match=r"budget is 10 milliseconds, but the fastest that was measured takes 50"):
        model.keep_rates_for(milliseconds=10)
    for wrong in (0, -5, float("nan")):
        with pytest.raises(ValueError, match="must be above 0"):
            model.keep_rates_for(milliseconds=wrong)
    elsewhere = copy.deepcopy(model)
    elsewhere.config.selection_pool = "all"
    with pytest.raises(
        ValueError, match="with `reactivation_layer` 4, `selection_pool` 'all' and `allocation` 'tile': tune again"
    ):
        elsewhere.keep_rates_for(milliseconds=90)
    with pytest.raises(ValueError, match="not loaded from a checkpoint"):
        tiny_model().keep_rates_for(milliseconds=90)
    machine = {"machine": {}}
    for damaged in ({}, machine, {"machine": 1, "candidates": [{}]}, {**machine, "candidates": []}):
        (folder / "speed.json").write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match="was not written by reg4pru tune"):
            model.set_speed_budget(milliseconds=90)
    (folder / "speed.json").unlink()
    with pytest.raises(ValueError, match=r"has no speed.json.*reg4pru tune --model_name_or_path"):
        model.keep_rates_for(milliseconds=90)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no longer there"):
        model.keep_rates_for(milliseconds=90)


@pytest.mark.parametrize("name", next(names for names in FORMER_NAMES.items() if "tiles_per_image" in names))
def test_early_times_of_a_tile_become_those_of_an_image(folder, name):
    early = {key: value for key, value in SPEED.items() if key != "frame_size"}
    early["candidates"] = [
        {key: value for key, value in row.items() if key != "allocation"} for row in SPEED["candidates"]
    ]
    (folder / "speed.json").write_text(json.dumps(early | {"weights": fingerprint_weights(folder), name: 9.0}))
    model = Reg4PruForSemanticSegmentation.from_pretrained(folder, allocation="image")
    assert model.set_speed_budget(milliseconds=9 * 90)["milliseconds"] == 9 * 60
    assert model.config.allocation == "tile"
    with pytest.raises(ValueError, match="the fastest that was measured takes 450"):
        model.set_speed_budget(milliseconds=449)


def test_a_speed_of_other_weights_is_refused(model, folder, tiny_model):
    """Training, or a push to the Hub, that puts new weights beside an old `speed.json`."""
    trained = tiny_model()
    with torch.no_grad():
        trained.query.weight += 1
    trained.save_pretrained(folder)
    for one in (model, type(model).from_pretrained(folder)):
        before = one.config.to_dict()
        for budget in (one.keep_rates_for, one.set_speed_budget):
            with pytest.raises(ValueError, match=r"its speed.json was measured with other weights than it holds now"):
                budget(milliseconds=90)
        assert one.config.to_dict() == before
    write_speed(folder)
    assert type(model).from_pretrained(folder).keep_rates_for(milliseconds=90) == [1.0, 0.7, 0.5]


def test_the_checkpoint_is_found_from_any_folder(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder.parent)
    model = Reg4PruForSemanticSegmentation.from_pretrained("checkpoint")
    monkeypatch.chdir(tmp_path.parent)
    assert model.keep_rates_for(milliseconds=90) == [1.0, 0.7, 0.5]
