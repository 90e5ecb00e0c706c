"""torch.compile: one graph, none more when the batch changes, and the same numbers."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from ..variants import give_corrections_weights

# Compiled kernels sum in another order.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def images(batch_size):
    return torch.randn(batch_size, 3, 64, 64, generator=torch.Generator().manual_seed(batch_size))


def counted(model):
    """The model as one graph that is not compiled further, and the count of its graphs."""
    counter = CompileCounter()
    return torch.compile(model, backend=counter, fullgraph=True), counter


@pytest.mark.parametrize(
    ("pool", "reactivation_layer", "drift_correction", "context_grid"),
    [("active", 3, False, 0), ("active", 5, True, 3), ("all", 4, True, 0)],
)
@torch.no_grad()
def test_one_graph_for_all_batch_sizes(tiny_model, pool, reactivation_layer, drift_correction, context_grid):
    fields = {"selection_pool": pool, "drift_correction": drift_correction, "context_grid": context_grid,
              "train_pruning": "hard"}  # fmt: skip
    model = tiny_model(**fields, pruning_layers=[0, 2], reactivation_layer=reactivation_layer)
    give_corrections_weights(model)
    compiled, counter = counted(model)
    first = images(2)
    torch._dynamo.mark_dynamic(first, 0)
    compiled(first)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch_size in (3, 5, 2, 8):
            outputs = compiled(images(batch_size))
            assert torch.equal(outputs.logits, model(images(batch_size)).logits)
    assert counter.frame_count == 1


@torch.no_grad()
def test_one_graph_for_batches_of_one_too(tiny_model):
    """PyTorch takes a size of 1 for a constant, unless told to know nothing of the size."""
    model = tiny_model()
    compiled, counter = counted(model)
    first = images(2)
    torch._dynamo.decorators.mark_unbacked(first, 0)
    for pixel_values in (first, images(1), images(4)):
        assert torch.equal(compiled(pixel_values).logits, model(pixel_values).logits)
    assert counter.frame_count == 1


@pytest.mark.slow
@torch.no_grad()
def test_keep_rates_of_a_call(tiny_model):
    """Every set of rates has a graph of its own, as token counts are constants in it; a known one is found again."""
    model = tiny_model()
    compiled, counter = counted(model)
    for rate, graphs in ((0.7, 1), (0.5, 2), (0.7, 2), ((0.9, 0.5, 0.5), 3)):
        outputs = compiled(images(2), keep_rates=rate)
        assert torch.equal(outputs.logits, model(images(2), keep_rates=rate).logits)
        assert outputs.token_counts.tolist() == model(images(2), keep_rates=rate).token_counts.tolist()
        assert counter.frame_count == graphs


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="torch.compile for CPUs needs a C++ compiler"
)
@torch.no_grad()
def test_inductor_gives_the_same_logits(tiny_model):
    model = tiny_model(num_hidden_layers=4, pruning_layers=[0], reactivation_layer=2)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(images(2)).logits, model(images(2)).logits, **TOLERANCE)


@pytest.mark.parametrize("train_pruning", ["soft", pytest.param("hard", marks=pytest.mark.slow)])
def test_training_step_with_a_fixed_window(tiny_model, train_pruning):
    fields = {"train_pruning": train_pruning, "routing_window": [1, 3], "pruning_layers": [0, 2]}
    labels = (torch.rand(2, 64, 64) < 0.2).long()
    counter = CompileCounterWithBackend("aot_eager")
    results = []
    for compiles in (False, True):
        model = tiny_model(**fields).train()
        forward = torch.compile(model, backend=counter, fullgraph=True) if compiles else model
        torch.manual_seed(0)
        outputs = forward(images(2), labels=labels)
        outputs.loss.backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        results.append((outputs.loss.detach(), outputs.token_counts.tolist(), gradients))
    (loss, counts, gradients), (compiled_loss, compiled_counts, compiled_gradients) = results
    assert counter.frame_count == 1
    assert compiled_counts == counts
    torch.testing.assert_close(compiled_loss, loss, **TOLERANCE)
    torch.testing.assert_close(compiled_gradients, gradients, **TOLERANCE)
