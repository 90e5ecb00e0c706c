"""What label maps of K classes may look like, what they are read as, and which are refused."""

import numpy as np
import pytest
from PIL import Image

from datasets_fives.label_maps import LabelFormat, ValuesWithoutClass, read_label_format, read_label_map
from datasets_fives.masks import fingerprint_mask, resize_mask

NAMES = ["sky", "building", "road", "tree", "car"]
COLORS = [[128, 128, 128], [128, 0, 0], [128, 64, 128], [128, 128, 0], [64, 0, 128]]
# Each class once, and ignored pixels.
LABELS = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)
FORMAT = read_label_format(NAMES)


def palette_image(labels: np.ndarray) -> Image.Image:
    """Indices, in the colours of the classes."""
    image = Image.fromarray(labels)
    image.putpalette([*np.array(COLORS).ravel().tolist(), *[0] * 3 * 250, 255, 255, 255])
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(LABELS),
        Image.fromarray(LABELS).convert("RGB"),
        Image.fromarray(LABELS).convert("RGBA"),
        Image.fromarray(LABELS).convert("LA"),
        Image.fromarray(LABELS.astype(np.uint16)),
        Image.fromarray(LABELS.astype(np.int32)),
        Image.fromarray(LABELS.astype(np.float32)),
        palette_image(LABELS),
    ],
    ids=lambda image: image.mode,
)
def test_values_are_class_indices_in_every_mode(image):
    found = read_label_map(image, FORMAT)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, LABELS)


def test_a_palette_of_greys_is_read_by_its_indices_too():
    image = Image.fromarray(LABELS)
    image.putpalette([value for grey in range(0, 256) for value in [255 - grey] * 3])
    np.testing.assert_array_equal(read_label_map(image, FORMAT), LABELS)


def test_colours_are_looked_up():
    labels = read_label_format(dict(zip(NAMES, COLORS, strict=True)), ignore_value=[0, 0, 0])
    assert labels.names == tuple(NAMES)
    pixels = np.array([*COLORS, [0, 0, 0]], np.uint8).reshape(2, 3, 3)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("RGBA")):
        np.testing.assert_array_equal(read_label_map(image, labels), LABELS)
    two = read_label_format({"a": COLORS[0], "b": COLORS[1]}, ignore_value=[*COLORS[2], 0, 0, 0])
    np.testing.assert_array_equal(read_label_map(Image.fromarray(pixels[:, [0, 2]][:1]), two), [[0, 255]])
    white = read_label_format(dict(zip(NAMES, COLORS, strict=True)))  # 255 of each colour
    np.testing.assert_array_equal(read_label_map(palette_image(LABELS), white), LABELS)
    with pytest.raises(ValuesWithoutClass, match=r"\[0, 0, 0\] \(1 pixels\)"):
        read_label_map(Image.fromarray(pixels), white)


def test_reduced_labels_are_those_of_transformers():
    from transformers import SegformerImageProcessor

    stored = np.array([[0, 1, 2], [3, 5, 255]], np.uint8)
    processor = SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, do_reduce_labels=True)
    images = [np.zeros((2, 3, 3), np.uint8)]
    (wanted,) = processor(images, segmentation_maps=[stored], return_tensors="np")["labels"]
    found = read_label_map(Image.fromarray(stored), read_label_format(NAMES, reduce_labels=True))
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(found, [[255, 0, 1], [2, 4, 255]])


@pytest.mark.parametrize(
    ("classes", "values"),
    [
        ({0: "sky", 1: "road", 2: "car"}, (0, 1, 2)),
        ({"7": "sky", "11": "road", "26": "car"}, (7, 11, 26)),
        ({"car": 600, "sky": 3, "road": 70}, (3, 70, 600)),
        (["sky", "road", "car"], (0, 1, 2)),
    ],
)
def test_classes_may_be_any_values(classes, values):
    labels = read_label_format(classes)
    assert labels == LabelFormat(("sky", "road", "car"), values)
    stored = np.array([[*values, 255]], np.uint16)
    np.testing.assert_array_equal(read_label_map(Image.fromarray(stored), labels), [[0, 1, 2, 255]])


def test_255_may_be_a_class():
    labels = read_label_format({"background": 0, "crack": 255})
    assert labels.ignored == ()
    np.testing.assert_array_equal(read_label_map(Image.fromarray(np.array([[0, 255]], np.uint8)), labels), [[0, 1]])
    one_or_two = read_label_format({"background": 0, "crack": 255}, ignore_value=[7, 9])
    stored = np.array([[0, 255, 7, 9]], np.uint8)
    np.testing.assert_array_equal(read_label_map(Image.fromarray(stored), one_or_two), [[0, 1, 255, 255]])
    with pytest.raises(ValueError, match="255 is ignored, but also stands for 'crack'"):
        read_label_format({"background": 0, "crack": 255}, ignore_value=255)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"classes": ["sky"]}, "2 to 255 classes, of which a background is one, got 1: sky"),
        ({"classes": [str(n) for n in range(256)]}, "2 to 255 classes.*got 256: 0, 1, 2, ..."),
        ({"classes": ["sky", "sky"]}, "a name of its own, but these repeat: sky"),
        ({"classes": ["sky", ""]}, "must be names"),
        ({"classes": ["sky", 3]}, "must be names"),
        ({"classes": {"a": 1, "b": 1}}, "value or colour of its own, but these repeat: 1"),
        ({"classes": {"a": -1, "b": 1}}, "0 to 65535, got -1 to 1"),
        ({"classes": {"a": 1, "b": [1, 2, 3]}}, "or to colours"),
        ({"classes": {"a": [1, 2], "b": [1, 2, 3]}}, r"got \[1, 2\]"),
        ({"classes": {"a": [1, 2, 256], "b": [1, 2, 3]}}, r"got \[1, 2, 256\]"),
        ({"classes": {"a": [1, 2, 3], "b": [3, 2, 1]}, "reduce_labels": True}, "colours stand for these"),
        ({"classes": NAMES, "ignore_value": [9, 1.5]}, "ignore_value must be whole numbers"),
        ({"classes": {"a": [1, 2, 3], "b": [3, 2, 1]}, "ignore_value": [1, 2, 4, 8]}, r"got \[8\]"),
        ({"classes": NAMES, "ignore_value": 70000}, "from 0 to 65535, got 70000"),
        ({"classes": NAMES, "ignore_value": 4}, "4 is ignored, but also stands for 'car'"),
        ({"classes": NAMES, "ignore_value": 5, "reduce_labels": True}, "5 is ignored, but also stands for 'car'"),
    ],
)
def test_contradictions_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        read_label_format(**kwargs)


def test_what_is_ignored_is_a_value_of_the_file():
    labels = read_label_format(NAMES, ignore_value=0, reduce_labels=True)
    np.testing.assert_array_equal(read_label_map(Image.fromarray(np.array([[0, 1]], np.uint8)), labels), [[255, 0]])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.array([[0, 7, 7, 9]], np.uint8)), r"without a class: 7 \(2 pixels\), 9 \(1 pixels\)"),
        (Image.fromarray(np.array([[0, 300]], np.uint16)), r"300 \(1 pixels\)"),
        (Image.fromarray(np.array([[0.5]], np.float32)), "mode F has values from 0.* to 0.5"),
        (Image.fromarray(np.array([[-1]], np.int32)), "mode I has values from -1 to 0"),
        (Image.fromarray(np.array([[[128, 0, 0]]], np.uint8)), r"RGB has colours: .*classes=\{name: \[red"),
        (Image.fromarray(np.array([[[1, 1, 1, 0]]], np.uint8)), "transparent"),
        (Image.new("CMYK", (2, 2)), "mode CMYK has colours"),
        (Image.fromarray(np.arange(200, dtype=np.uint8)[None]), "195 values without a class: is it smoothed, or a"),
    ],
)
def test_what_is_no_label_map_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        read_label_map(image, FORMAT)


def test_label_maps_are_scaled_by_nearest_pixels():
    labels = np.kron(LABELS, np.ones((40, 40), np.uint8))
    for longest in (60, 30, 240):
        scaled = resize_mask(labels, longest, num_labels=5)
        assert scaled.shape == (longest * 2 // 3, longest)
        side = longest // 3
        np.testing.assert_array_equal(scaled, np.kron(LABELS, np.ones((side, side), np.uint8)))


def test_a_map_of_one_class_says_nothing_about_duplicates():
    assert fingerprint_mask(np.full((4, 4), 3, np.uint8), 5) == ""
    assert fingerprint_mask(np.array([[3, 255]], np.uint8), 5) == ""  # such as the border of a map
    assert fingerprint_mask(np.array([[1, 255]], np.uint8)) == ""
    assert fingerprint_mask(np.array([[1, 0]], np.uint8)) != fingerprint_mask(np.array([[0, 1]], np.uint8)) != ""
    one, other = LABELS, np.where(LABELS == 3, np.uint8(4), LABELS)
    assert fingerprint_mask(one, 5) == fingerprint_mask(one.copy(), 5) != fingerprint_mask(other, 5)
