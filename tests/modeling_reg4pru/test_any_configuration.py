"""Configurations, images and keep rates of any kind: a right answer or our own sentence, whatever comes."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation

pytestmark = pytest.mark.usefixtures("bounded_memory")

FEW = settings(max_examples=40, derandomize=True, deadline=None, database=None)
MANY = settings(max_examples=600, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def mostly(sensible: st.SearchStrategy, anything: st.SearchStrategy) -> st.SearchStrategy:
    """Of twenty fields one should be wrong, not all."""
    return st.integers(0, 19).flatmap(lambda draw: anything if draw == 19 else sensible)


def whole(low: int, high: int) -> st.SearchStrategy[int]:
    return mostly(st.integers(low, high), st.integers(-2, 20))


def choice(sensible: list, anything: list) -> st.SearchStrategy:
    return mostly(st.sampled_from(sensible), st.sampled_from(anything))


RATES = mostly(
    st.one_of(st.none(), st.floats(0.05, 1.0)),
    st.one_of(
        st.floats(),
        st.lists(st.floats(0.05, 1.0), max_size=4),
        st.sampled_from(["0.5", "", [True], [0.5, "0.5"], {}, object(), 1, 0, -1]),
    ),
)

CONFIGURATIONS = st.fixed_dictionaries(
    {
        "hidden_size": choice([16, 32], [12, 0, -16, 17]),
        "num_attention_heads": choice([1, 2, 4], [3, 0, -1]),
        "num_hidden_layers": whole(5, 6),
        "intermediate_size": choice([16, 32], [0, -1]),
        "image_size": choice([32, 40, [32, 48]], [3, 33, 0, [], [32], "32"]),
        "patch_size": choice([8, 16], [4, 0, -8, 7]),
        "num_upscale_blocks": st.just(1),
        "train_num_points": st.just(16),
    },
    optional={
        "num_register_tokens": whole(0, 4),
        "num_blocks": whole(1, 3),
        "num_queries": whole(2, 4),
        "num_labels": whole(2, 3),
        "pruning_layers": mostly(
            st.sampled_from([None, [], [0], [0, 1], [1, 2]]), st.lists(st.integers(-1, 5), max_size=3)
        ),
        "keep_rates": RATES,
        "selector": choice(
            ["mlp", "foreground_mlp", "divergence", "learned_query", "divergence_query", "random"], ["none", ""]
        ),
        "train_pruning": choice(["none", "hard"], ["soft", "never"]),
        "selection_pool": choice(["active", "all"], [""]),
        "reactivation_layer": whole(3, 4),
        "drift_correction": st.booleans(),
        "context_grid": whole(0, 2),
        "routing": st.booleans(),
        "routing_keep_rate": mostly(st.floats(0.1, 1.0), st.floats()),
        "routing_window": mostly(st.sampled_from([None, [0, 2], [1, 3]]), st.lists(st.integers(-1, 6), max_size=3)),
        "routing_probability": mostly(st.floats(0.0, 1.0), st.floats()),
        "token_multiple": whole(1, 16),
        "masked_attention": st.booleans(),
        "positions": choice(["rotary", "learned"], ["absolute"]),
        "use_gated_mlp": st.booleans(),
    },
)
OURS = (ValueError, StrictDataclassError)


def names(error: Exception, *one_of: str) -> bool:
    """What our sentences name; no model was made, so this is `False`."""
    assert any(name in str(error) for name in one_of), repr(error)
    return False


def check_model(fields: dict, rates: object, height: int, width: int) -> bool:
    """Whether the model was made; if so, it trains, prunes and counts its tokens rightly."""
    try:
        config = Reg4PruConfig(**fields)
    except OURS as error:
        return names(error, "`", "field")
    torch.manual_seed(0)
    model = Reg4PruForSemanticSegmentation(config).eval()
    images = torch.randn(2, 3, height, width)
    try:
        with torch.no_grad():
            output = model(images, keep_rates=rates)
    except ValueError as error:
        return names(error, "`keep_rates`", "`pixel_values`", "`context_grid`")
    rows, columns = height // config.patch_size, width // config.patch_size
    assert output.logits.shape[:2] == (2, config.num_labels)
    assert output.logits.isfinite().all()
    # (batch, labels, ...): one step of upscaling doubles the grid
    assert output.logits.shape[2:] == (2 * rows, 2 * columns)
    counts = output.token_counts.tolist()
    queries = config.num_queries * (config.first_query_layer == 0)
    assert counts[0] == config.num_prefix_tokens + rows * columns + queries
    assert min(counts) > config.num_prefix_tokens
    labels = torch.randint(0, config.num_labels, (2, height, width))
    try:
        loss = model.train()(images, labels=labels).loss
    except ValueError as error:
        return names(error, "`selector=")
    assert loss.isfinite()
    loss.backward()
    return True


CASE = (CONFIGURATIONS, RATES, st.sampled_from([32, 48, 16, 8, 33]), st.sampled_from([32, 40, 8]))


@FEW
@given(*CASE)
def test_some_configurations(fields, rates, height, width):
    check_model(fields, rates, height, width)


@pytest.mark.slow
def test_many_configurations():
    made = []

    @MANY
    @given(*CASE)
    def check(fields, rates, height, width):
        made.append(check_model(fields, rates, height, width))

    check()
    assert len(made) >= 600
    assert sum(made) > 50  # not refused for anything
