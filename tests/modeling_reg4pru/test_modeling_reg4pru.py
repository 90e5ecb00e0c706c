"""What every transformers model must do: save, load, checkpoint, run in any precision and size, refuse bad input."""

import re

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForSemanticSegmentation, Trainer, TrainingArguments

from modeling_reg4pru import Reg4PruForSemanticSegmentation

from ..variants import VARIANTS

CLASSES = {"num_queries": 5, "num_labels": 3}
MODELS = {
    "binary": {},
    "classes": CLASSES,
    "without_stages": {"pruning_layers": [], "routing": False},
    **{name: VARIANTS[name] for name in ("learned_query_routing", "foreground_mlp", "random", "corrected")},
}


@pytest.fixture(params=MODELS, ids=str)
def model(request, tiny_model):
    return tiny_model(**MODELS[request.param])


def seeded(model, *args, **kwargs):
    torch.manual_seed(0)
    return model(*args, **kwargs)


@pytest.mark.parametrize(
    "auto_class", [Reg4PruForSemanticSegmentation, AutoModelForSemanticSegmentation, AutoModel], ids=str
)
@torch.no_grad()
def test_saving_and_loading_changes_nothing(model, pixel_values, tmp_path, auto_class):
    model.set_mask_annealing(0.5)
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, Reg4PruForSemanticSegmentation)
    assert not loaded.training
    assert not any(report.values()), report
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)
    # non-persistent ones as well: they are not in the file and must be rebuilt
    buffers, loaded_buffers = dict(model.named_buffers()), dict(loaded.named_buffers())
    assert {"rope_embeddings.inv_freq", "attn_mask_probs"} <= buffers.keys() == loaded_buffers.keys()
    assert all(torch.equal(buffers[name], loaded_buffers[name]) for name in buffers)
    assert torch.equal(seeded(loaded, pixel_values).logits, seeded(model, pixel_values).logits)


@torch.no_grad()
def test_keep_rates_survive_saving(tiny_model, pixel_values, tmp_path):
    model = tiny_model()
    model.set_keep_rates(0.4)
    model.save_pretrained(tmp_path)
    loaded = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.keep_rates == [0.4, 0.4, 0.4]
    assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)
    overridden = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path, keep_rates=0.8)
    assert torch.equal(overridden(pixel_values).logits, model(pixel_values, keep_rates=0.8).logits)


@torch.no_grad()
def test_loading_in_half_precision(tiny_model, pixel_values, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    loaded = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert loaded.rope_embeddings.inv_freq.dtype == torch.float32
    logits = loaded(pixel_values, keep_rates=1.0).logits
    exact = tiny_model()(pixel_values, keep_rates=1.0).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_every_weight_is_initialised(model):
    """`_init_weights` sets every parameter and buffer, as it must where weights are made on the meta device."""
    reference = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
    for module in model.modules():
        module._is_hf_initialized = False
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = False
    model.init_weights()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.isfinite().all(), name
        if name.endswith("bias") or not tensor.is_floating_point() or "lambda1" in name or "register" in name:
            assert torch.equal(tensor, reference[name]), name
        elif tensor.numel() > 100:
            assert tensor.std().item() == pytest.approx(reference[name].std().item(), rel=0.3), name
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert not module.bias.any()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers 5.23 warns of the only name that 5.17 has
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("train_pruning", ["soft", "hard"])
def test_gradient_checkpointing_changes_nothing(tiny_model, pixel_values, labels, train_pruning, use_reentrant):
    results = []
    for checkpointing in (False, True):
        model = tiny_model(train_pruning=train_pruning, drop_path_rate=0.1).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert all(layer.gradient_checkpointing for layer in model.layers)
        loss = seeded(model, pixel_values, labels).loss
        loss.backward()
        results.append((loss.detach(), [weight.grad for weight in model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    for plain, recomputed in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"train_pruning": "hard"}, CLASSES], ids=["soft", "hard", "classes"])
def test_eager_and_sdpa_agree(tiny_model, pixel_values, labels, fields):
    model = tiny_model(**fields).double().train()
    results = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        outputs = seeded(model, pixel_values.double(), labels.clamp(max=1))
        outputs.loss.backward()
        results.append([outputs.logits.detach(), *(weight.grad.clone() for weight in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * one.abs().max().item(), rtol=1e-3)


@torch.no_grad()
def test_hidden_states_and_attentions(tiny_model, pixel_values):
    model = tiny_model()
    model.set_attn_implementation("eager")
    outputs = model(pixel_values, output_hidden_states=True, output_attentions=True)
    plain = model(pixel_values)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert torch.equal(outputs.logits, plain.logits)
    counts = outputs.token_counts.tolist()
    assert [states.shape[1] for states in outputs.hidden_states[1:]] == list(counts)
    assert [weights.shape for weights in outputs.attentions] == [(3, 2, count, count) for count in counts]
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@torch.no_grad()
def test_return_dict_false_gives_a_tuple(tiny_model, pixel_values, labels):
    model = tiny_model()
    outputs, values = model(pixel_values, labels), model(pixel_values, labels, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], outputs.loss)
    assert torch.equal(values[1], outputs.logits)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (128, 64), (8, 200), (72, 8)])
def test_images_of_any_multiple_of_the_patch_size(model, size):
    pixel_values = torch.randn(1, 3, *size)
    with torch.no_grad():
        logits = seeded(model, pixel_values).logits
    assert logits.shape == (1, model.config.num_labels, size[0] // 4, size[1] // 4)
    labels = torch.randint(0, 2, (1, *size))
    assert model.train()(pixel_values, labels).loss.isfinite()


BAD_INPUTS = [
    ({"pixel_values": torch.zeros(1, 3, 60, 64)}, "60 x 64, but both sides must be multiples of the patch size 8"),
    ({"pixel_values": torch.zeros(1, 3, 60, 65)}, "resize or pad to 64 x 72"),
    ({"pixel_values": torch.zeros(1, 1, 64, 64)}, "`pixel_values` has shape (1, 1, 64, 64): it must be (batch, 3,"),
    ({"pixel_values": torch.zeros(3, 64, 64)}, "`pixel_values` has shape (3, 64, 64)"),
    ({"labels": torch.zeros(2, 64, 64)}, "`labels` has shape (2, 64, 64): it must be (1, 64, 64)"),
    ({"labels": torch.zeros(1, 16, 16)}, "`labels` has shape (1, 16, 16)"),
    ({"labels": torch.zeros(1, 1, 64, 64)}, "`labels` has shape (1, 1, 64, 64)"),
    ({"keep_rates": 0.0}, "`keep_rates` contains 0.0: every keep rate must lie in (0, 1]"),
    ({"keep_rates": [0.5, 0.5]}, "`keep_rates` has 2 entries, [0.5, 0.5], but there are 3 pruning stages"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS, ids=[message for _, message in BAD_INPUTS])
def test_bad_input_is_refused(tiny_model, inputs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_model()(**{"pixel_values": torch.zeros(1, 3, 64, 64), **inputs})


@pytest.mark.parametrize("rates", [0, 1.5, [0.5], [0.5, 0.5, -1]])
def test_bad_keep_rates_are_refused_and_change_nothing(tiny_model, rates):
    model = tiny_model()
    with pytest.raises(ValueError, match="`keep_rates`"):
        model.set_keep_rates(rates)
    assert model.config.keep_rates == 0.7


def test_a_misspelt_argument_is_an_error(tiny_model, pixel_values):
    with pytest.raises(TypeError, match="keep_rate"):
        tiny_model()(pixel_values, keep_rate=0.5)


def test_trainer_averages_over_accumulated_batches(tiny_model, tmp_path):
    """A model that takes any keyword argument is left to do this itself, and its gradients grow with the steps."""
    arguments = TrainingArguments(tmp_path, use_cpu=True, gradient_accumulation_steps=2)
    assert not Trainer(tiny_model(), arguments).model_accepts_loss_kwargs


def test_outputs_can_be_gathered_from_several_devices(tiny_model, pixel_values, labels):
    """`nn.DataParallel` gathers tensors, and what is made of them; nothing else."""

    def only_tensors(value) -> bool:
        if isinstance(value, dict):
            return all(map(only_tensors, value.values()))
        if isinstance(value, (list, tuple)):
            return all(map(only_tensors, value))
        return isinstance(value, torch.Tensor)

    model = tiny_model(**VARIANTS["corrected"]).train()
    asked = {"output_keep_masks": True, "output_token_ids": True, "patch_offsets": torch.zeros(3, 8)}
    outputs = model(pixel_values, labels=labels, **asked)
    assert only_tensors(outputs)
    assert outputs.reactivated is not None
    assert outputs.token_ids[0].shape == (3, 64)  # written out, although it is all of them
    assert outputs.token_counts.shape == (model.config.num_hidden_layers,)
