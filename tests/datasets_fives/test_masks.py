"""Which masks are understood, and that no other becomes an empty one."""

from io import BytesIO

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image, ImageFilter

from datasets_fives.features import FEATURES
from datasets_fives.masks import binary_mask, check_foreground, check_labels, check_vessel_labels, counted_pixels
from datasets_fives.metrics import measure


def tree(height: int = 64, width: int = 80) -> np.ndarray:
    """Vessels of 1 to 7 pixels width, {0, 1}."""
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    for middle, half in ((12, 0), (25, 1), (45, 3)):
        mask |= (abs(rows - middle - 4 * np.sin(columns / 9)) <= half).astype(np.uint8)
    return mask


def as_values(*values: int) -> Image.Image:
    """The tree in two or more values, the first for the background; the others are its columns in turn."""
    mask, pixels = tree(), np.full((64, 80), values[0], np.uint8)
    for index, value in enumerate(values[1:]):
        part = np.zeros_like(mask)
        part[:, index * 80 // (len(values) - 1) :] = 1
        pixels[(mask == 1) & (part == 1)] = value
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I", "F", "CMYK", "YCbCr"])
def test_black_and_white_in_every_mode(mode):
    found = as_values(0, 255)
    found = found.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else found.convert(mode)
    np.testing.assert_array_equal(binary_mask(found), tree())


def test_zeros_and_ones_in_every_type():
    for pixels in (tree(), tree().astype(bool), tree().astype(np.int32), tree().astype(np.float32)):
        np.testing.assert_array_equal(binary_mask(Image.fromarray(pixels)), tree())
    np.testing.assert_array_equal(binary_mask(Image.fromarray(tree().astype(np.uint16))), tree())
    np.testing.assert_array_equal(binary_mask(Image.fromarray(tree().astype(np.uint16) * 65535)), tree())


def test_antialiased_and_compressed_masks():
    soft = as_values(0, 255).resize((160, 128), Image.Resampling.BICUBIC).resize((80, 64), Image.Resampling.BOX)
    np.testing.assert_array_equal(binary_mask(soft), tree())
    large = Image.fromarray(np.kron(tree(), np.full((4, 4), 255, np.uint8)))
    blurred = large.filter(ImageFilter.GaussianBlur(0.6))
    assert len(np.unique(np.asarray(blurred))) > 8
    found = binary_mask(blurred)
    np.testing.assert_array_equal(found, (np.asarray(blurred) > 127).astype(np.uint8))
    buffer = BytesIO()
    large.save(buffer, "JPEG", quality=90)
    assert np.mean(binary_mask(Image.open(buffer)) != np.asarray(large) // 255) < 0.002


def test_label_maps_keep_the_ignore_value():
    pixels = tree()
    pixels[:5] = 255
    found = binary_mask(Image.fromarray(pixels))
    np.testing.assert_array_equal(found, pixels)
    vessels, counted = counted_pixels(found)
    np.testing.assert_array_equal(vessels, pixels == 1)
    np.testing.assert_array_equal(counted, pixels != 255)


def test_palettes_of_greys_are_seen_and_of_colours_are_labels():
    indexed = Image.fromarray(tree()).convert("P")
    for palette, wanted in (((0, 0, 0, 255, 255, 255), tree()), ((255,) * 3 + (0,) * 3, 1 - tree()),
                            ((0, 0, 0, 128, 0, 0), tree())):  # fmt: skip
        indexed.putpalette(palette)
        np.testing.assert_array_equal(binary_mask(indexed), wanted)


@pytest.mark.parametrize(
    ("values", "seen"),
    [((0, 1, 2), "0, 1, 2"), ((0, 2), "0, 2"), ((0, 38), "0, 38"), ((0, 128), "0, 128"),
     ((0, 1, 2, 255), "0, 1, 2, 255"),
     ((0, 2, 255), "0, 2, 255"), ((0, 100, 200), "0, 100, 200"), ((5, 9), "5, 9"), ((2, 2), "2")],
)  # fmt: skip
def test_labels_that_may_mean_anything_are_refused_with_advice(values, seen):
    with pytest.raises(ValueError, match=rf"mask is not binary .*{seen}\D.*vessel_labels=\[1, 2\]"):
        binary_mask(as_values(*values))


def test_areas_of_grey_are_no_edges():
    """Arteries white, veins grey: few enough pixels to be taken for soft edges, were they not areas."""
    pixels = np.zeros((200, 200), np.uint8)
    pixels[20:32], pixels[100:108] = 255, 127  # 4 %
    with pytest.raises(ValueError, match="areas of grey among its values 0, 127, 255"):
        binary_mask(Image.fromarray(pixels))
    np.testing.assert_array_equal(binary_mask(Image.fromarray(pixels), [127, 255]), (pixels > 0).astype(np.uint8))


def test_grey_images_and_coloured_maps_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="neither near 0 nor near 255"):
        binary_mask(Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)))
    coloured = np.zeros((8, 8, 3), np.uint8)
    coloured[2, :, 0], coloured[5, :, 2] = 255, 255  # arteries red, veins blue
    with pytest.raises(ValueError, match="colour channels disagree"):
        binary_mask(Image.fromarray(coloured))
    for pixels in (np.full((4, 4), 0.5, np.float32), np.full((4, 4), np.nan, np.float32),
                   np.full((4, 4), -1, np.int32)):  # fmt: skip
        with pytest.raises(ValueError, match="mask is not binary"):
            binary_mask(Image.fromarray(pixels))
    both = tree().astype(np.uint16)
    both[0, 0] = 65535
    with pytest.raises(ValueError, match="16 bits, with both small and large values"):
        binary_mask(Image.fromarray(both))
    with pytest.raises(ValueError, match="16 bits, with no value above 300"):
        binary_mask(Image.fromarray(tree().astype(np.uint16) * 300))


def test_labels_of_vessels_are_named():
    artery_vein = as_values(0, 1, 2)
    np.testing.assert_array_equal(binary_mask(artery_vein, [1, 2]), tree())
    np.testing.assert_array_equal(binary_mask(artery_vein, [2]), (np.asarray(artery_vein) == 2).astype(np.uint8))
    ignored = np.asarray(artery_vein).copy()
    ignored[:5] = 255
    assert set(np.unique(binary_mask(Image.fromarray(ignored), [1, 2]))) == {0, 1, 255}
    check_vessel_labels([1, 255])
    check_vessel_labels(None)
    for wrong in ([], [0], [1, 1], [256], ["1"], [1.0]):
        with pytest.raises(ValueError, match="vessel_labels must be distinct whole numbers from 1 to 255"):
            check_vessel_labels(wrong)


def test_no_mask_is_emptied_silently():
    """Whatever few values a mask has: all zero, some vessel, or refused."""
    rng = np.random.default_rng(1)
    outcomes = {"vessel": 0, "refused": 0}
    for _ in range(300):
        values = rng.choice(256, rng.integers(1, 5), replace=False)
        pixels = rng.choice(values, (16, 16), p=rng.dirichlet(np.ones(len(values)))).astype(np.uint8)
        try:
            found = binary_mask(Image.fromarray(pixels))
        except ValueError:
            outcomes["refused"] += 1
            continue
        assert found.any() == pixels.any()
        outcomes["vessel"] += 1
    assert min(outcomes.values()) > 10


def test_a_data_set_without_vessels_is_refused_with_its_counts():
    check_foreground([np.zeros((4, 4)), tree()], "here")
    with pytest.raises(ValueError, match="here has no vessels: 2 masks with 12 pixels of 0, 4 pixels of 255"):
        check_foreground([np.zeros((3, 4)), np.full((2, 2), 255)], "here")
    with pytest.raises(ValueError, match="0 masks with no pixels"):
        check_foreground([], "here")


def test_only_labels_of_vessels_are_counted_and_measured():
    for labels in (
        tree(),
        tree().astype(bool),
        np.where(tree(), np.uint8(1), np.uint8(255)),
        np.zeros((4, 4), np.uint8),
    ):
        check_labels(labels)
    for labels in (tree() * np.uint8(4), tree() * np.uint8(128), tree().astype(int), tree()[None]):
        with pytest.raises(ValueError, match=r"^17: the mask has values up to .*labels are 0, 1 and 255"):
            check_labels(labels, "17: the mask")
    with pytest.warns(UserWarning, match="17: the mask has pixels of 255, which are ignored, and none of 1"):
        check_labels(tree() * np.uint8(255), "17: the mask")


@pytest.mark.parametrize(("factor", "raised"), [(3, ValueError), (255, UserWarning)])
def test_masks_of_other_labels_are_not_measured(factor, raised):
    """Five classes would count as two, and white vessels as ignored."""
    rows = {"image": [Image.new("RGB", (80, 64))], "mask": [Image.fromarray(tree() * np.uint8(factor))]}
    dataset = Dataset.from_dict({**rows, "name": ["17"], "condition": [0]}, features=FEATURES)
    context = pytest.raises if raised is ValueError else pytest.warns
    with context(raised, match="17: the mask has"):
        result = measure({"nothing": lambda image, index: np.zeros((64, 80))}, dataset, inside_field_of_view=False)
    if raised is UserWarning:
        pooled = result["nothing"].compute()["pooled"]
        assert np.isnan([pooled["average_precision"], pooled["dice"]]).all()
