"""Drift of preserved representations: exact where it must be zero, and the record agrees with the model."""

import pytest
import torch

from reg4pru.study.drift_trace import GridTrace, measure_drift, trace_grid


def test_nothing_drifts_without_pruning(tiny_model, pixel_values):
    model = tiny_model()
    unpruned, again = (trace_grid(model, pixel_values, 1.0) for _ in range(2))
    drift = measure_drift(again, unpruned)
    assert again.active.all()
    torch.testing.assert_close(drift.kept, torch.ones(6))
    assert drift.pruned.isnan().all()


@pytest.mark.parametrize("pool", ["active", "all"])
def test_the_active_tokens_are_those_of_the_keep_masks(tiny_model, pixel_values, pool):
    model = tiny_model(selection_pool=pool)
    trace = trace_grid(model, pixel_values, 0.5)
    masks = model(pixel_values, keep_rates=0.5, output_keep_masks=True).keep_masks.flatten(2)
    # Stages 0, 2 and 3 remove tokens after their layer; after layer 4 all are put back.
    for layer, stage in ((1, 0), (2, 0), (3, 1), (4, 2)):
        assert torch.equal(trace.active[layer], masks[:, stage])
    assert trace.active[0].all()
    assert trace.active[5].all()


def test_a_preserved_state_does_not_change_until_it_is_reactivated(tiny_model, pixel_values):
    trace = trace_grid(tiny_model(), pixel_values, 0.5)
    for layer in range(1, 5):
        waits = ~trace.active[layer]
        assert waits.any()
        assert torch.equal(trace.states[layer][waits], trace.states[layer - 1][waits])
    assert not torch.equal(trace.states[5], trace.states[4])


def test_before_the_first_removal_pruned_and_unpruned_agree(tiny_model, pixel_values):
    model = tiny_model()
    drift = measure_drift(trace_grid(model, pixel_values, 0.5), trace_grid(model, pixel_values, 1.0))
    assert drift.pruned[0].isnan()
    torch.testing.assert_close(drift.kept[0], torch.tensor(1.0))
    assert (drift.pruned[1:] < 1 - 1e-4).all()


@pytest.mark.parametrize("classes", [{}, {"num_labels": 4, "num_queries": 6}], ids=["binary", "four_classes"])
def test_the_last_logits_are_those_of_the_model(tiny_model, pixel_values, classes):
    model = tiny_model(**classes)
    with torch.inference_mode():
        logits = model(pixel_values, keep_rates=0.5).logits
    torch.testing.assert_close(trace_grid(model, pixel_values, 0.5).logits[-1], logits)


def test_the_model_is_left_as_it_was(tiny_model, pixel_values):
    model = tiny_model().train()
    trace_grid(model, pixel_values, 0.5)
    assert model.training
    assert not any(layer._forward_hooks for layer in model.layers)


def test_drift_by_hand():
    right, up, diagonal = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]
    unpruned = GridTrace(
        torch.tensor([[[right, right]], [[up, diagonal]]]), torch.ones(2, 1, 2).bool(), torch.empty(0)
    )
    pruned = GridTrace(
        torch.tensor([[[right, right]], [[right, diagonal]]]),
        torch.tensor([[[True, True]], [[False, True]]]),
        torch.empty(0),
    )
    drift = measure_drift(pruned, unpruned)
    torch.testing.assert_close(drift.pruned, torch.tensor([float("nan"), 0.0]), equal_nan=True)
    torch.testing.assert_close(drift.kept, torch.tensor([1.0, 1.0]))


def test_a_pruned_reference_is_refused(tiny_model, pixel_values):
    trace = trace_grid(tiny_model(), pixel_values, 0.5)
    with pytest.raises(ValueError, match="pruned as well"):
        measure_drift(trace, trace)
