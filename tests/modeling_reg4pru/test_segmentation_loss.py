"""The losses, against plain numbers, against transformers', and with ignored pixels."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers.models.eomt_dinov3.modeling_eomt_dinov3 import EomtDinov3Loss

from modeling_reg4pru.segmentation_loss import BinaryMaskLoss, SetMaskLoss, masked_point_losses

IGNORED = 255


@pytest.fixture
def binary_loss(tiny_config):
    return BinaryMaskLoss(tiny_config(mask_weight=3.0, dice_weight=2.0))


@pytest.fixture
def set_loss(tiny_config):
    return SetMaskLoss(tiny_config(num_queries=5, num_labels=3, train_num_points=400))


@pytest.fixture
def predictions():
    """Mask and class logits of 5 queries in 2 images, and label maps with an ignored left third."""
    labels = torch.randint(0, 3, (2, 4, 4)).repeat_interleave(12, 1).repeat_interleave(12, 2)
    labels[:, :, :16] = IGNORED
    return torch.randn(2, 5, 12, 12), torch.randn(2, 5, 4), labels


def test_binary_loss_by_hand(binary_loss):
    logits = torch.randn(2, 1, 3, 3)
    labels = torch.tensor([[[1, 0, 0], [0, 1, IGNORED], [0, 0, 1]], [[0, 0, 0], [IGNORED, 0, 0], [0, 0, 0]]])
    cross_entropy, dice = [], []
    for image in range(2):
        overlap = total = 0.0
        for row in range(3):
            for column in range(3):
                label = labels[image, row, column].item()
                if label == IGNORED:
                    continue
                probability = 1 / (1 + math.exp(-logits[image, 0, row, column].item()))
                cross_entropy.append(-math.log(probability if label else 1 - probability))
                overlap += probability * label
                total += probability + label
        dice.append(1 - (2 * overlap + 1) / (total + 1))
    losses = binary_loss(logits, None, labels)
    assert losses["loss_mask"].item() == pytest.approx(3 * sum(cross_entropy) / len(cross_entropy), rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(2 * sum(dice) / 2, rel=1e-5)


def test_binary_loss_is_taken_at_the_resolution_of_the_labels(binary_loss):
    logits = torch.randn(1, 1, 4, 4)
    labels = torch.randint(0, 2, (1, 16, 16))
    upsampled = F.interpolate(logits, size=(16, 16), mode="bilinear")
    coarse, fine = binary_loss(logits, None, labels), binary_loss(upsampled, None, labels)
    assert coarse.keys() == fine.keys()
    assert all(coarse[name].item() == pytest.approx(fine[name].item()) for name in fine)


def test_a_perfect_mask_costs_nothing(binary_loss):
    labels = torch.randint(0, 2, (2, 8, 8))
    losses = binary_loss(60.0 * labels[:, None] - 30.0, None, labels)
    assert losses["loss_mask"].item() < 1e-8
    assert losses["loss_dice"].item() < 1e-6


def test_ignored_pixels_do_not_count_in_the_binary_loss(binary_loss):
    logits, labels = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
    labels[:, :3] = IGNORED
    other = logits.clone()
    other[:, :, :3] = 50 * torch.randn(2, 1, 3, 8)
    one, two = binary_loss(logits, None, labels), binary_loss(other, None, labels)
    assert all(torch.equal(one[name], two[name]) for name in one)
    # and the same numbers come out when the ignored pixels are not there at all
    without = binary_loss(logits[:, :, 3:], None, labels[:, 3:])
    assert all(one[name].item() == pytest.approx(without[name].item(), rel=1e-6) for name in one)


@pytest.mark.parametrize("kind", ["binary_loss", "set_loss"])
def test_all_pixels_ignored(kind, request):
    criterion = request.getfixturevalue(kind)
    masks = torch.randn(2, 1 if kind == "binary_loss" else 5, 4, 4, requires_grad=True)
    classes = torch.randn(2, 5, 4, requires_grad=True)
    losses = criterion(masks, classes, torch.full((2, 16, 16), IGNORED))
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    assert not masks.grad.any()
    assert set(losses) == {"loss_mask", "loss_dice"} | ({"loss_cross_entropy"} if kind == "set_loss" else set())


def test_a_process_with_ignored_pixels_only_takes_part_in_the_count(set_loss, predictions, monkeypatch):
    masks, classes, labels = predictions
    counted = []
    count = set_loss.get_num_masks
    monkeypatch.setattr(
        set_loss, "get_num_masks", lambda classes, device: counted.append(classes) or count(classes, device)
    )
    set_loss(masks, classes, labels)
    set_loss(masks, classes, torch.full_like(labels, IGNORED))
    assert len(counted) == 2


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.float32])
def test_labels_of_any_type(set_loss, predictions, kind):
    masks, classes, labels = predictions
    losses = []
    for given in (labels, labels.to(kind)):
        torch.manual_seed(0)
        losses.append(set_loss(masks, classes, given))
    assert losses[0] == losses[1]


def test_one_image_ignored_of_two(set_loss, predictions):
    masks, classes, labels = predictions
    labels[0] = IGNORED
    masks.requires_grad_()
    total = sum(set_loss(masks, classes, labels).values())
    total.backward()
    assert total.isfinite()
    assert not masks.grad[0].any()
    assert masks.grad[1].any()


def test_set_loss_equals_that_of_transformers_where_nothing_is_ignored(set_loss, predictions, tiny_config):
    masks, classes, labels = predictions
    labels[labels == IGNORED] = 1
    labels[0][labels[0] == 2] = 0  # the images do not hold the same number of classes
    theirs = EomtDinov3Loss(tiny_config(num_queries=5, num_labels=3, train_num_points=400), set_loss.weight_dict)
    class_labels = [image.unique() for image in labels]
    mask_labels = [
        torch.stack([image == number for number in numbers]).float()
        for image, numbers in zip(labels, class_labels, strict=True)
    ]
    results = []
    for compute in (
        lambda: set_loss(masks, classes, labels),
        lambda: theirs(masks, classes, mask_labels, class_labels),
    ):
        torch.manual_seed(5)
        results.append(compute())
    ours, wanted = results
    assert ours.keys() == wanted.keys()
    weights = {"loss_mask": 5.0, "loss_dice": 5.0, "loss_cross_entropy": 2.0}
    for name, weight in weights.items():
        assert ours[name].item() == pytest.approx(weight * wanted[name].item(), rel=1e-5)


def test_ignored_pixels_do_not_count_in_the_set_loss(set_loss, predictions):
    """Neither in the losses, nor in the choice of points, nor in the matching."""
    masks, classes, labels = predictions
    other = masks.clone()
    other[..., :4] = 20 * torch.randn(2, 5, 12, 4)  # above the pixels 0 to 15 of the labels
    results = []
    for logits in (masks, other):
        torch.manual_seed(5)
        logits.requires_grad_()
        losses = set_loss(logits, classes, labels)
        sum(losses.values()).backward()
        results.append(losses)
        assert not logits.grad[..., :4].any()
        assert logits.grad[..., 4:].any()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_point_losses_by_hand():
    logits, targets = torch.randn(3, 50), torch.randint(0, 2, (3, 50)).float()
    valid = (torch.rand(3, 50) < 0.6).float()
    valid[2] = 0
    cross_entropy = dice = 0.0
    for mask in range(3):
        chosen = valid[mask] == 1
        probability, target = logits[mask, chosen].sigmoid(), targets[mask, chosen]
        if chosen.any():
            cross_entropy += F.binary_cross_entropy(probability, target).item()
        overlap, total = (probability * target).sum().item(), (probability.sum() + target.sum()).item()
        dice += 1 - (2 * overlap + 1) / (total + 1)
    losses = masked_point_losses(logits, targets, valid, torch.tensor(4.0))
    assert losses["loss_mask"].item() == pytest.approx(cross_entropy / 4, rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(dice / 4, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_losses_of_a_model_in_another_precision(set_loss, predictions, dtype):
    masks, classes, labels = predictions
    losses = set_loss.to(dtype)(masks.to(dtype), classes.to(dtype), labels)
    assert all(loss.isfinite() for loss in losses.values())
