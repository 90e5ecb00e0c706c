"""In-place distillation: who teaches whom, and that several processes learn what one would."""

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from reg4pru import train
from reg4pru.training.distillation import distilled_loss, prediction_divergence

from ...variants import VARIANTS, give_corrections_weights

VARIANT = {"selector": "learned_query", "train_pruning": "hard", "routing": False, "masked_attention": False,
       "pos_embed_rescale": None}  # fmt: skip
CORRECTED = {**VARIANT, **VARIANTS["default"]}
DIVERGENCE = {**VARIANT, **VARIANTS["divergence"]}


@pytest.fixture
def batch(pixel_values, labels):
    return {"pixel_values": pixel_values, "labels": labels}


def test_divergence_is_zero_where_both_agree_and_teaches_the_student_only():
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    shifted = student + 5  # another offset is the same prediction
    assert prediction_divergence(student, shifted).item() == pytest.approx(0, abs=1e-6)
    divergence = prediction_divergence(student, teacher)
    expected = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=logits.permute(0, 2, 3, 1)) for logits in (teacher, student))
    )
    assert divergence.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    divergence.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_the_dense_pass_learns_from_labels_and_the_pruned_pass_from_the_dense_one(tiny_model, batch):
    model = tiny_model(**VARIANT).train()
    loss, parts = distilled_loss(model, model.config, batch, (0.5,) * 3)
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()))
    assert parts.keys() == {"loss_mask", "loss_dice", "loss_selector", "loss_distillation"}
    dense = model(**batch, keep_rates=None)
    pruned = model(**batch, keep_rates=(0.5,) * 3)
    assert parts["loss_mask"].item() == dense.loss_parts["loss_mask"].item() != pruned.loss_parts["loss_mask"].item()
    assert parts["loss_selector"].item() == pruned.loss_parts["loss_selector"].item()
    assert parts["loss_distillation"].item() > 0
    # At keep rate 1 both passes are one.
    _, parts = distilled_loss(model, model.config, batch, (1.0,) * 3)
    assert parts["loss_distillation"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("classes", [{}, {"num_labels": 4, "num_queries": 6}], ids=["binary", "four_classes"])
def test_divergence_teaches_selectors_without_labels(tiny_model, batch, classes):
    model = tiny_model(**DIVERGENCE, **classes).train()
    give_corrections_weights(model)
    given = []
    model.criterion.register_forward_pre_hook(lambda _, inputs: given.append(inputs[2]))
    _, parts = distilled_loss(model, model.config, batch, (0.5,) * 3)
    assert len(given) == 1, "the labels are for the dense pass"
    assert parts.keys() - {"loss_cross_entropy"} == {
        "loss_mask",
        "loss_dice",
        "loss_drift",
        "loss_selector",
        "loss_distillation",
    }
    selectors = list(model.selectors.parameters())
    gradients = torch.autograd.grad(parts["loss_selector"], selectors)
    assert all(gradient.any() for gradient in gradients)
    others = torch.autograd.grad(parts["loss_distillation"], selectors, allow_unused=True)
    assert others == (None,) * len(selectors)
    weight = model.config.selector_loss_weight
    model.config.selector_loss_weight = 0.0
    _, without = distilled_loss(model, model.config, batch, (0.5,) * 3)
    assert weight > 0 == without["loss_selector"].item()


def test_steps_close_the_gap_between_pruned_and_dense(tiny_model, batch):
    model = tiny_model(**VARIANT).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    divergences = []
    for _ in range(30):
        loss, parts = distilled_loss(model, model.config, batch, (0.3,) * 3)
        divergences.append(parts["loss_distillation"].item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert divergences[-1] < 0.5 * divergences[0]


def gradients_of_half(rank, config, weights, batch, path):
    """What one of two processes gets for its half of the batch."""
    torch.set_num_threads(1)
    bare = Reg4PruForSemanticSegmentation(config).train()  # one that is pickled records no hidden states
    bare.load_state_dict(weights)
    distributed.init_process_group("gloo", init_method=f"file://{path}/meeting", rank=rank, world_size=2)
    model = DistributedDataParallel(bare, find_unused_parameters=True)
    half = {name: values[2 * rank : 2 * rank + 2] for name, values in batch.items()}
    for _ in range(2):  # DDP tells in the second step that the first did not end
        model.zero_grad()
        distilled_loss(model, config, half, (0.5,) * 3, dense_pass=model.no_sync())[0].backward()
    if rank == 0:
        torch.save({name: value.grad for name, value in bare.named_parameters()}, f"{path}/gradients.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("variant", [VARIANT, CORRECTED, DIVERGENCE], ids=["as_they_left", "corrected", "divergence"])
def test_two_processes_get_the_gradients_of_one(tiny_model, batch, tmp_path, variant):
    model = tiny_model(**variant).train()
    batch = {name: torch.cat((values, values[:1].flip(-1))) for name, values in batch.items()}
    batch["labels"] = batch["labels"].clamp_max(1)  # else halves differ in how many pixels count
    multiprocessing.spawn(gradients_of_half, args=(model.config, model.state_dict(), batch, str(tmp_path)), nprocs=2)
    together = torch.load(tmp_path / "gradients.pt")
    distilled_loss(model, model.config, batch, (0.5,) * 3)[0].backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert together[name] is None, name
        else:
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_divergence_needs_a_dense_pass(tmp_path, capsys):
    overrides = ["--config_overrides", "selector=divergence", "train_pruning=hard", "drift_correction=true",
                 "image_size=64", "num_hidden_layers=4", "routing=false"]  # fmt: skip
    with pytest.raises(SystemExit):
        train.main(["--output_dir", str(tmp_path / "run"), *overrides])
    assert "`selector='divergence'` without `distillation`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_training_that_never_prunes_has_nothing_to_distil(tmp_path, capsys):
    overrides = ["--config_overrides", "train_pruning=none", "routing=false", "image_size=64", "num_hidden_layers=4"]
    with pytest.raises(SystemExit):
        train.main(["--output_dir", str(tmp_path / "run"), "--distillation", *overrides])
    assert "no pass differs from the dense one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
