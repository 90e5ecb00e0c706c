"""What pruned tokens come back with. The forward pass with it stands in test_pruned_inference, beside that without."""

import logging

import pytest
import torch

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.token_bank import TokenBank
from reg4pru.training.distillation import distilled_loss, drift_loss

from ..variants import VARIANTS, give_corrections_weights

CORRECTED = VARIANTS["corrected"]
RATES = [0.7, 0.6, 0.5]


@torch.no_grad()
def test_corrections_begin_as_zero(tiny_model, pixel_values):
    model, plain = tiny_model(**CORRECTED), tiny_model(train_pruning="hard", routing=False)
    report = model.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[0] for name in report.missing_keys} == {"drift_corrections"}
    assert torch.equal(model(pixel_values, keep_rates=RATES).logits, plain(pixel_values, keep_rates=RATES).logits)


@torch.no_grad()
def test_corrections_change_nothing_where_nothing_is_pruned(tiny_model, pixel_values):
    model = tiny_model(**CORRECTED)
    before, pruned = (model(pixel_values, keep_rates=rates).logits for rates in (1.0, RATES))
    give_corrections_weights(model)
    assert torch.equal(model(pixel_values, keep_rates=1.0).logits, before)
    assert not torch.allclose(model(pixel_values, keep_rates=RATES).logits, pruned, atol=1e-3)


def prune_all_listed(bank, kept_ids, changes):
    """As where tokens can come back: every active token has its change."""
    kept_ids = torch.tensor(kept_ids)
    bank.prune(kept_ids, bank.leaving_ids(kept_ids, nested=False), changes)


def test_leaving_tokens_are_active_and_not_kept():
    bank = TokenBank(torch.randn(3, 20, 4))
    kept = torch.stack([torch.randperm(20)[:12] for _ in range(3)])
    for count in (7, 3):
        active = bank.list_ids()
        leaving = bank.leaving_ids(kept, nested=True)
        assert leaving.shape == (3, active.shape[1] - kept.shape[1])
        for image in range(3):
            assert set(leaving[image].tolist()) == set(active[image].tolist()) - set(kept[image].tolist())
        assert torch.equal(bank.leaving_ids(kept, nested=False), active)
        bank.prune(kept)
        kept = torch.stack([ids[torch.randperm(len(ids))[:count]] for ids in kept])


def test_tokens_come_back_corrected_by_the_stage_that_pruned_them():
    bank = TokenBank(torch.arange(6.0).reshape(1, 6, 1))
    bank.prune(torch.tensor([[4, 1, 3, 0]]), torch.tensor([[5, 2]]), torch.tensor([[[10.0], [11.0]]]))
    bank.write(bank.read() + 0.5)
    bank.prune(torch.tensor([[0, 3]]), torch.tensor([[1, 4]]), torch.full((1, 2, 1), 20.0))
    bank.write(bank.read() + 0.25)
    bank.reactivate()
    assert bank.read().flatten().tolist() == [0.75, 21.5, 13.0, 3.75, 24.5, 15.0]


def test_tokens_of_the_pool_come_back_uncorrected_and_can_be_pruned_again():
    bank = TokenBank(torch.tensor([[[0.0], [1.0], [2.0]]]))
    prune_all_listed(bank, [[0]], torch.full((1, 3, 1), 10.0))
    prune_all_listed(bank, [[0, 2]], torch.full((1, 1, 1), 20.0))
    assert bank.read().flatten().tolist() == [0.0, 2.0], "what is added comes with the reactivation only"
    prune_all_listed(bank, [[2]], torch.tensor([[[30.0], [31.0]]]))
    bank.reactivate()
    assert bank.read().flatten().tolist() == [30.0, 11.0, 2.0]


def test_tokens_held_by_a_routing_window_are_not_corrected():
    bank = TokenBank(torch.zeros(1, 3, 1))
    prune_all_listed(bank, [[0, 1]], torch.full((1, 3, 1), 10.0))
    bank.routed_ids = torch.tensor([[0]])
    prune_all_listed(bank, [[0]], torch.full((1, 1, 1), 20.0))  # 1 leaves while it waits
    bank.reactivate()
    bank.rejoin()
    assert bank.read().flatten().tolist() == [0.0, 0.0, 10.0]


def test_drift_loss_is_the_unexplained_share_of_the_variance():
    bank, target = TokenBank(torch.randn(2, 9, 4)), torch.randn(2, 9, 4)
    states, changes, kept = bank.states, torch.randn(2, 9, 4), torch.tensor([[0, 5, 2], [8, 1, 4]])
    bank.prune(kept, bank.list_ids(), changes)
    errors = [
        (states[image, token] + changes[image, token] - target[image, token]).square().mean().item()
        for image in range(2)
        for token in set(range(9)) - set(kept[image].tolist())
    ]
    variances = [target[..., channel].var(correction=0).item() for channel in range(4)]
    expected = (sum(errors) / len(errors)) / (sum(variances) / len(variances))
    assert drift_loss(*bank.reactivated(), target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize("pool", ["active", "all"])
def test_only_corrections_learn_from_the_drift_loss(tiny_model, pixel_values, labels, routing, pool):
    model = tiny_model(**{**CORRECTED, "routing": routing, "selection_pool": pool}).train()
    give_corrections_weights(model)
    dense_states = torch.randn(3, 70, 32, requires_grad=True)  # query, 5 of the prefix, 64 patches
    outputs = model(pixel_values, labels=labels, keep_rates=RATES)
    drift_loss(*outputs.reactivated, dense_states).backward()
    learned = {name.split(".")[0] for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}
    assert learned == {"drift_corrections"}
    assert dense_states.grad is None
    assert all(one.grad.any() for one in model.drift_corrections.parameters())


def test_corrections_learn_from_the_task_and_do_not_change_gradients_of_the_backbone(tiny_model, pixel_values, labels):
    gradients = []
    for variant in (CORRECTED, {**CORRECTED, "drift_correction": False}):
        model = tiny_model(**variant)
        model.load_state_dict(tiny_model(**CORRECTED).state_dict(), strict=False)
        torch.manual_seed(0)
        model.train()(pixel_values, labels=labels, keep_rates=RATES).loss.backward()
        gradients.append({name: one.grad for name, one in model.named_parameters()})
    with_it, without = gradients
    assert all(grad.any() for name, grad in with_it.items() if "drift_corrections" in name and "fc2" in name)
    for name, gradient in without.items():  # the corrections are still zero
        torch.testing.assert_close(with_it[name], gradient)


def test_distillation_reduces_the_drift(tiny_model, pixel_values, labels):
    model = tiny_model(**CORRECTED, selector_temperature=1.0).train()
    optimizer = torch.optim.Adam(model.drift_corrections.parameters(), lr=0.03)
    losses = []
    batch = {"pixel_values": pixel_values, "labels": labels}
    for _ in range(60):
        torch.manual_seed(0)
        loss, parts = distilled_loss(model, model.config, batch, RATES)
        losses.append(parts["loss_drift"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_the_target_is_the_dense_state_after_the_reactivation_layer(tiny_model, pixel_values, labels):
    model, batch = tiny_model(**CORRECTED, masked_attention=False).train(), {"pixel_values": pixel_values}
    outputs, returned = [], []
    model.register_forward_hook(lambda *seen: returned.append(seen[2]))
    model.layers[model.config.reactivation_layer].register_forward_hook(lambda *seen: outputs.append(seen[2]))
    _, parts = distilled_loss(model, model.config, {**batch, "labels": labels}, RATES)
    assert returned[0].reactivated is None, "the first of the two passes is the dense one"
    assert parts["loss_drift"].item() == drift_loss(*returned[1].reactivated, outputs[0]).item()


def test_reactivated_states_are_returned_in_training_only(tiny_model, pixel_values):
    """In the grid, at the places of the pruned tokens; there it is what the layers after the reactivation see."""
    model = tiny_model(**CORRECTED, reactivation_layer=4)
    give_corrections_weights(model)
    assert model(pixel_values, keep_rates=RATES).reactivated is None
    seen = []
    model.layers[5].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 6:]))
    outputs = model.train()(pixel_values, keep_rates=RATES, output_keep_masks=True)
    states, pruned = outputs.reactivated
    assert torch.equal(pruned, ~outputs.keep_masks[:, -1].flatten(1))
    torch.testing.assert_close(states[pruned], seen[0][pruned])


@torch.no_grad()
def test_a_checkpoint_without_corrections_gives_a_warning(tiny_model, pixel_values, tmp_path, caplog):
    plain = tiny_model(train_pruning="hard", routing=False)
    plain.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = Reg4PruForSemanticSegmentation.from_pretrained(tmp_path, drift_correction=True).eval()
    assert "has no trained drift corrections: pruned tokens come back unchanged" in caplog.text
    assert torch.equal(model(pixel_values, keep_rates=0.5).logits, plain(pixel_values, keep_rates=0.5).logits)
