"""What a forward pass must not do: matrices of all pairs of tokens, waiting for the device, work thrown away."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

NUM_PATCHES = 1024  # of an image of 256 pixels; no other side of a tensor comes near


class PairMatrices(TorchDispatchMode):
    """Notes every operator that gives a matrix of at least half as many rows and columns as there are patches."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            if isinstance(output, torch.Tensor) and output.ndim > 1 and min(output.shape[-2:]) >= NUM_PATCHES // 2:
                self.found.add(str(function))
        return outputs


def pair_matrices(model, train):
    pixel_values = torch.randn(1, 3, 256, 256)
    labels = (torch.rand(1, 256, 256) < 0.2).long() if train else None
    with PairMatrices() as mode:
        outputs = model.train(train)(pixel_values, labels=labels)
        if train:
            outputs.loss.backward()
    return mode.found


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("pool", ["active", "all"])
@pytest.mark.parametrize(
    "variant",
    [
        {"train_pruning": "none"},
        {"train_pruning": "soft"},
        {"train_pruning": "hard", "drift_correction": True},
        {"num_queries": 3},
    ],
)
def test_no_matrix_of_all_pairs_of_tokens(tiny_model, variant, pool, train):
    assert pair_matrices(tiny_model(**variant, selection_pool=pool, image_size=256), train) == set()


def test_eager_attention_is_found_to_make_such_matrices(tiny_model):
    model = tiny_model(image_size=256)
    model.set_attn_implementation("eager")
    assert pair_matrices(model, train=False)
    assert pair_matrices(model, train=True)


@pytest.mark.parametrize("output_keep_masks", [False, True])
@pytest.mark.parametrize("pool", ["active", "all"])
def test_inference_never_waits_for_the_device(tiny_model, pool, output_keep_masks):
    """Tensors of the meta device have shapes but no values: whatever needs one on the host fails."""
    model = tiny_model(selection_pool=pool, train_pruning="hard", drift_correction=True).to("meta")
    outputs = model(torch.empty(2, 3, 64, 64, device="meta"), output_keep_masks=output_keep_masks)
    assert outputs.logits.shape == (2, 2, 16, 16)
    with pytest.raises((NotImplementedError, RuntimeError)):
        outputs.logits.sum().item()


@pytest.mark.parametrize("train_pruning", ["none", "soft", "hard"])
@pytest.mark.parametrize("routing_window", [None, [1, 3]])
def test_training_never_waits_for_the_device(tiny_model, train_pruning, routing_window):
    model = tiny_model(train_pruning=train_pruning, routing_window=routing_window).to("meta").train()
    labels = torch.empty(2, 64, 64, device="meta", dtype=torch.long)
    outputs = model(torch.empty(2, 3, 64, 64, device="meta"), labels=labels)
    outputs.loss.backward()
    assert outputs.loss.device.type == "meta"


def calls_of(module, run):
    calls = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    run()
    hook.remove()
    return len(calls)


def test_heads_run_once_at_inference(tiny_model, pixel_values, labels):
    model = tiny_model()
    assert calls_of(model.upscale_block, lambda: model(pixel_values)) == 1
    model.train()
    assert calls_of(model.upscale_block, lambda: model(pixel_values, labels=labels)) == 1 + model.config.num_blocks


def test_selectors_run_only_where_they_remove(tiny_model, pixel_values):
    model = tiny_model()
    for rates, runs in ((0.7, [1, 1, 1]), ((1.0, 0.5, 1.0), [0, 1, 0]), (1.0, [0, 0, 0])):
        counts = [
            calls_of(part.fc1, lambda rates=rates: model(pixel_values, keep_rates=rates)) for part in model.selectors
        ]
        assert counts == runs
