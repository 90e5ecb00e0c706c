"""Training: every combination of selector, pruning and routing."""

import pytest
import torch

from modeling_reg4pru.token_pruning import TokenPruning
from modeling_reg4pru.token_selectors import stage_counts

from ..variants import VARIANTS, give_corrections_weights

WINDOW = {"routing_window": [1, 3]}  # layers 2 and 3 run on half of the tokens
KEPT = [43, 35, 18]  # of 64, after the stages 0, 2 and 3, at the default keep rate; the query is there from layer 4 on


@pytest.fixture(params=sorted(VARIANTS.keys() - {"half_routed"}))  # whose steps are those of one of two others
def variant(request):
    return VARIANTS[request.param]


def training_step(model, pixel_values, labels=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    model.train()
    model.zero_grad()
    outputs = model(pixel_values, labels=labels, **kwargs)
    if labels is not None:
        outputs.loss.backward()
    return outputs


def with_special_tokens(counts, variant):
    """The prefix in all layers, and context tokens from the first stage, layer 0, to the reactivation, layer 4."""
    context = variant.get("context_grid", 0) ** 2
    return [5 + count + (context if 0 < layer < 5 else 0) for layer, count in enumerate(counts)]


@pytest.mark.parametrize("pool", ["active", "all"])
def test_token_counts_in_training(tiny_model, pixel_values, variant, pool):
    model = tiny_model(**variant, **WINDOW, selection_pool=pool)
    counts = training_step(model, pixel_values, output_keep_masks=True).token_counts.tolist()
    hard, routing = variant["train_pruning"] == "hard", variant["routing"]
    after_stage = KEPT if hard else [64] * 3
    window = [19 if hard else 35] * 2  # half of the tokens, rounded like the stages: 24 and 40 with the prefix
    wanted = [64, after_stage[0], *(window if routing else (after_stage[0], after_stage[1])), after_stage[2] + 1, 65]
    assert stage_counts(model.config, (0.7,) * 3, 64) == KEPT
    assert counts == with_special_tokens(wanted, variant)


def test_all_variants_prune_alike_at_inference(tiny_model, pixel_values, variant):
    model = tiny_model(**variant)
    with torch.no_grad():
        counts = model(pixel_values).token_counts.tolist()
    assert counts == with_special_tokens((64, KEPT[0], KEPT[0], KEPT[1], KEPT[2] + 1, 65), variant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pool", ["active", "all"])
def test_no_nan_at_keep_rate_a_tenth(tiny_model, pixel_values, labels, variant, pool, dtype):
    model = tiny_model(**variant, selection_pool=pool, keep_rates=0.1).to(dtype)
    outputs = training_step(model, pixel_values, labels)
    assert outputs.loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_bfloat16_autocast(tiny_model, pixel_values, labels, variant):
    model = tiny_model(**variant)
    exact = training_step(model, pixel_values, labels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = training_step(model, pixel_values, labels)
    assert outputs.loss.dtype == torch.float32
    assert outputs.loss.item() == pytest.approx(exact.item(), rel=0.1)
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_every_parameter_learns(tiny_model, pixel_values, labels, variant):
    model = tiny_model(**variant, keep_rates=0.5)
    give_corrections_weights(model)
    training_step(model, pixel_values, labels)
    still = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    selectors = {name for name, _ in model.selectors.named_parameters(prefix="selectors")}
    selector = variant.get("selector", "mlp")
    if selector == "divergence" or (selector == "mlp" and variant["train_pruning"] == "none"):
        assert still == selectors  # nothing tells them what to learn; divergence does by distillation only
    else:
        assert still == set()


def test_a_seed_repeats_a_training_step(tiny_model, pixel_values, labels, variant):
    model = tiny_model(**variant, keep_rates=0.5)
    losses = [training_step(model, pixel_values, labels, seed).loss.item() for seed in (3, 3)]
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    losses.append(training_step(model, pixel_values, labels, 3).loss.item())
    again = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(set(losses)) == 1
    assert all(torch.equal(*pair) for pair in zip(gradients, again, strict=True))
    assert (
        training_step(model, pixel_values, labels, 4).loss.item() != losses[0]
    )  # positions are augmented in all variants


@pytest.mark.parametrize("variant_name", ["soft", "reg4pru", "hard"])
def test_selectors_learn_from_the_segmentation_too(tiny_model, pixel_values, labels, variant_name):
    model = tiny_model(**VARIANTS[variant_name], budget_loss_weight=0)
    outputs = training_step(model, pixel_values, labels)
    assert outputs.loss_parts["loss_budget"].item() == 0
    assert all(weight.grad.abs().sum() > 0 for weight in model.selectors.parameters())


@pytest.mark.parametrize("variant_name", ["learned_query", "foreground_mlp"])
def test_foreground_selectors_learn_from_their_own_loss_only(tiny_model, pixel_values, labels, variant_name):
    model = tiny_model(**VARIANTS[variant_name], selector_loss_weight=0)
    training_step(model, pixel_values, labels)
    assert all(not weight.grad.any() for weight in model.selectors.parameters())


@pytest.mark.parametrize("variant_name", ["learned_query", "foreground_mlp"])
def test_foreground_loss_does_not_reach_the_backbone(tiny_model, pixel_values, labels, variant_name):
    gradients = []
    for weight in (0.0, 100.0):
        model = tiny_model(**VARIANTS[variant_name], selector_loss_weight=weight)
        training_step(model, pixel_values, labels)
        gradients.append(model.embeddings.patch_embeddings.weight.grad)
    torch.testing.assert_close(*gradients, atol=0, rtol=0)


def recorded_policies(model, pixel_values, seed=0):
    """The policy that each layer received, and the states around it."""
    seen = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[3])) for layer in model.layers]
    outputs = training_step(model, pixel_values, seed=seed, output_keep_masks=True)
    for hook in hooks:
        hook.remove()
    return seen, outputs


@pytest.mark.parametrize("pool", ["active", "all"])
def test_gumbel_top_k_gates_the_layer_of_its_stage(tiny_model, pixel_values, pool):
    """There, and only there, dropped tokens are still in the sequence: as many have policy 1 as go on."""
    model = tiny_model(**VARIANTS["hard"], selection_pool=pool, pruning_layers=[1, 2], reactivation_layer=4)
    policies, outputs = recorded_policies(model, pixel_values)
    assert [policy is None for policy in policies] == [True, False, False, True, True, True]
    masks = outputs.keep_masks.flatten(2)
    assert torch.equal(policies[1][:, 5:] > 0.5, masks[:, 0])
    if pool == "active":
        assert ((policies[2][:, 5:] > 0.5).sum(1) == masks[:, 1].sum(1)).all()
    assert policies[2].shape[1] == 5 + masks[0, 0].sum()


@pytest.mark.parametrize("pool", ["active", "all"])
@pytest.mark.parametrize("variant_name", ["soft", "reg4pru"])
def test_the_policy_of_each_layer(tiny_model, pixel_values, variant_name, pool):
    model = tiny_model(
        **VARIANTS[variant_name], **WINDOW, selection_pool=pool, pruning_layers=[1, 2], reactivation_layer=4
    )
    policies, outputs = recorded_policies(model, pixel_values)
    assert policies[0] is None
    routed = variant_name == "reg4pru"
    # To the last layer: in training nothing is removed, hence nothing is reactivated.
    assert [policy.shape[1] for policy in policies[1:]] == [69, *((40, 40) if routed else (69, 69)), 70, 70]
    for index, policy in enumerate(policies[1:], start=1):
        special = 5 + (index >= 4)
        assert torch.equal(policy[:, :special], torch.ones(3, special))
        assert set(policy.unique().tolist()) == {0.0, 1.0}
    masks = outputs.keep_masks.flatten(2)
    assert torch.equal(policies[1][:, 5:] > 0.5, masks[:, 0])
    assert torch.equal(policies[4][:, 6:] > 0.5, masks[:, 1])
    assert torch.equal(policies[5], policies[4])
    assert bool((masks[:, 1] & ~masks[:, 0]).any()) == (pool == "all")


def test_policy_follows_the_tokens_of_a_routing_window(tiny_model, pixel_values):
    model = tiny_model(**VARIANTS["reg4pru"], routing_window=[0, 2], pruning_layers=[0], reactivation_layer=4).train()
    tokens = TokenPruning(model, (8, 8), 0.7)
    tokens.begin(torch.randn(2, 69, 32), rope=None)
    states = tokens.before(0, torch.randn(2, 69, 32))
    policy = tokens.policy
    assert set(policy.unique().tolist()) == {0.0, 1.0}
    tokens.before(1, tokens.after(0, states))
    assert tokens.policy.shape == (2, 40)
    for image in range(2):
        wanted = [1.0] * 5 + [policy[image, 5 + token].item() for token in tokens.bank.routed_ids[image]]
        assert tokens.policy[image].tolist() == wanted


@pytest.mark.parametrize("pool", ["active", "all"])
@pytest.mark.parametrize("variant_name", ["soft", "reg4pru", "hard"])
def test_budget_loss_of_the_model(tiny_model, pixel_values, labels, variant_name, pool):
    model = tiny_model(**VARIANTS[variant_name], selection_pool=pool)
    sampled = []
    for selector in model.selectors:
        sample = selector.sample
        selector.sample = lambda states, sample=sample: sampled.append(sample(states)) or sampled[-1]
    outputs = training_step(model, pixel_values, labels)
    expected, nested = 0.0, torch.ones(3, 64)
    for stage, probability in enumerate(sampled):
        policy = (probability >= 0.5).float()
        if variant_name != "hard" and pool == "active":
            policy = nested = nested * policy
        expected += sum((image.sum().item() / 64 - 0.7 ** (stage + 1)) ** 2 for image in policy) / 3 / 3
    assert outputs.budget_loss.item() == pytest.approx(expected, rel=1e-5)
    assert outputs.loss_parts["loss_budget"].item() == pytest.approx(4 * expected, rel=1e-5)


def test_the_loss_is_the_sum_of_its_parts(tiny_model, pixel_values, labels, variant):
    outputs = training_step(tiny_model(**variant), pixel_values, labels)
    assert outputs.loss.item() == pytest.approx(sum(part.item() for part in outputs.loss_parts.values()), rel=1e-6)
    own_losses = {"mlp": "loss_budget", "learned_query": "loss_selector", "foreground_mlp": "loss_selector"}
    own = own_losses.get(variant.get("selector", "mlp"))
    learns = own == "loss_selector" or (own == "loss_budget" and variant["train_pruning"] != "none")
    assert set(outputs.loss_parts) == {"loss_mask", "loss_dice"} | ({own} if learns else set())


def test_the_budget_is_learned(tiny_model, pixel_values):
    """A few steps on the budget alone bring the realised keep fraction to the wanted one."""
    model = tiny_model(routing=False, pruning_layers=[2], keep_rates=0.25).train()
    optimizer = torch.optim.Adam(model.selectors.parameters(), lr=0.01)
    for _ in range(60):
        loss = model(pixel_values).budget_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fractions = [model(pixel_values, output_keep_masks=True).keep_masks.float().mean().item() for _ in range(10)]
    assert sum(fractions) / 10 == pytest.approx(0.25, abs=0.06)


def test_no_keep_rates_give_a_dense_training_step(tiny_model, pixel_values, labels):
    """Without keep rates a training step is that of a dense model: same loss, same gradients, selectors idle."""
    model, dense = tiny_model(**VARIANTS["reg4pru"]), tiny_model(**VARIANTS["dense"])
    loss = training_step(dense, pixel_values, labels).loss.item()
    assert training_step(model, pixel_values, labels, keep_rates=None).loss.item() == loss
    for (name, one), (_, other) in zip(model.named_parameters(), dense.named_parameters(), strict=True):
        assert (one.grad is None and "selectors" in name) or torch.equal(one.grad, other.grad), name
    assert training_step(model, pixel_values, labels).loss.item() != loss, "that was one step"
    model.set_keep_rates(None)
    assert training_step(model, pixel_values, labels).loss.item() == loss


@pytest.mark.parametrize(
    ("masked", "progress", "warned"), [(True, None, 1), (True, 0.3, 0), (False, None, 0)], ids=str
)
def test_masked_attention_that_is_never_annealed_is_told_of(
    tiny_model, pixel_values, labels, caplog, masked, progress, warned
):
    model = tiny_model(masked_attention=masked)
    assert not caplog.text, "loading trains nothing"
    for _ in range(2):  # said once
        if progress is not None:
            model.set_mask_annealing(progress)
        model.train()(pixel_values, labels=labels)
        model.eval()
    assert caplog.text.count("call `set_mask_annealing` before every training step") == warned
