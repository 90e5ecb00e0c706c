"""Masks as they are found become classes, or are refused; never an empty mask in silence."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_reg4pru.label_maps import read_label_map, resize_label_map


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:14], mask[:, 20:23] = 1, 1
    return mask


def white(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask * np.uint8(255))


def palette(mask: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette(colours)
    return image


def antialiased(mask: np.ndarray) -> Image.Image:
    return white(mask.repeat(4, 0).repeat(4, 1)).resize((mask.shape[1], mask.shape[0]), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "make",
    [
        white,
        Image.fromarray,
        antialiased,
        lambda mask: white(mask).convert("1"),
        lambda mask: white(mask).convert("RGB"),
        lambda mask: white(mask).convert("RGBA"),
        lambda mask: white(mask).convert("LA"),
        lambda mask: white(mask).convert("P"),
        lambda mask: white(mask).convert("RGB").convert("CMYK"),
        lambda mask: mask * np.uint16(65535),
        lambda mask: palette(mask, [0, 0, 0, 255, 255, 255]),
        lambda mask: palette(1 - mask, [255, 255, 255, 0, 0, 0]),
        lambda mask: palette(mask, [0, 0, 0, 200, 30, 30]),
        lambda mask: mask * np.uint8(255),
        lambda mask: mask.astype(bool),
        lambda mask: mask.astype(np.float32),
        lambda mask: np.stack([mask * np.uint8(255)] * 3, axis=-1),
        lambda mask: np.stack([mask * np.uint8(255)] * 3),
        lambda mask: torch.from_numpy(mask).long(),
        lambda mask: torch.from_numpy(mask)[None] * 255,
    ],
)
def test_two_classes_from_every_kind_of_mask(mask, make):
    found = read_label_map(make(mask), num_labels=2)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, mask)


def test_pixels_to_be_ignored_stay_so_in_label_maps(mask):
    mask[:5] = 255
    np.testing.assert_array_equal(read_label_map(mask, num_labels=2), mask)
    np.testing.assert_array_equal(read_label_map(mask, num_labels=3), mask)
    np.testing.assert_array_equal(read_label_map(mask), mask)


@pytest.mark.parametrize("num_labels", [None, 2, 4])
def test_empty_masks_are_empty(num_labels):
    assert not read_label_map(np.zeros((4, 4), np.uint8), num_labels).any()


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 2], [0, 7], [0, 2, 255], [0, 1, 2, 255], [0, 30], [0, 128]])
def test_other_labels_are_refused_for_two_classes(values):
    mask = np.array(values, np.uint8).repeat(100)[None]
    with pytest.raises(ValueError, match=f"values {', '.join(map(str, values))}: for two classes"):
        read_label_map(mask, num_labels=2)


def test_grey_images_and_colours_are_refused():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    with pytest.raises(ValueError, match=r"74% of its pixels"):
        read_label_map(ramp, num_labels=2)
    with pytest.raises(ValueError, match="3 channels that disagree"):
        read_label_map(np.stack([ramp, ramp, 255 - ramp], axis=-1), num_labels=2)
    with pytest.raises(ValueError, match="no whole numbers"):
        read_label_map(np.full((2, 2), 0.5), num_labels=2)
    with pytest.raises(ValueError, match="values 0, 1, 65535: it must be black and white"):
        read_label_map(np.array([[0, 1, 65535]], np.uint16), num_labels=2)
    with pytest.raises(ValueError, match="values 0, 1: for two classes"):
        read_label_map(np.array([[0, 300]], np.uint16), num_labels=2)


def test_areas_of_grey_are_a_class_of_their_own(mask):
    """Arteries and veins: few enough pixels to pass for edges, but even."""
    drawn = mask.repeat(4, 0).repeat(4, 1) * np.uint8(255)
    drawn[100:104, :100] = 127
    assert np.mean(drawn == 127) < 0.05
    with pytest.raises(ValueError, match="areas of grey"):
        read_label_map(drawn, num_labels=2)


def test_the_meaning_of_255_is_not_guessed(mask):
    with pytest.raises(ValueError, match=r"255 is also the label of pixels to be ignored.*num_labels=2"):
        read_label_map(white(mask))
    assert set(np.unique(read_label_map(white(mask), num_labels=3))) == {0, 255}


@pytest.mark.parametrize(("value", "num_labels"), [(3, 3), (-100, 3), (254, 4), (-100, 2)])
def test_labels_out_of_range_are_refused(mask, value, num_labels):
    mask = mask.astype(np.int64)
    mask[0, 0] = value
    with pytest.raises(ValueError, match=str(value)):
        read_label_map(mask, num_labels)


def test_classes_of_a_coloured_palette_are_its_indices():
    classes = np.arange(4, dtype=np.uint8).repeat(5)[None]
    image = palette(classes, [0, 0, 0, 128, 0, 0, 0, 128, 0, 0, 0, 128])
    np.testing.assert_array_equal(read_label_map(image, num_labels=4), classes)
    np.testing.assert_array_equal(read_label_map(image), classes)


def test_do_reduce_labels():
    classes = np.array([[0, 1, 2, 255]], np.uint8)
    np.testing.assert_array_equal(read_label_map(classes, 2, do_reduce_labels=True), [[255, 0, 1, 255]])
    with pytest.raises(ValueError, match="values 2, but there are 2 classes"):
        read_label_map(np.array([[0, 3]]), 2, do_reduce_labels=True)


def test_exif_orientation_is_applied(mask, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    white(mask).save(tmp_path / "mask.png", exif=exif)
    with Image.open(tmp_path / "mask.png") as image:
        np.testing.assert_array_equal(read_label_map(image, 2), np.rot90(mask, -1))


def test_two_classes_are_averaged_by_area():
    mask = np.random.default_rng(0).integers(0, 2, (60, 90)).astype(np.int32)
    mean = mask.reshape(20, 3, 30, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(resize_label_map(mask, 20, 30, 2), mean > 0.5)
    np.testing.assert_array_equal(resize_label_map(mask, 120, 180, 2), mask.repeat(2, 0).repeat(2, 1))
    mask[:30] = 255
    resized = resize_label_map(mask, 20, 30, 2)
    assert (resized[:10] == 255).all()
    np.testing.assert_array_equal(resized[10:], mean[10:] > 0.5)


def test_more_classes_are_never_mixed():
    classes = np.random.default_rng(0).choice([0, 3, 9, 255], (60, 90)).astype(np.int32)
    np.testing.assert_array_equal(resize_label_map(classes, 20, 30), classes[1::3, 1::3])
    assert resize_label_map(classes, 60, 90) is classes
