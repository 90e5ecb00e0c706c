"""What a run recorded belongs to the weights that it was measured with; what a step costs, to the configuration."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml

from modeling_reg4pru.speed_budget import fingerprint_weights
from reg4pru.study.cost import _loss, _untrained
from reg4pru.study.run_folder import RunFolder

from ...variants import TINY


@pytest.fixture
def folder(tiny_model, tmp_path) -> RunFolder:
    """A trained run that was not measured."""
    run = RunFolder(tmp_path, "soft", 0)
    tiny_model().save_pretrained(run.checkpoint)
    return run


def test_other_weights_than_those_that_were_measured_are_refused(folder, tiny_model):
    folder.check_measured()
    weights = fingerprint_weights(folder.checkpoint)
    assert json.loads(folder.measured_weights.read_text()) == {"weights": weights}
    folder.evaluation.write_text("{}")
    folder.check_measured()
    tiny_model(initializer_range=0.1).save_pretrained(folder.checkpoint)
    with pytest.raises(ValueError, match=rf"{weights}.* or move measured_weights.json, evaluation.json away"):
        folder.check_measured()
    assert folder.evaluation.read_text() == "{}"
    folder.remove_measurements()
    folder.check_measured()
    assert json.loads(folder.measured_weights.read_text()) == {"weights": fingerprint_weights(folder.checkpoint)}


def test_records_of_early_versions_are_not_said_to_be_of_these_weights(folder):
    folder.evaluation.write_text("{}")
    folder.check_measured()
    assert not folder.measured_weights.exists()
    assert folder.is_unproven


@pytest.mark.parametrize("distillation", [False, True])
@pytest.mark.parametrize(("configured", "expected"), [(None, None), (0.5, (0.5, 0.5, 0.5))])
def test_the_cost_of_a_step_is_that_of_the_configured_keep_rates(tiny_model, distillation, configured, expected):
    model = tiny_model().train()
    model.set_keep_rates(configured)
    seen = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["keep_rates"]), with_kwargs=True)
    size = model.config.image_size
    batch = {"pixel_values": torch.randn(1, 3, size, size), "labels": torch.zeros(1, size, size, dtype=torch.long)}
    schedule = {"keep_rate_range": None, "keep_rate_warmup": 0.0, "dense_fraction": 0.0}
    _loss(model, batch, SimpleNamespace(distillation=distillation, **schedule))
    assert seen[-1] == expected


def test_costs_are_those_of_the_classes_of_a_run(tiny_model, tmp_path):
    run = RunFolder(tmp_path, "dense", 0)
    run.path.mkdir(parents=True)
    recipe = {"classes": ["sky", "road", "car"], "config_overrides": {**TINY, "num_queries": 6}}
    run.recipe.write_text(yaml.safe_dump(recipe))
    assert list(_untrained(run).config.id2label.values()) == ["sky", "road", "car"]
    del recipe["classes"]  # the data set names them itself, and the trained weights know
    run.recipe.write_text(yaml.safe_dump(recipe))
    tiny_model(id2label=dict(enumerate("abcd")), num_queries=6).save_pretrained(run.checkpoint)
    assert list(_untrained(run).config.id2label.values()) == ["a", "b", "c", "d"]
