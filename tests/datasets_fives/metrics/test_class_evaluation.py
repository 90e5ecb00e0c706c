import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from datasets_fives.metrics import ClassMetrics, measure_classes

NAMES = ["road", "sky", "tree"]
FEATURES = Features(
    {
        "image": Image(mode="RGB"),
        "mask": Image(mode="L"),
        "name": Value("string"),
        "condition": ClassLabel(names=["x"]),
    }
)


@pytest.fixture
def rows() -> Dataset:
    """Two images of two sizes whose red channel is the class; a corner of the label maps is ignored."""
    rng, content = np.random.default_rng(0), []
    for place, shape in enumerate([(12, 20), (16, 8)]):
        labels = rng.integers(0, 3, shape).astype(np.uint8)
        image = np.stack([labels, labels * 0, labels * 0], axis=-1)
        labels[:3, :3] = 255
        maps = {"image": PILImage.fromarray(image), "mask": PILImage.fromarray(labels)}
        content.append({**maps, "name": f"image {place}", "condition": 0})
    return Dataset.from_list(content, features=FEATURES)


def test_every_predictor_is_measured_on_every_image(rows):
    right = {"right": lambda image, index: np.asarray(image)[..., 0]}
    shifted = {"shifted": lambda image, index: (np.asarray(image)[..., 0] + index) % 3}
    measured = measure_classes({**right, **shifted}, rows, NAMES)
    assert measured["right"].compute()["mean_iou"] == 1
    first, second = measured["shifted"].rows
    assert (first["name"], first["condition"], first["mean_iou"], first["iou_sky"]) == ("image 0", "x", 1, 1)
    assert second["mean_iou"] == second["pixel_accuracy"] == 0
    expected = ClassMetrics(NAMES)
    for index, row in enumerate(rows):
        expected.update(shifted["shifted"](row["image"], index), np.asarray(row["mask"]))
    assert measured["shifted"].compute() == expected.compute()


def test_what_cannot_be_measured_is_named(rows):
    with pytest.raises(ValueError, match=r"image 1 could not be measured at wrong: A prediction has the values 3"):
        measure_classes({"wrong": lambda image, index: np.full(image.size[::-1], 3 * index)}, rows, NAMES)
    with pytest.raises(ValueError, match="no images"):
        measure_classes({}, rows.select([]), NAMES)
