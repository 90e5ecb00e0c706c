"""Augmentation: joint, repeatable, binary masks, values in range."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets_fives import load_fives
from datasets_fives import transforms as module
from datasets_fives.transforms import EvalTransform, TrainTransform, augment_colours

PLAIN = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}


@pytest.fixture
def batch():
    """Two photographs which show their own mask, so that whatever parts the two is seen."""
    masks = [np.zeros((96, 96), np.uint8) for _ in range(2)]
    masks[0][10:40, 20:70], masks[1][50:90, 5:30] = 1, 1
    return {
        "image": [Image.fromarray(mask * np.uint8(255)).convert("RGB") for mask in masks],
        "mask": [Image.fromarray(mask) for mask in masks],
        "name": ["train/1_A", "train/2_D"],
        "condition": [0, 1],
    }


@pytest.mark.parametrize(("size", "crop_size"), [(64, None), (96, None), (32, 48), (64, 64), (128, 64)])
def test_shapes_types_and_binary_labels(batch, size, crop_size):
    torch.manual_seed(0)
    transform = TrainTransform(size, crop_size=crop_size)
    for _ in range(10):
        out = transform(batch)
        assert set(out) == {"pixel_values", "labels"}
        for pixels, labels in zip(out["pixel_values"], out["labels"], strict=True):
            assert pixels.shape == (3, size, size)
            assert pixels.dtype == torch.float32
            assert torch.isfinite(pixels).all()
            assert labels.shape == (size, size)
            assert labels.dtype == torch.long
            assert set(labels.unique().tolist()) <= {0, 1}


def test_photograph_and_mask_move_together(batch, monkeypatch):
    monkeypatch.setattr(module, "augment_colours", lambda pixels: pixels)
    torch.manual_seed(1)
    transform = TrainTransform(80, crop_size=64, **PLAIN)
    seen = set()
    for _ in range(30):
        out = transform(batch)
        for pixels, labels in zip(out["pixel_values"], out["labels"], strict=True):
            assert ((pixels[0] > 0.5).long() != labels).float().mean() < 0.05  # only edges differ
            seen.add(labels.numpy().tobytes())
    assert len(seen) > 40


def test_every_turn_and_flip_occurs(monkeypatch):
    monkeypatch.setattr(module, "augment_colours", lambda pixels: pixels)
    monkeypatch.setattr(module, "SCALES", (1.0, 1.0))
    mask = np.zeros((16, 16), np.uint8)
    mask[1:4, 2:12] = mask[1:9, 2:4] = 1  # no symmetry
    sample = {"image": [Image.fromarray(mask * np.uint8(255)).convert("RGB")], "mask": [Image.fromarray(mask)]}
    torch.manual_seed(0)
    seen = {TrainTransform(16)(sample)["labels"][0].numpy().tobytes() for _ in range(150)}
    wanted = [np.rot90(m, k) for m in (mask, mask[:, ::-1]) for k in range(4)]
    assert seen == {np.ascontiguousarray(m).astype(np.int64).tobytes() for m in wanted}


def test_the_scale_of_the_crop_is_085_to_1():
    torch.manual_seed(0)
    transform = TrainTransform(64, crop_size=100)
    boxes = [transform._draw_box(200, 300) for _ in range(300)]
    sides = [side for *_, side in boxes]
    assert min(sides) == 85
    assert max(sides) == 100
    assert all(left >= 0 and left + side <= 200 and top >= 0 and top + side <= 300 for left, top, side in boxes)
    assert max(top + side for _, top, side in boxes) > 290


def test_the_seed_of_torch_decides_everything(batch):
    transform = TrainTransform(48, crop_size=64)

    def run(seed):
        torch.manual_seed(seed)
        return [transform(batch) for _ in range(5)]

    for one, other in zip(run(7), run(7), strict=True):
        for key in one:
            assert all(torch.equal(a, b) for a, b in zip(one[key], other[key], strict=True))
    assert not torch.equal(run(7)[0]["pixel_values"][0], run(8)[0]["pixel_values"][0])


def test_colours_change_but_stay_in_range():
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, 48, 48)
    pixels[..., :8] = 0
    outs = [augment_colours(pixels) for _ in range(60)]
    assert all(out.shape == pixels.shape and out.min() >= 0 and out.max() <= 1 for out in outs)
    assert all(torch.isfinite(out).all() for out in outs)
    assert sum(not torch.equal(out, pixels) for out in outs) > 45


@pytest.mark.parametrize(
    "name",
    ["adjust_contrast_with_mean_subtraction", "adjust_saturation_with_gray_subtraction", "adjust_hue", "adjust_gamma",
     "adjust_brightness_accumulative", "equalize_clahe"],
)  # fmt: skip
def test_each_change_of_colour_is_used(name, monkeypatch):
    calls, original = [], getattr(module.enhance, name)
    monkeypatch.setattr(module.enhance, name, lambda *args: calls.append(args) or original(*args))
    torch.manual_seed(0)
    for _ in range(60):
        augment_colours(torch.rand(1, 3, 32, 32))
    assert 3 < len(calls) < 60


def test_evaluation_changes_nothing(batch):
    out = EvalTransform(image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.25, 0.25))(batch)
    assert out["name"] == batch["name"]
    assert out["condition"] == batch["condition"]
    for pixels, labels, mask in zip(out["pixel_values"], out["labels"], batch["mask"], strict=True):
        truth = torch.from_numpy(np.array(mask)).long()
        assert torch.equal(labels, truth)
        torch.testing.assert_close(pixels[1], (truth - 0.5) / 0.25)
    assert EvalTransform(32)(batch)["pixel_values"][0].shape == (3, 32, 32)


def test_with_transform_feeds_a_data_loader_that_a_seed_repeats(tmp_path):
    data = load_fives("synthetic", photograph_size=48, synthetic_counts=(6, 0, 1), cache_dir=tmp_path)
    rows = data["train"].with_transform(TrainTransform(32, crop_size=40))

    def run():
        torch.manual_seed(3)
        loader = torch.utils.data.DataLoader(rows, batch_size=3, shuffle=True)
        return [batch["pixel_values"] for batch in loader]

    one, other = run(), run()
    assert one[0].shape == (3, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    row = data["test"].with_transform(EvalTransform())[0]
    assert row["name"] == "synthetic/7_G"
    assert row["pixel_values"].shape == (3, 48, 48)


def test_wrong_sizes_are_refused(batch):
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        TrainTransform(0)
    with pytest.raises(ValueError, match="crop_size must be at least 1, got -3"):
        TrainTransform(8, crop_size=-3)
    with pytest.raises(ValueError, match="one value for each of red, green and blue"):
        EvalTransform(image_mean=(0.5,))
    with pytest.raises(ValueError, match="crop_size is 97, but the photograph has only 96x96"):
        TrainTransform(32, crop_size=97)(batch)
    batch["mask"][0] = batch["mask"][0].resize((50, 96))
    for transform in (TrainTransform(32), EvalTransform()):
        with pytest.raises(ValueError, match=r"\(96, 96\).*\(50, 96\)"):
            transform(batch)
