"""The configuration: what it refuses, with which words, and that it survives saving."""

import re

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation
from modeling_reg4pru.configuration_reg4pru import expand_keep_rates
from modeling_reg4pru.token_bank import routing_window_range

# fields that do not fit, and what the message must name: the field, the value, what is allowed
BAD_FIELDS = [
    ({"keep_rates": 2.0}, "`keep_rates` contains 2.0: every keep rate must lie in (0, 1]"),
    ({"keep_rates": 0}, "`keep_rates` contains 0: every keep rate must lie in (0, 1]"),
    ({"keep_rates": -0.5}, "`keep_rates` contains -0.5"),
    ({"keep_rates": float("nan")}, "`keep_rates` contains nan"),
    ({"keep_rates": [0.5, 0.7, 1.1]}, "`keep_rates` contains 1.1"),
    ({"keep_rates": [0.5, 0.7]}, "`keep_rates` has 2 entries, [0.5, 0.7], but there are 3 pruning stages"),
    ({"keep_rates": [0.5], "pruning_layers": []}, "`keep_rates` has 1 entries, [0.5], but there are 0"),
    ({"keep_rates": "half"}, "Field 'keep_rates'"),
    ({"pruning_layers": [1, 4]}, "`pruning_layers` is [1, 4], but tokens are reactivated after layer 4"),
    ({"pruning_layers": [1, 5]}, "every stage must come before it"),
    ({"pruning_layers": [2, 3], "reactivation_layer": 2}, "tokens are reactivated after layer 2"),
    ({"pruning_layers": [3, 1]}, "`pruning_layers` is [3, 1]: the layers must be distinct and in ascending order"),
    ({"pruning_layers": [1, 1]}, "`pruning_layers` is [1, 1]: the layers must be distinct"),
    ({"pruning_layers": [-1, 2]}, "`pruning_layers` is [-1, 2]: layers are counted from 0"),
    ({"pruning_layers": [0.5]}, "Field 'pruning_layers'"),
    ({"reactivation_layer": 6}, "`reactivation_layer` is 6: it must be one of the layers 0..5"),
    ({"reactivation_layer": -1, "pruning_layers": []}, "`reactivation_layer` is -1"),
    ({"num_blocks": 0}, "`num_blocks` is 0: it must lie between 1 and the 6 layers"),
    ({"num_blocks": 7}, "`num_blocks` is 7"),
    ({"drift_correction": True}, "`drift_correction=True` with `train_pruning='soft'`"),
    ({"drift_correction": True, "train_pruning": "none"}, "`drift_correction=True` with `train_pruning='none'`"),
    (
        {"selector": "best"},
        "`selector` is 'best': it must be one of mlp, foreground_mlp, divergence, learned_query, "
        "divergence_query, random",
    ),
    ({"context_grid": -1}, "`context_grid` is -1"),
    ({"train_pruning": "medium"}, "`train_pruning` is 'medium': it must be one of none, soft, hard"),
    ({"selection_pool": "some"}, "`selection_pool` is 'some': it must be one of active, all"),
    ({"selector": "learned_query"}, "`train_pruning='soft'` with `selector='learned_query'`"),
    ({"selector": "random"}, "Use `train_pruning='hard'` or 'none'"),
    ({"budget_loss_weight": -1}, "`budget_loss_weight` is -1: it must not be negative"),
    ({"selector_loss_weight": -0.5}, "`selector_loss_weight` is -0.5: it must not be negative"),
    ({"selector_temperature": 0}, "`selector_temperature` is 0: it must be above 0"),
    ({"token_multiple": 0}, "`token_multiple` is 0: it must be at least 1"),
    ({"patch_size": [8, 8]}, "Field 'patch_size' expected int"),
    ({"routing_keep_rate": 0}, "`routing_keep_rate` is 0: it must lie in (0, 1]"),
    ({"routing_keep_rate": 1.5}, "`routing_keep_rate` is 1.5"),
    ({"routing_probability": 1.5}, "`routing_probability` is 1.5: it must lie in [0, 1]"),
    ({"routing_probability": -1}, "`routing_probability` is -1"),
    ({"routing_window": [1, 5]}, "`routing_window` is [1, 5]: it must be [l, n] with 0 <= l < n <= 4"),
    ({"routing_window": [3, 3]}, "`routing_window` is [3, 3]"),
    ({"routing_window": [-1, 3]}, "`routing_window` is [-1, 3]"),
    ({"routing_window": [1, 2, 3]}, "`routing_window` is [1, 2, 3]"),
    ({"num_hidden_layers": 2}, "`num_hidden_layers` is 2: random token routing needs at least 3 layers"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[str(fields) for fields, _ in BAD_FIELDS])
def test_a_bad_field_is_refused_by_name(tiny_config, fields, message):
    with pytest.raises(StrictDataclassError, match=re.escape(message)):
        tiny_config(**fields)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    config = Reg4PruConfig(
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=8,
        num_upscale_blocks=1,
        num_blocks=2,
    )
    Reg4PruForSemanticSegmentation(config).save_pretrained(folder)
    return folder


OVERRIDES = [pair for pair in BAD_FIELDS if not {"num_blocks", "num_hidden_layers", "patch_size"} & set(pair[0])]


@pytest.mark.parametrize(("fields", "message"), OVERRIDES, ids=[str(fields) for fields, _ in OVERRIDES])
def test_a_bad_field_is_refused_by_from_pretrained(checkpoint, fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=re.escape(message)):
        Reg4PruForSemanticSegmentation.from_pretrained(checkpoint, **fields)


def test_an_invalid_field_that_was_set_later_is_refused_when_saving_or_using(tiny_config, tmp_path):
    config = tiny_config()
    config.keep_rates = 3.0
    with pytest.raises(StrictDataclassError, match=r"`keep_rates` contains 3\.0"):
        Reg4PruForSemanticSegmentation(config)
    with pytest.raises(StrictDataclassError, match=r"`keep_rates` contains 3\.0"):
        config.save_pretrained(tmp_path / "config")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"keep_rates": [0.9, 0.8, 0.7], "selection_pool": "all"},
        {"keep_rates": (0.9, 0.8, 0.7), "pruning_layers": (0, 1, 2), "routing_window": (1, 2)},
        {"keep_rates": 1, "routing": False, "budget_loss_weight": 0, "selector_temperature": 2},
        {
            "selector": "learned_query",
            "train_pruning": "hard",
            "reactivation_layer": 5,
            "num_labels": 4,
            "num_queries": 9,
        },
        {"pruning_layers": [], "id2label": {0: "background", 1: "vessel"}},
    ],
    ids=str,
)
def test_saving_and_loading_keeps_every_field(tiny_config, tmp_path, fields):
    config = tiny_config(**fields)
    config.save_pretrained(tmp_path)
    for loaded in (Reg4PruConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, Reg4PruConfig)
        assert loaded.to_diff_dict() == config.to_diff_dict()
        for name, value in fields.items():
            assert getattr(loaded, name) == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    ("depth", "pruning_layers", "reactivation_layer"),
    [(12, [2, 5, 8], 10), (24, [5, 11, 17], 22), (6, [0, 2, 3], 4), (8, [1, 3, 5], 6), (3, [0], 1)],
)
def test_stages_are_at_the_quarters_of_the_depth(depth, pruning_layers, reactivation_layer):
    config = Reg4PruConfig(num_hidden_layers=depth)
    assert config.pruning_layers == pruning_layers
    assert config.reactivation_layer == reactivation_layer
    assert config.num_stages == len(pruning_layers)


def test_stages_are_before_an_early_reactivation():
    assert Reg4PruConfig(reactivation_layer=5).pruning_layers == [2]


def test_the_default_is_the_model_of_the_study():
    config = Reg4PruConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (384, 12, 6)
    assert (config.patch_size, config.image_size, config.first_query_layer) == (16, 1024, 9)
    assert (config.keep_rates, config.train_pruning, config.selector) == (0.7, "soft", "mlp")
    assert config.is_binary


@pytest.mark.parametrize(("queries", "labels", "binary"), [(1, 2, True), (5, 2, False), (5, 3, False)])
def test_binary_means_one_query_for_one_foreground_class(tiny_config, queries, labels, binary):
    assert tiny_config(num_queries=queries, num_labels=labels).is_binary == binary


@pytest.mark.parametrize(
    ("rates", "stages", "expanded"),
    [(0.5, 3, (0.5, 0.5, 0.5)), (None, 2, (1.0, 1.0)), ([0.5, 1], 2, (0.5, 1.0)), (0.5, 0, ()), ([], 0, ())],
)
def test_one_rate_holds_for_every_stage(rates, stages, expanded):
    assert expand_keep_rates(rates, stages) == expanded


def test_routing_windows_need_three_layers():
    with pytest.raises(ValueError, match="`num_hidden_layers` is 2"):
        routing_window_range(2)
    assert [routing_window_range(depth) for depth in (3, 4, 5, 6, 12, 24)] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (2, 3),
        (2, 6),
        (2, 12),
    ]


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


def test_what_trainer_adds_is_no_unknown_field(caplog):
    """`Trainer` writes `use_cache`, which is for text, into every configuration."""
    Reg4PruConfig.from_dict({**Reg4PruConfig().to_dict(), "use_cache": False})
    assert "use_cache" not in caplog.text
    Reg4PruConfig.from_dict({**Reg4PruConfig().to_dict(), "use_cash": False})
    assert "use_cash" in caplog.text
