"""Keep counts, policies, and what the selectors learn from."""

import math

import pytest
import torch
from torch import nn

from modeling_reg4pru.token_selectors import (
    SELECTOR_CLASSES,
    TokenSelector,
    budget_loss,
    cumulative_keep_rates,
    foreground_loss,
    keep_count,
    patch_foreground,
    select_tokens,
    straight_through,
    warmup_keep_rates,
)


@pytest.mark.parametrize("multiple", [1, 4, 8, 16])
@pytest.mark.parametrize("prefix", [1, 5, 8])
@pytest.mark.parametrize("patches", [1, 3, 10, 64, 100, 1024, 4096])
def test_keep_counts(patches, prefix, multiple):
    counts = [keep_count(rate / 200, patches, prefix, multiple) for rate in range(1, 201)]
    assert counts == sorted(counts)
    assert counts[-1] == patches
    for rate, count in zip(range(1, 201), counts, strict=True):
        assert 1 <= count <= patches
        assert count == patches or (prefix + count) % multiple == 0
        # the nearest multiple, unless there is none that keeps a token or not more than all
        wanted = rate / 200 * patches
        assert abs(count - wanted) < (multiple / 2 if wanted >= multiple else multiple) + 1e-6


def test_keep_counts_of_the_default_model():
    assert [keep_count(0.7**stage, 4096, 5, 8) for stage in (1, 2, 3)] == [2867, 2011, 1403]


def test_keep_rates_compound():
    assert cumulative_keep_rates((0.5, 1.0, 0.2)) == pytest.approx((0.5, 0.5, 0.1))
    assert cumulative_keep_rates(()) == ()


@pytest.mark.parametrize("rates", [(0.7, 0.7, 0.7), (0.5, 1.0, 0.2), (1.0,)])
def test_warm_up_is_linear_in_the_cumulative_rates_and_reaches_the_target(rates):
    assert warmup_keep_rates(rates, 0.0) == (1.0,) * len(rates)
    assert warmup_keep_rates(rates, 1.0) == warmup_keep_rates(rates, 7.0) == rates
    for progress in (0.1, 0.5, 0.999):
        halfway = warmup_keep_rates(rates, progress)
        wanted = [1 + progress * (math.prod(rates[: stage + 1]) - 1) for stage in range(len(rates))]
        assert cumulative_keep_rates(halfway) == pytest.approx(wanted)
        assert all(0 < rate <= 1 for rate in halfway)


def test_straight_through_is_hard_forward_and_soft_backward():
    probability = torch.rand(1000).requires_grad_()
    policy = straight_through(probability, probability >= 0.5)
    assert torch.equal(policy, (probability >= 0.5).float())
    slope = torch.randn(1000)
    (policy * slope).sum().backward()
    assert torch.equal(probability.grad, slope)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_the_sampled_policy_follows_the_logits(tiny_config, temperature):
    selector = SELECTOR_CLASSES["mlp"](tiny_config(selector_temperature=temperature))
    nn.init.zeros_(selector.fc3.weight)
    selector.fc3.bias.data = torch.tensor([1.0, 0.0])
    states = torch.randn(4, 5000, 32)
    scores = selector.sample(states)
    assert (scores >= 0.5).float().mean().item() == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.02)
    # a higher temperature softens the probability, not the decision
    assert (scores - 0.5).abs().mean().item() == pytest.approx(
        {0.5: 0.38, 1.0: 0.29, 5.0: 0.09}[temperature], abs=0.02
    )
    assert torch.allclose(selector(states), torch.ones(4, 5000))


def test_half_precision_scores_survive_the_gumbel_noise(tiny_config):
    selector = SELECTOR_CLASSES["mlp"](tiny_config()).bfloat16()
    scores = selector.sample(torch.randn(2, 4000, 32, dtype=torch.bfloat16))
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert scores.unique().numel() > 4000


@pytest.mark.parametrize("name", ["learned_query", "foreground_mlp"])
def test_selectors_that_learn_the_foreground_send_no_gradient_to_the_backbone(tiny_config, name):
    selector = SELECTOR_CLASSES[name](tiny_config())
    states = torch.randn(2, 9, 32, requires_grad=True)
    selector(states).square().sum().backward()
    assert states.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in selector.parameters())


def test_both_mlp_selectors_have_the_same_layers(tiny_config):
    by_policy, by_foreground = (SELECTOR_CLASSES[name](tiny_config()) for name in ("mlp", "foreground_mlp"))
    by_foreground.load_state_dict(by_policy.state_dict())
    states = torch.randn(2, 9, 32)
    assert torch.equal(by_foreground(states), by_policy(states))


def test_random_selector_has_no_parameters_and_new_scores_each_time(tiny_config):
    selector = SELECTOR_CLASSES["random"](tiny_config())
    states = torch.randn(2, 9, 32)
    assert list(selector.parameters()) == []
    assert not torch.equal(selector(states), selector(states))


@pytest.mark.parametrize("in_pool", [False, True])
def test_the_highest_scores_are_selected(in_pool):
    scores = torch.randn(3, 20)
    pool = torch.stack([torch.randperm(50)[:20] for _ in range(3)])
    ids = select_tokens(scores, 6, pool if in_pool else None)
    for image in range(3):
        best = sorted(range(20), key=lambda token: -scores[image, token])[:6]
        assert set(ids[image].tolist()) == {int(pool[image, token]) if in_pool else token for token in best}


def test_budget_loss_is_per_image():
    policy = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    # the average over the batch is on budget, no image is
    assert budget_loss(policy, 4, 0.5).item() == pytest.approx(0.25)
    assert budget_loss(policy[:, :2], 4, 0.5).item() == pytest.approx((0.0**2 + 0.5**2) / 2)
    random = torch.rand(5, 30)
    wanted = sum((float(image.sum()) / 40 - 0.3) ** 2 for image in random) / 5
    assert budget_loss(random, 40, 0.3).item() == pytest.approx(wanted, rel=1e-5)


def test_foreground_loss_weighs_both_classes_equally():
    scores, foreground = torch.randn(2, 50), (torch.rand(2, 50) < 0.1).float()
    assert 0 < foreground.sum() < 100
    inside = [-math.log(1 / (1 + math.exp(-score))) for score in scores[foreground == 1].tolist()]
    outside = [-math.log(1 - 1 / (1 + math.exp(-score))) for score in scores[foreground == 0].tolist()]
    wanted = (sum(inside) / len(inside) + sum(outside) / len(outside)) / 2
    assert foreground_loss(scores, foreground).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_foreground_loss_with_a_single_class_is_finite(value):
    scores = torch.zeros(2, 8, requires_grad=True)
    loss = foreground_loss(scores, torch.full((2, 8), value))
    assert loss.item() == pytest.approx(math.log(2) / 2)
    loss.backward()
    assert scores.grad.isfinite().all()


def test_patch_foreground():
    labels = torch.zeros(1, 8, 12, dtype=torch.long)
    labels[0, 1, 2] = 1  # patch (0, 0)
    labels[0, 7, 11] = 2  # patch (1, 2): any class but background
    labels[0, 0:4, 4:8] = 255  # patch (0, 1) is ignored
    assert patch_foreground(labels, 4, 255).tolist() == [[1, 0, 0, 0, 0, 1]]
    labels[0, 3, 7] = 1
    assert patch_foreground(labels, 4, 255).tolist() == [[1, 1, 0, 0, 0, 1]]


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


class BrightestSelector(TokenSelector):
    """A toy: the mean of a state is its score."""

    def __init__(self, config):
        super().__init__()

    def forward(self, states):
        return states.mean(dim=-1)


def test_a_new_selector_needs_one_class_and_a_name(tiny_model, pixel_values, labels, monkeypatch):
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
