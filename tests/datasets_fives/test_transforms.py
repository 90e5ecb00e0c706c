"""Augmentation: joint, repeatable, binary masks, values in range; crops that reach beyond the image."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets_fives import load_fives
from datasets_fives import transforms as module
from datasets_fives.transforms import Augmentation, EvalTransform, TrainTransform, augment_colours, cut_box

PLAIN = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}


@pytest.fixture
def batch():
    """Two images which show their own mask, so that whatever parts the two is seen."""
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


def test_image_and_mask_move_together(batch, monkeypatch):
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


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("flips", [True, False])
def test_every_turn_and_flip_occurs_that_is_wanted(flips, turns):
    augmentation = Augmentation(flips=flips, turns=turns, colours=False, scales=(1.0, 1.0))
    mask = np.zeros((16, 16), np.uint8)
    mask[1:4, 2:12] = mask[1:9, 2:4] = 1  # no symmetry
    sample = {"image": [Image.fromarray(mask * np.uint8(255)).convert("RGB")], "mask": [Image.fromarray(mask)]}
    torch.manual_seed(0)
    transform = TrainTransform(16, augmentation=augmentation, **PLAIN)
    seen = {transform(sample)["labels"][0].numpy().tobytes() for _ in range(150)}
    mirrored = (mask, mask[:, ::-1]) if flips else (mask,)
    wanted = [np.rot90(m, k) for m in mirrored for k in range(4 if turns else 1)]
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
    data = load_fives("synthetic", working_size=48, synthetic_counts=(6, 0, 1), cache_dir=tmp_path)
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


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (20, 100)])
def test_evaluation_fits_any_aspect_into_the_square(shape):
    mask = np.zeros(shape, np.uint8)
    mask[5:15, 10:18] = 1
    image = Image.fromarray(mask * np.uint8(255)).convert("RGB")
    batch = {"image": [image], "mask": [Image.fromarray(mask)], "name": ["a"], "condition": [0]}
    out = EvalTransform(64, **PLAIN)(batch)
    pixels, labels = out["pixel_values"][0], out["labels"][0]
    assert pixels.shape == (3, 64, 64)
    height, width = (round(side * 64 / max(shape)) for side in shape)
    assert (labels[:height, :width] < 2).all()
    assert (labels[height:] == 255).all()
    assert (labels[:, width:] == 255).all()
    # Nothing is stretched: what was 10 high and 8 wide has the same shape.
    rows, columns = torch.where(labels == 1)
    scale = 64 / max(shape)
    assert abs(rows.max() - rows.min() + 1 - 10 * scale) <= 1
    assert abs(columns.max() - columns.min() + 1 - 8 * scale) <= 1
    # Beyond the edge the image goes on as in a mirror.
    if height < 64:
        assert torch.equal(pixels[:, height], pixels[:, height - 2])
    assert EvalTransform(**PLAIN)(batch)["labels"][0].shape == shape


@pytest.mark.parametrize("crop_size", [None, 40, 70, 200])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (20, 30)])
def test_crops_of_any_aspect_are_square_and_never_stretched(shape, crop_size):
    augmentation = Augmentation(colours=False, scales=(1.0, 1.0))
    # A chessboard of 6 pixels: stretching or a wrong mirror would show in the length of its runs.
    board = (np.indices(shape) // 6).sum(axis=0) % 2
    image = Image.fromarray((board * 255).astype(np.uint8)).convert("RGB")
    batch = {"image": [image], "mask": [Image.fromarray(board.astype(np.uint8))]}
    size = crop_size or max(shape)
    torch.manual_seed(0)
    ignored = []
    for _ in range(20):
        out = TrainTransform(size, crop_size=crop_size, augmentation=augmentation, **PLAIN)(batch)
        pixels, labels = out["pixel_values"][0], out["labels"][0]
        inside = labels != 255
        assert ((pixels[0] > 0.5).long() == labels)[inside].all()
        ignored.append(int((~inside).sum()))
        # The part inside is a rectangle with all of the short side, where the crop is longer than that.
        assert sorted(side for side in (int(inside.any(1).sum()), int(inside.any(0).sum()))) == sorted(
            (min(size, shape[0]), min(size, shape[1]))
        )
    assert set(ignored) == {size * size - min(size, shape[0]) * min(size, shape[1])}


@pytest.fixture
def street():
    """A label map of five classes: a wide road, at its upper edge narrow stripes of the others and of no class."""
    labels = np.full((96, 96), 4, np.uint8)
    labels[:30] = (np.arange(96) // 8 % 6)[None]
    labels[:30][labels[:30] == 5] = 255
    return {"image": [Image.fromarray(labels).convert("RGB")], "mask": [Image.fromarray(labels)]}


def test_label_maps_keep_their_classes_at_any_scale(street):
    plain = Augmentation(flips=False, turns=False, colours=False, scales=(1.0, 1.0))
    for size in (96, 48, 192):
        (labels,) = TrainTransform(size, num_labels=5, augmentation=plain, **PLAIN)(street)["labels"]
        assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4, 255}
        nearest = np.asarray(street["mask"][0].resize((size, size), Image.Resampling.NEAREST))
        assert torch.equal(labels, torch.from_numpy(nearest.astype(np.int64)))
        (labels,) = EvalTransform(size, num_labels=5)({**street, "name": ["a"], "condition": [0]})["labels"]
        assert torch.equal(labels, torch.from_numpy(nearest.astype(np.int64)))


def test_crops_of_nothing_but_one_class_are_drawn_anew(street):
    transform = TrainTransform(32, crop_size=32, num_labels=5)
    for _ in range(60):  # half of all crops would be road
        counts = transform(street)["labels"][0].flatten().bincount(minlength=256)[:255]
        assert counts.max() < 0.8 * counts.sum()
    alone = TrainTransform(32, crop_size=32, num_labels=5)
    alone._draw_box = lambda width, height: (0, 60, 32)
    assert alone._choose_box(np.asarray(street["mask"][0])) == (0, 60, 32), "where there is no other"


def test_classes_that_there_are_not_are_refused(street):
    with pytest.raises(ValueError, match=r"label map of mode L has the values 3, 4: the 3 classes are 0 to 2"):
        TrainTransform(32, num_labels=3)(street)
    street["mask"] = [street["mask"][0].convert("RGB")]
    with pytest.raises(ValueError, match=r"has shape \(96, 96, 3\)"):
        TrainTransform(32, num_labels=5)(street)


@pytest.mark.parametrize("scales", [(0.5,), (0.0, 1.0), (1.0, 0.5)])
def test_scales_that_are_no_range_are_refused(scales):
    with pytest.raises(ValueError, match="scales is"):
        Augmentation(scales=scales)


def test_ignored_pixels_stay_ignored(batch):
    labels = np.asarray(batch["mask"][0]).copy()
    labels[60:] = 255
    batch["mask"][0] = Image.fromarray(labels)
    for transform in (EvalTransform(), EvalTransform(48), TrainTransform(48)):
        assert 255 in transform(batch)["labels"][0]
    assert torch.equal(EvalTransform()(batch)["labels"][0], torch.from_numpy(labels).long())


def test_masks_that_are_not_labels_are_refused_or_warned_of(batch):
    for values, mode in ((2, "L"), (128, "L"), (1, "RGB"), (1, "I")):
        batch["mask"] = [Image.fromarray(np.full((96, 96), values, np.uint8)).convert(mode)] * 2
        with pytest.raises(ValueError, match=f"mask of mode {mode} has values up to {values}; labels are"):
            EvalTransform()(batch)
    white = np.zeros((96, 96), np.uint8)
    white[40] = 255
    batch["mask"] = [Image.fromarray(white)] * 2
    with pytest.warns(UserWarning, match=r"pixels of 255, which are ignored, and none of 1"):
        EvalTransform()(batch)


def test_wrong_sizes_are_refused(batch):
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        TrainTransform(0)
    with pytest.raises(ValueError, match="crop_size must be at least 1, got -3"):
        TrainTransform(8, crop_size=-3)
    with pytest.raises(ValueError, match="one value for each of red, green and blue"):
        EvalTransform(image_mean=(0.5,))
    batch["mask"][0] = batch["mask"][0].resize((50, 96))
    for transform in (TrainTransform(32), EvalTransform()):
        with pytest.raises(ValueError, match=r"\(96, 96\).*\(50, 96\)"):
            transform(batch)


@pytest.mark.parametrize(("left", "top", "side"), [(3, 4, 10), (-5, -2, 30), (20, -40, 60), (-100, 0, 150)])
def test_a_box_beyond_the_edge_is_mirrored_and_ignored(left, top, side):
    image = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    mask = np.ones((24, 36), np.uint8)
    cut, labels = cut_box(Image.fromarray(image), mask, left, top, side)
    assert cut.size == (side, side)
    assert labels.shape == (side, side)
    cut = np.asarray(cut)
    for row in range(side):
        for column in range(side):
            y, x = top + row, left + column
            inside = 0 <= y < 24 and 0 <= x < 36
            assert labels[row, column] == (1 if inside else 255)
            # Reflected at the edges of the part that is inside, as often as it takes.
            low_y, high_y, low_x, high_x = max(top, 0), min(top + side, 24), max(left, 0), min(left + side, 36)
            assert np.array_equal(cut[row, column], image[mirror(y, low_y, high_y), mirror(x, low_x, high_x)])


def mirror(place: int, low: int, high: int) -> int:
    while not low <= place < high:
        place = 2 * low - place if place < low else 2 * (high - 1) - place
    return place
