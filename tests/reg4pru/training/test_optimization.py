"""Layer-wise decay, the two warm-ups and the weight average, against plain numbers."""

import pytest
import torch

from reg4pru.training.arguments import OptimizerArguments
from reg4pru.training.optimization import (
    fit_warmups,
    learning_rate_factor,
    make_average,
    make_optimizer,
    parameter_groups,
)
from reg4pru.training.run_record import used_settings

# 6 layers: the embeddings are level 0, the layers 1 to 6, everything else, the backbone's last norm included, level 7.
LEVELS = [
    ("embeddings.", 7),
    ("layers.0.", 6),
    ("layers.3.", 3),
    ("layers.5.", 1),
    ("layernorm.", 0),
    ("query.", 0),
    ("mask_head.", 0),
]


@pytest.fixture
def rates(tiny_model):
    """(learning rate, weight decay, is_backbone) of every parameter by its name."""
    model = tiny_model()
    groups = parameter_groups(model, learning_rate=0.1, weight_decay=0.05, layer_decay=0.5)
    of = {}
    for group in groups:
        for parameter in group["params"]:
            assert id(parameter) not in of
            of[id(parameter)] = (group["lr"], group["weight_decay"], group["is_backbone"])
    named = dict(model.named_parameters())
    assert len(of) == len(named)
    return {name: (*of[id(parameter)], parameter.ndim) for name, parameter in named.items()}


def test_selectors_may_have_a_learning_rate_of_their_own(tiny_model):
    model = tiny_model()
    rates = {"learning_rate": 0.1, "weight_decay": 0.05, "layer_decay": 0.5}
    groups = parameter_groups(model, **rates, selector_learning_rate=0.7)
    own = [parameter for group in groups if group["lr"] == 0.7 for parameter in group["params"]]
    assert {id(parameter) for parameter in own} == {id(parameter) for parameter in model.selectors.parameters()}
    rest = [(group["lr"], len(group["params"])) for group in groups if group["lr"] != 0.7]
    of_all = parameter_groups(model, **rates)
    assert sum(count for _, count in rest) == sum(len(group["params"]) for group in of_all) - len(own)
    assert {rate for rate, _ in rest} == {group["lr"] for group in of_all}


@pytest.mark.parametrize(("prefix", "layers_above"), LEVELS)
def test_the_learning_rate_falls_layer_by_layer(rates, prefix, layers_above):
    found = {rate for name, (rate, *_) in rates.items() if name.startswith(prefix)}
    assert list(found) == pytest.approx([0.1 * 0.5**layers_above])


def test_only_matrices_decay(rates):
    assert {ndim > 1 for *_, ndim in rates.values()} == {True, False}
    assert all(decay == (0.05 if ndim > 1 else 0.0) for _, decay, _, ndim in rates.values())


def test_backbone_is_what_a_vit_has(rates):
    backbone = {name.split(".")[0] for name, (_, _, is_backbone, _) in rates.items() if is_backbone}
    assert backbone == {"embeddings", "layers", "layernorm"}
    heads = {name.split(".")[0] for name, (_, _, is_backbone, _) in rates.items() if not is_backbone}
    assert {"query", "mask_head"} <= heads
    assert not heads & backbone


def factor(step, is_backbone):
    return learning_rate_factor(
        step, is_backbone=is_backbone, head_warmup=200, backbone_warmup=400, total=1600, power=0.9
    )


@pytest.mark.parametrize(
    ("step", "head", "backbone"),
    [
        (0, 1 / 200, 0.0),
        (99, 0.5, 0.0),
        (199, 1.0, 0.0),  # the head is warm, the backbone still waits
        (200, 1.0, 1 / 400),
        (399, (1 - 199 / 1400) ** 0.9, 0.5),
        (599, (1 - 399 / 1400) ** 0.9, 1.0),
        (600, (1 - 400 / 1400) ** 0.9, 1.0),
        (1100, (1 - 900 / 1400) ** 0.9, 0.5**0.9),
        (1600, 0.0, 0.0),
        (1700, 0.0, 0.0),
    ],
)
def test_warmups_and_decay(step, head, backbone):
    assert factor(step, is_backbone=False) == pytest.approx(head)
    assert factor(step, is_backbone=True) == pytest.approx(backbone)


def test_without_warmups_the_first_step_has_the_peak():
    for is_backbone in (False, True):
        plain = {"is_backbone": is_backbone, "head_warmup": 0, "backbone_warmup": 0, "total": 10, "power": 1.0}
        assert [learning_rate_factor(step, **plain) for step in (0, 4, 9)] == pytest.approx([1.0, 0.6, 0.1])


def test_the_optimiser_follows_its_schedule(tiny_model):
    model = tiny_model()
    arguments = OptimizerArguments(layer_decay=0.5, head_warmup_steps=2, backbone_warmup_steps=2, poly_power=1.0)
    optimizer, scheduler = make_optimizer(model, arguments, learning_rate=0.1, weight_decay=0.05, total_steps=8)
    seen = {True: [], False: []}
    for _ in range(8):
        for is_backbone in (True, False):
            seen[is_backbone].append(max(g["lr"] for g in optimizer.param_groups if g["is_backbone"] is is_backbone))
        optimizer.step()
        scheduler.step()
    assert seen[False] == pytest.approx([0.05, 0.1, 0.1, 0.1 * 5 / 6, 0.1 * 4 / 6, 0.05, 0.1 * 2 / 6, 0.1 / 6])
    assert seen[True] == pytest.approx([0, 0, 0.05, 0.1, 0.1, 0.075, 0.05, 0.025])


@torch.no_grad()
def test_the_average_is_the_plain_one_with_a_decay_that_grows():
    model = torch.nn.Linear(3, 2).double()
    average = make_average(model, decay=0.3)
    expected, decays = None, []
    for updates in range(6):
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
        average.update_parameters(model)
        weights = torch.cat([parameter.flatten() for parameter in model.parameters()])
        if expected is None:
            expected = weights  # the first update forgets the initial weights
        else:
            decays.append(min(0.3, (1 + updates) / (10 + updates)))
            expected = decays[-1] * expected + (1 - decays[-1]) * weights
        averaged = torch.cat([parameter.flatten() for parameter in average.module.parameters()])
        torch.testing.assert_close(averaged, expected)
    assert decays == pytest.approx([2 / 11, 3 / 12, 0.3, 0.3, 0.3])


def test_warmups_longer_than_the_run_are_shortened_and_it_is_said(caplog, tiny_model):
    assert fit_warmups(200, 400, 600) == (200, 400)
    assert fit_warmups(200, 400, 150) == (25, 50)
    asked = {"head_warmup_steps": 200, "backbone_warmup_steps": 400}
    for total_steps, used in ((600, {}), (150, {"head_warmup_steps": 25, "backbone_warmup_steps": 50})):
        assert not caplog.text
        make_optimizer(
            tiny_model(), OptimizerArguments(**asked), learning_rate=0.1, weight_decay=0.0, total_steps=total_steps
        )
        assert used_settings(asked, total_steps) == used
    assert "200 (--head_warmup_steps) and 400 (--backbone_warmup_steps)" in caplog.text
    assert "a run of 150 steps: shortened to 25 and 50" in caplog.text
    assert fit_warmups(1, 1, 1) == (0, 0)


def test_the_backbone_learns_in_a_run_shorter_than_the_warmups(tiny_model):
    arguments = OptimizerArguments(layer_decay=1.0, head_warmup_steps=200, backbone_warmup_steps=400)
    optimizer, scheduler = make_optimizer(
        tiny_model(), arguments, learning_rate=1e-3, weight_decay=0.0, total_steps=12
    )
    highest = 0.0
    for _ in range(12):
        highest = max(highest, *(group["lr"] for group in optimizer.param_groups if group["is_backbone"]))
        optimizer.step()
        scheduler.step()
    assert highest == pytest.approx(1e-3)
