"""Measure any predictor of label maps on the images of a data set."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from .class_metrics import ClassMetrics


class MeasuredClasses(NamedTuple):
    """
    What was measured of a predictor.

    Args:
        metrics ([`ClassMetrics`]): Over all images.
        rows (`list[dict]`): Of each image `name`, `condition`, `mean_iou`, `pixel_accuracy`, `boundary_iou`, and
            `iou_<class>` of every class.
    """

    metrics: ClassMetrics
    rows: list[dict[str, float | str]]

    def compute(self) -> dict:
        """See [`ClassMetrics.compute`]."""
        return self.metrics.compute()


def measure_classes(
    predictors: Mapping[str, Callable[[Image.Image, int], np.ndarray]], dataset: Dataset, class_names: Sequence[str]
) -> dict[str, MeasuredClasses]:
    """
    Measure predictors side by side, at the resolution of the label maps, one image at a time: a test set of any size
    fits in memory.

    Args:
        predictors (`Mapping[str, Callable]`): By name, functions from an image and its index in the data set to its
            classes, `(height, width)`.
        dataset (`Dataset`): Rows with `image`, `mask` (a class per pixel, 255 where it does not count), `name` and
            `condition`.
        class_names (`Sequence[str]`): Names of the classes.

    Returns:
        `dict[str, MeasuredClasses]`: The metrics of each predictor.

    Raises:
        `ValueError`: If there are no images, before anything is predicted; or one cannot be predicted or measured,
            which is then named.
    """
    if not len(dataset):
        raise ValueError("There are no images to measure.")
    measured = {name: MeasuredClasses(ClassMetrics(class_names), []) for name in predictors}
    conditions = dataset.features["condition"]
    for index, row in enumerate(tqdm(dataset, desc="Measuring", unit="image", leave=None)):
        labels = np.asarray(row["mask"])
        for name, predict in predictors.items():
            try:
                result = measured[name].metrics.update(predict(row["image"], index), labels)
            except ValueError as error:
                raise ValueError(f"{row['name']} could not be measured at {name}: {error}") from error
            per_class = {f"iou_{each}": values["iou"] for each, values in result["per_class"].items()}
            pooled = {metric: result[metric] for metric in ("mean_iou", "pixel_accuracy", "boundary_iou")}
            place = {"name": row["name"], "condition": conditions.int2str(row["condition"])}
            measured[name].rows.append(place | pooled | per_class)
    return measured
