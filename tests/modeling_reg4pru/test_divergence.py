"""The divergence of a dropped token, and the selector that guesses its logarithm."""

import logging
import math

import pytest
import torch

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.divergence import SMALLEST, divergence_loss, log_divergence
from modeling_reg4pru.segmentation_head import semantic_logits

from ..variants import give_corrections_weights


@pytest.mark.parametrize("classes", [{}, {"num_labels": 4, "num_queries": 6}], ids=["binary", "four classes"])
@torch.no_grad()
def test_divergence_is_the_kl_of_the_predictions_at_the_pixels_of_a_patch(tiny_model, classes):
    model = tiny_model(**classes)
    guessed, dense = torch.randn(2, 3, 64, 32).unbind()
    queries = torch.randn(3, model.config.num_queries, 32)
    found = log_divergence(model, guessed, dense, queries, (8, 8))

    student, teacher = (
        semantic_logits(*model.predict(queries, states, (8, 8))).softmax(1) for states in (guessed, dense)
    )
    pixels = (teacher * (teacher / student).log()).sum(1)
    side = pixels.shape[-1] // 8
    for image in range(3):
        for patch in (0, 9, 63):
            top, left = side * (patch // 8), side * (patch % 8)
            wanted = (pixels[image, top : top + side, left : left + side].mean() + SMALLEST).log()
            assert found[image, patch].item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-3)


def test_a_token_that_comes_back_as_it_should_be_diverges_by_nothing(tiny_model):
    model, states = tiny_model(), torch.randn(1, 64, 32)
    found = log_divergence(model, states, states, torch.randn(1, 1, 32), (8, 8))
    torch.testing.assert_close(found, torch.full((1, 64), SMALLEST).log())


CLASSES = {"binary": {}, "four_classes": {"num_labels": 4, "num_queries": 6}}
MODELS = {**CLASSES, "query": {"selector": "divergence_query"}}
LEARNS = {"selector": "divergence", "train_pruning": "hard", "drift_correction": True, "routing": False}


@pytest.fixture(params=MODELS)
def model(tiny_model, request):
    fields = {**LEARNS, **MODELS[request.param]}
    model = tiny_model(**fields, pos_embed_rescale=None, masked_attention=False).train()
    give_corrections_weights(model)
    return model


@pytest.mark.parametrize("pool", ["active", "all"])
def test_the_loss_is_the_squared_error_of_the_log_divergence(model, pixel_values, pool):
    """By the dense states at every layer, stage by stage, and at the tokens of the stage's pool alone."""
    model.config.selection_pool = pool
    hidden = model(pixel_values, keep_rates=None, output_hidden_states=True).hidden_states
    pruned = model(pixel_values, keep_rates=0.5, output_token_ids=True)
    found = divergence_loss(model, pruned.selector_scores, hidden, (8, 8))

    errors = []
    for stage, layer in enumerate(model.config.pruning_layers):  # 0, 2, 3; reactivation after layer 4
        states, queries = hidden[layer + 1][:, -64:], hidden[6][:, : model.config.num_queries]
        guessed = states + model.drift_corrections[stage](states)
        wanted = log_divergence(model, guessed, hidden[5][:, -64:], queries, (8, 8))
        scores, ids = pruned.selector_scores[stage]
        if pool == "all" or stage == 0:
            assert ids is None
            at = wanted
        else:
            assert torch.equal(ids.sort().values, pruned.token_ids[layer].sort().values)
            at = torch.stack([wanted[image, ids[image]] for image in range(3)])
        errors.append(((scores - at) ** 2).mean() / wanted.var(correction=0).clamp_min(1))
    assert found.item() == pytest.approx(sum(errors).item() / 3, rel=1e-5)

    found.backward()
    for name, weights in model.named_parameters():
        assert (weights.grad is not None) == name.startswith("selectors."), name


def test_scores_begin_in_the_middle_of_all_divergences(tiny_model, tmp_path):
    model = tiny_model(**LEARNS, initializer_range=0.02)
    states = torch.randn(2, 64, 32)
    queries = tiny_model(**{**LEARNS, "selector": "divergence_query"}, initializer_range=0.02).selectors
    for selector in (*model.selectors, *queries):
        assert selector(states).mean().item() == pytest.approx(math.log(SMALLEST) / 2, abs=0.2)
    torch.nn.init.ones_(model.selectors[0].fc3.bias)
    model.save_pretrained(tmp_path)
    loaded = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path).selectors
    assert [selector.fc3.bias.tolist() for selector in loaded] == [[1.0, 1.0], [-7.0, 0.0], [-7.0, 0.0]]


def test_selectors_learn_what_diverges(model, pixel_values):
    optimizer = torch.optim.Adam(model.selectors.parameters(), lr=2e-2)
    with torch.no_grad():
        hidden = model(pixel_values, keep_rates=None, output_hidden_states=True).hidden_states
    losses = []
    for _ in range(60):
        loss = divergence_loss(model, model(pixel_values, keep_rates=0.5).selector_scores, hidden, (8, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    learned = 0.8 if model.config.selector == "divergence_query" else 0.5  # a linear score cannot know as much
    assert losses[-1] < learned < losses[0]


def test_nobody_is_told_of_scores_that_do_not_learn(tiny_model, pixel_values):
    model = tiny_model(**LEARNS)
    assert model(pixel_values, keep_rates=0.5).selector_scores is None
    assert model.train()(pixel_values, keep_rates=None).selector_scores is None
    other = tiny_model(**{**LEARNS, "selector": "foreground_mlp"}).train()
    assert other(pixel_values, keep_rates=0.5).selector_scores is None


def test_without_a_correction_there_is_no_guess_to_learn_from(tiny_model, pixel_values, labels):
    model = tiny_model(**{**LEARNS, "drift_correction": False}).train()
    with pytest.raises(ValueError, match=r"`selector='divergence'` learns how wrong the guess.*drift_correction=True"):
        model(pixel_values, labels=labels)
    assert model.eval()(pixel_values, labels=labels).loss.isfinite()


def test_a_step_that_teaches_no_selector_is_said_once(tiny_model, pixel_values, labels, caplog):
    logging.Logger.warning_once.cache_clear()
    model = tiny_model(**LEARNS).train()
    model(pixel_values, labels=labels, keep_rates=None)
    model(pixel_values, keep_rates=0.5)
    model.eval()(pixel_values, labels=labels)
    assert "learns nothing" not in caplog.text
    model.train()
    for _ in range(2):
        model(pixel_values, labels=labels)
    assert caplog.text.count("`selector='divergence'` learns nothing from labels") == 1
