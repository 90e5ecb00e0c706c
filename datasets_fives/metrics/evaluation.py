"""Measure any predictor of vessel probabilities on the images of a data set."""

from collections.abc import Callable, Mapping

import numpy as np
from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from ..features import QUALITY
from ..field_of_view import field_of_view
from ..masks import check_labels, counted_pixels
from .accumulator import VesselMetrics


def measure(
    predictors: Mapping[str, Callable[[Image.Image, int], np.ndarray]],
    dataset: Dataset,
    *,
    inside_field_of_view: bool = True,
    threshold: float = 0.5,
) -> dict[str, VesselMetrics]:
    """
    Measure predictors side by side, at the resolution of the masks, one image at a time: a test set of any size
    fits in memory.

    Args:
        predictors (`Mapping[str, Callable]`): By name, functions from an image and its index in the data set to its
            vessel probability, `(height, width)` in [0, 1].
        dataset (`Dataset`): Rows as [`~datasets_fives.load_vessels`] returns them.
        inside_field_of_view (`bool`, *optional*, defaults to `True`): Whether only pixels inside the field of view
            count; otherwise the whole frame does.
        threshold (`float`, *optional*, defaults to 0.5): A pixel is vessel if its probability is above it.

    Returns:
        `dict[str, VesselMetrics]`: The metrics of each predictor: `compute()` for the summary, `rows` for the images.

    Raises:
        `ValueError`: If there are no images, before anything is predicted; or a predictor refuses one of them, which
            is then named.
    """
    if not len(dataset):
        raise ValueError("There are no images to measure.")
    measured = {name: VesselMetrics(threshold=threshold) for name in predictors}
    conditions = dataset.features["condition"]
    grades = [grade for grade in QUALITY if grade in dataset.features]
    for index, row in enumerate(tqdm(dataset, desc="Measuring", unit="image", leave=None)):
        mask = np.asarray(row["mask"])
        check_labels(mask, f"{row['name']}: the mask")
        vessels, counts = counted_pixels(mask)
        if inside_field_of_view:
            counts &= imaged_area(row)
        groups = {grade: row[grade] for grade in grades}
        for name, predict in predictors.items():
            try:
                probability = predict(row["image"], index)
            except ValueError as error:
                raise ValueError(f"{row['name']} could not be measured at {name}: {error}") from error
            measured[name].update(
                row["name"], conditions.int2str(row["condition"]), probability, vessels, counts, groups=groups
            )
    return measured


def imaged_area(row: dict) -> np.ndarray:
    """
    The field of view of an image, `(height, width)` `bool`: that of the source, or found in the image.

    Args:
        row (`dict`): A row of [`~datasets_fives.load_vessels`].
    """
    if row.get("field_of_view") is not None:
        return np.asarray(row["field_of_view"]) == 1
    return field_of_view(np.asarray(row["image"]))
