import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics.classification import MulticlassJaccardIndex

from datasets_fives.metrics import ClassMetrics

NAMES = ["road", "sky", "tree", "car"]


def measure(*images: tuple, names=NAMES) -> dict:
    metrics = ClassMetrics(names)
    for predicted, labels in images:
        metrics.update(np.array(predicted), np.array(labels))
    return metrics.compute()


def of_each_class(result: dict, metric: str) -> list[float]:
    return [values[metric] for values in result["per_class"].values()]


def random_images(num_classes: int = 5) -> list[tuple]:
    """Blobs of several sizes, labels with ignored pixels and predictions that differ in places."""
    rng = np.random.default_rng(0)
    images = []
    for shape in [(40, 60), (60, 40), (48, 48)]:
        scores = ndimage.gaussian_filter(rng.normal(size=(num_classes, *shape)), (0, 4, 4))
        labels = scores.argmax(0)
        predicted = (scores + 0.5 * ndimage.gaussian_filter(rng.normal(size=scores.shape), (0, 3, 3))).argmax(0)
        labels[ndimage.gaussian_filter(rng.normal(size=shape), 3) > 0.1] = 255
        images.append((predicted, labels))
    return images


def mean_iou_of_evaluate(images: list[tuple], num_labels: int, ignore_index: int = 255) -> dict:
    """The formula of the metric `mean_iou` of `evaluate`, which the example of transformers uses."""
    intersect, predicted_area, label_area = (np.zeros(num_labels) for _ in range(3))
    bins = {"bins": num_labels, "range": (0, num_labels - 1)}
    for predicted, label in images:
        mask = np.not_equal(label, ignore_index)
        predicted, label = predicted[mask], label[mask]
        intersect += np.histogram(predicted[predicted == label], **bins)[0]
        predicted_area += np.histogram(predicted, **bins)[0]
        label_area += np.histogram(label, **bins)[0]
    with np.errstate(invalid="ignore"):
        iou = intersect / (predicted_area + label_area - intersect)
    return {
        "mean_iou": np.nanmean(iou),
        "overall_accuracy": intersect.sum() / label_area.sum(),
        "per_category_iou": iou,
    }


def test_values_by_hand():
    # Of road 2 of 3 are found and 1 of the two others is called road; sky: 1 of 3; no tree, no car.
    result = measure(([[0, 0, 1], [0, 1, 1]], [[0, 0, 0], [1, 1, 255]]))
    # road: both 2, union 4; sky: both 1, union 3 (the ignored pixel does not count).
    assert of_each_class(result, "iou")[:2] == pytest.approx([2 / 4, 1 / 3])
    assert of_each_class(result, "dice")[:2] == pytest.approx([4 / 6, 2 / 4])
    assert result["mean_iou"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert result["pixel_accuracy"] == pytest.approx(3 / 5)


def test_absent_classes_count_as_the_table_says():
    result = measure(([[0, 0, 2, 0]], [[0, 0, 0, 1]]))
    road, sky, tree, car = of_each_class(result, "iou")
    assert (road, sky, tree) == (pytest.approx(2 / 4), 0, 0)  # sky is missed, tree is predicted where none is
    assert math.isnan(car)  # neither: left out of the mean
    assert result["mean_iou"] == pytest.approx((1 / 2 + 0 + 0) / 3)


def test_pixels_are_pooled_over_the_set():
    small, large = ([[0, 1]], [[0, 0]]), ([[1] * 8, [0] * 8], [[1] * 8, [0] * 8])
    result = measure(small, large)
    assert of_each_class(result, "iou")[:2] == pytest.approx([9 / 10, 8 / 9])  # not means of 1/2 and 1, 0 and 1


def test_equals_evaluate_and_torchmetrics():
    images = random_images()
    result = measure(*images, names=[*"abcdefg"])  # two of which do not occur
    expected = mean_iou_of_evaluate(images, 7)
    assert result["mean_iou"] == pytest.approx(expected["mean_iou"])
    assert result["pixel_accuracy"] == pytest.approx(expected["overall_accuracy"])
    np.testing.assert_allclose(of_each_class(result, "iou"), expected["per_category_iou"])
    jaccard = MulticlassJaccardIndex(7, ignore_index=255)
    for image in images:
        jaccard.update(*map(torch.as_tensor, image))
    assert result["mean_iou"] == pytest.approx(jaccard.compute().item())


def boundary_of_the_paper(mask: np.ndarray) -> np.ndarray:
    """`mask_to_boundary` of Cheng et al., with scipy's erosion for OpenCV's."""
    width = max(1, round(0.02 * math.hypot(*mask.shape)))
    eroded = ndimage.binary_erosion(np.pad(mask, 1), np.ones((3, 3)), iterations=width)[1:-1, 1:-1]
    return mask & ~eroded


def test_boundaries_are_those_of_the_paper():
    images = [(predicted, np.where(labels == 255, 0, labels)) for predicted, labels in random_images()]
    result = measure(*images, names=[*"abcde"])
    for index, name in enumerate("abcde"):
        both = either = 0
        for predicted, labels in images:
            edges = boundary_of_the_paper(predicted == index), boundary_of_the_paper(labels == index)
            both, either = both + (edges[0] & edges[1]).sum(), either + (edges[0] | edges[1]).sum()
        assert result["per_class"][name]["boundary_iou"] == pytest.approx(both / either)
    assert result["boundary_iou"] == pytest.approx(np.mean(of_each_class(result, "boundary_iou")))


def test_no_contour_runs_along_ignored_pixels():
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels[:, 40:60] = 255  # right of it is sky
    labels[:, 60:] = 1
    predicted = np.where(np.arange(100) < 45, 0, 1) + np.zeros((100, 1), dtype=int)
    result = measure((predicted, labels))
    assert result["mean_iou"] == result["boundary_iou"] == 1
    predicted[:, 37:40] = 1  # now the contour lies where labels are known
    assert measure((predicted, labels))["boundary_iou"] < 1


def test_update_tells_of_the_image_alone_and_keeps_nothing_of_it():
    metrics, images = ClassMetrics([*"abcde"]), random_images()
    alone = [metrics.update(*image) for image in images]
    assert str(alone) == str([measure(image, names=[*"abcde"]) for image in images])
    assert metrics.num_images == 3
    assert sum(value.numel() for value in vars(metrics).values() if isinstance(value, torch.Tensor)) == 5**2 + 6**2
    metrics.reset()
    assert str(metrics.update(*images[0])) == str(metrics.compute()) == str(alone[0])


def test_takes_tensors_and_an_image_of_ignored_pixels_only():
    metrics = ClassMetrics(NAMES)
    nothing = metrics.update(torch.zeros(4, 6, dtype=torch.int32), torch.full((4, 6), 255, dtype=torch.uint8))
    assert all(math.isnan(nothing[metric]) for metric in ("mean_iou", "pixel_accuracy", "boundary_iou"))
    metrics.update(torch.ones(4, 6, dtype=torch.long), torch.ones(4, 6, dtype=torch.long))
    assert metrics.compute()["mean_iou"] == 1


def test_merging_is_measuring_together():
    images, (one, other) = random_images(), (ClassMetrics([*"abcde"]) for _ in range(2))
    one.update(*images[0])
    for image in images[1:]:
        other.update(*image)
    one.merge(other)
    assert str(one.compute()) == str(measure(*images, names=[*"abcde"]))
    with pytest.raises(ValueError, match="class_names differs"):
        one.merge(ClassMetrics(NAMES))


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        ([[0, 4]], [[0, 1]], r"A prediction has the values 4; allowed are 0 to 3\."),
        ([[0, 1]], [[0, 9]], "A label map has the values 9; allowed are 0 to 3, and 255 for pixels that do not count"),
        ([[0, 1]], [[0], [1]], r"The prediction is \(1, 2\), the label map \(2, 1\)"),
        ([[0.0, 1.0]], [[0, 1]], r"A prediction of type float64 and shape \(1, 2\)"),
        ([0, 1], [0, 1], r"A prediction of type int64 and shape \(2,\)"),
    ],
)
def test_wrong_maps_change_nothing(predicted, labels, message):
    metrics = ClassMetrics(NAMES)
    with pytest.raises(ValueError, match=message):
        metrics.update(np.array(predicted), np.array(labels))
    with pytest.raises(ValueError, match="No image was measured yet"):
        metrics.compute()


def test_wrong_classes():
    with pytest.raises(ValueError, match="at least 2 classes"):
        ClassMetrics(["road"])
    with pytest.raises(ValueError, match="road twice"):
        ClassMetrics(["road", "sky", "road"])
    with pytest.raises(ValueError, match="ignore_index is 0, which is the class road"):
        ClassMetrics(NAMES, ignore_index=0)
