"""What is turned away at the door, with a sentence that names it; and what is let in although it looks unusual."""

import logging

import numpy as np
import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel, EomtConfig, EomtForUniversalSegmentation

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.token_selectors import SELECTOR_CLASSES, TokenSelector


@pytest.mark.parametrize("value", [2, 7, -100, 254])
@pytest.mark.parametrize("classes", [{}, {"num_labels": 3, "num_queries": 6}])
def test_labels_that_no_class_has_are_refused(tiny_model, pixel_values, labels, value, classes):
    model = tiny_model(**classes)
    if value == 2 and classes:
        value = 3
    labels[0, 10, 10] = value
    with pytest.raises(
        ValueError, match=rf"`labels` holds {value}: allowed are 0 to {model.config.num_labels - 1}, or"
    ):
        model(pixel_values, labels=labels)
    labels[0, 10, 10] = 255
    assert model(pixel_values, labels=labels).loss.isfinite()


def test_an_ignore_index_of_ones_own(tiny_model, pixel_values, labels):
    model = tiny_model(semantic_loss_ignore_index=-100)
    assert model(pixel_values, labels=labels.masked_fill(labels == 255, -100)).loss.isfinite()
    with pytest.raises(ValueError, match="`labels` holds 255"):
        model(pixel_values, labels=labels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 3}, "`num_labels` is 3 but `num_queries` is 1.*Set `num_queries`"),
        ({"id2label": {0: "a", 1: "b", 2: "c"}}, "`num_labels` is 3 but `num_queries` is 1"),
        ({"num_labels": 1}, "`num_labels` is 1: the background is a class"),
        ({"num_queries": 0}, "`num_queries` is 0"),
        ({"positions": "sinusoidal"}, "`positions` is 'sinusoidal'"),
    ],
)
def test_classes_that_could_never_win_are_refused(tiny_config, fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize(
    "rates",
    [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array([0.5] * 3), torch.full((3,), 0.5), (0.5,) * 3],
)
def test_keep_rates_of_any_library(tiny_model, pixel_values, rates):
    model = tiny_model()
    wanted = model(pixel_values, keep_rates=0.5).logits
    assert torch.equal(model(pixel_values, keep_rates=rates).logits, wanted)
    model.set_keep_rates(rates)
    assert model.config.keep_rates == [0.5] * 3
    model.config.to_json_string()


def test_keep_rates_in_words_are_refused(tiny_model, pixel_values):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"`keep_rates` is '0\.5': give a number"):
        model.set_keep_rates("0.5")
    with pytest.raises(ValueError, match="`keep_rates` is 'checkpoint': give a number"):
        model(pixel_values, keep_rates="checkpoint")


@torch.no_grad()
def test_no_keep_rates_mean_no_pruning_everywhere(tiny_model, pixel_values, tmp_path):
    """In a call, in the method and in the configuration; a call without any takes those of the configuration."""
    model = tiny_model(keep_rates=0.5)
    pruned, dense = model(pixel_values).logits, model(pixel_values, keep_rates=None).logits
    assert torch.equal(model(pixel_values, keep_rates="config").logits, pruned)
    assert torch.equal(model(pixel_values, keep_rates=1.0).logits, dense)
    assert not torch.equal(pruned, dense)
    model.set_keep_rates(None)
    model.save_pretrained(tmp_path)
    for one in (model, type(model).from_pretrained(tmp_path), tiny_model(keep_rates=None)):
        assert one.config.keep_rates is None
        assert torch.equal(one.eval()(pixel_values).logits, dense)


@pytest.mark.parametrize(
    ("variant", "learns"),
    [
        ({"train_pruning": "soft"}, True),
        ({"train_pruning": "none"}, False),
        ({"selector": "learned_query", "train_pruning": "none"}, True),
    ],
)
def test_selectors_that_do_not_learn_are_frozen(tiny_model, variant, learns, tmp_path):
    made = tiny_model(**variant)
    made.save_pretrained(tmp_path)
    for model in (made, type(made).from_pretrained(tmp_path)):
        assert {weight.requires_grad for weight in model.selectors.parameters()} == {learns}
        assert all(weight.requires_grad for weight in model.layers.parameters())


def test_a_training_that_is_changed_later_is_refused(tiny_model, pixel_values, labels):
    for made, wanted in (("none", "soft"), ("soft", "none")):
        model = tiny_model(train_pruning=made).train()
        model.config.train_pruning = wanted
        with pytest.raises(ValueError, match=rf"`train_pruning` is '{wanted}'.*when the model is loaded"):
            model(pixel_values, labels=labels)
        model.eval()(pixel_values)


def test_outputs_can_be_gathered_from_several_devices(tiny_model, pixel_values, labels):
    """`nn.DataParallel` gathers tensors, and what is made of them; nothing else."""

    def only_tensors(value) -> bool:
        if isinstance(value, dict):
            return all(map(only_tensors, value.values()))
        if isinstance(value, (list, tuple)):
            return all(map(only_tensors, value))
        return isinstance(value, torch.Tensor)

    model = tiny_model().train()
    asked = {"output_keep_masks": True, "output_token_ids": True, "patch_offsets": torch.zeros(3, 8)}
    outputs = model(pixel_values, labels=labels, **asked)
    assert only_tensors(outputs)
    assert outputs.token_ids[0].shape == (3, 64)  # written out, although it is all of them
    assert outputs.token_counts.shape == (model.config.num_hidden_layers,)


def test_a_bare_backbone_is_no_model(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    DINOv3ViTModel(DINOv3ViTConfig(**sizes, patch_size=8, image_size=64)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks .* weights of the model.*loaded by `from_backbone`"):
        Reg4PruForSemanticSegmentation.from_pretrained(tmp_path)


@pytest.mark.parametrize("swiglu", [False, True])
def test_eomt_on_dinov2(tmp_path, caplog, swiglu):
    """Unpruned output is that of transformers; the masks that it applies at inference are told of."""
    torch.manual_seed(3)
    config = EomtConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=8, num_blocks=2,
        num_queries=5, mlp_ratio=2, num_upscale_blocks=1, id2label={0: "a", 1: "b", 2: "c"}, use_swiglu_ffn=swiglu,
    )  # fmt: skip
    eomt = EomtForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for parameter in eomt.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    eomt.attn_mask_probs.zero_()
    eomt.save_pretrained(tmp_path)
    model = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path, keep_rates=0.5).eval()
    assert model.config.keep_rates == 0.5
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs, ours = eomt(pixel_values), model(pixel_values, keep_rates=1.0)
        torch.testing.assert_close(ours.masks_queries_logits, theirs.masks_queries_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.class_queries_logits, theirs.class_queries_logits, atol=1e-4, rtol=1e-4)
        assert not torch.equal(model(pixel_values).logits, ours.logits)
    model.save_pretrained(tmp_path / "ours")
    loaded = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values, keep_rates=1.0).logits, ours.logits)

    eomt.attn_mask_probs.fill_(1.0)
    eomt.save_pretrained(tmp_path)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    ours_logger = logging.getLogger("modeling_reg4pru.modeling_reg4pru")
    ours_logger.addHandler(handler)
    try:
        Reg4PruForSemanticSegmentation.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(handler)
        ours_logger.removeHandler(handler)
    assert any("masks the attention of its queries at inference" in message for message in said)


class BrightestSelector(TokenSelector):
    """A toy: the mean of a state is its score."""

    def __init__(self, config):
        super().__init__()

    def forward(self, states):
        return states.mean(dim=-1)


def test_a_selector_is_one_class_and_its_name(tiny_model, pixel_values, labels, monkeypatch):
    """Configuration, training, inference and the count of operations need nothing but its place in the dictionary."""
    from reg4pru.benchmarking.flops import forward_flops

    monkeypatch.setitem(SELECTOR_CLASSES, "brightest", BrightestSelector)
    model = tiny_model(selector="brightest", train_pruning="hard", keep_rates=0.5, pruning_layers=[1])
    outputs = model(pixel_values, output_keep_masks=True, output_hidden_states=True)
    scores = outputs.hidden_states[1][:, 5:].mean(-1)
    for image in range(3):
        kept = set(outputs.keep_masks[image, 0].flatten().nonzero().flatten().tolist())
        assert kept == set(scores[image].topk(len(kept)).indices.tolist())
    assert forward_flops(model.config, (8, 8))["selectors"] == 0
    loss = model.train()(pixel_values, labels=labels)
    loss.loss.backward()
    assert set(loss.loss_parts) == {"loss_mask", "loss_dice"}
