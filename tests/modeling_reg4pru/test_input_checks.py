"""What a forward pass refuses, with an error that names it, and what it takes although it looks unusual."""

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("value", [2, 7, -100, 254])
@pytest.mark.parametrize("classes", [{}, {"num_labels": 3, "num_queries": 6}])
def test_labels_of_no_class_are_refused(tiny_model, pixel_values, labels, value, classes):
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


def test_another_ignore_index(tiny_model, pixel_values, labels):
    model = tiny_model(semantic_loss_ignore_index=-100)
    assert model(pixel_values, labels=labels.masked_fill(labels == 255, -100)).loss.isfinite()
    with pytest.raises(ValueError, match="`labels` holds 255"):
        model(pixel_values, labels=labels)


@pytest.mark.parametrize(
    "rates",
    [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array([0.5] * 3), torch.full((3,), 0.5), (0.5,) * 3],
)
def test_keep_rates_of_numpy_and_torch(tiny_model, pixel_values, rates):
    model = tiny_model()
    wanted = model(pixel_values, keep_rates=0.5).logits
    assert torch.equal(model(pixel_values, keep_rates=rates).logits, wanted)
    model.set_keep_rates(rates)
    assert model.config.keep_rates == [0.5] * 3
    model.config.to_json_string()


def test_keep_rates_as_strings_are_refused(tiny_model, pixel_values):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"`keep_rates` is '0\.5': give a number"):
        model.set_keep_rates("0.5")
    with pytest.raises(ValueError, match="`keep_rates` is 'checkpoint': give a number"):
        model(pixel_values, keep_rates="checkpoint")


def test_train_pruning_cannot_be_changed_after_loading(tiny_model, pixel_values, labels):
    for made, wanted in (("none", "soft"), ("soft", "none")):
        model = tiny_model(train_pruning=made).train()
        model.config.train_pruning = wanted
        with pytest.raises(ValueError, match=rf"`train_pruning` is '{wanted}'.*when the model is loaded"):
            model(pixel_values, labels=labels)
        model.eval()(pixel_values)


STREETS = {"id2label": {0: "sky", 1: "road", 2: "car"}, "num_queries": 6, "train_pruning": "hard"}


@pytest.mark.parametrize("selector", ["learned_query", "foreground_mlp"])
def test_class_0_is_not_dropped_where_it_is_no_background(tiny_model, pixel_values, labels, selector):
    model = tiny_model(**STREETS, selector=selector).train()
    with pytest.raises(ValueError, match=rf"`selector='{selector}'`.*class 0 is 'sky'.*`selector='divergence'`"):
        model(pixel_values, labels=labels)
    model.eval()(pixel_values, labels=labels)
    for name in ("background", "Unlabelled"):
        model = tiny_model(**{**STREETS, "id2label": {0: name, 1: "road", 2: "car"}}, selector=selector).train()
        assert model(pixel_values, labels=labels).loss_parts["loss_selector"] > 0
    for other in ("mlp", "random"):
        assert tiny_model(**STREETS, selector=other).train()(pixel_values, labels=labels).loss.isfinite()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # torch reads every attribute
def test_tracing_is_refused_in_words(tiny_model, pixel_values):
    with pytest.raises(ValueError, match=r"`torch\.jit\.trace` cannot hold"):
        torch.jit.trace(tiny_model(), pixel_values, strict=False)
