"""What is measured on one image: the counts behind the vessel metrics, and the metrics from counts.

Nothing of this package is imported here: the file also travels to the Hub, beside `vessel_metrics.py`.
"""

import math

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

# Bins of the calibration error, even in probability.
CALIBRATION_BINS = 15


def checked(
    name: str, probability: np.ndarray, mask: np.ndarray, field_of_view: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The arrays of one image as floats and booleans, or a `ValueError` that says what is wrong with them."""
    probability, mask = np.asarray(probability), np.asarray(mask)
    inside = None if field_of_view is None else np.asarray(field_of_view)
    if probability.ndim != 2 or probability.size == 0:
        raise ValueError(f"{name}: the probabilities have shape {probability.shape}, needed is (height, width).")
    for what, array in (("mask", mask), ("field of view", inside)):
        if array is None:
            continue
        if array.shape != probability.shape:
            raise ValueError(f"{name}: the {what} is {array.shape}, the probabilities are {probability.shape}.")
        if array.dtype != bool and not np.all((array == 0) | (array == 1)):
            raise ValueError(
                f"{name}: the {what} is not binary: it goes from {array.min()} to {array.max()}, allowed are 0 and 1."
            )
    if probability.dtype.kind not in "fiub":
        raise ValueError(f"{name}: the probabilities are of type {probability.dtype}, real numbers are needed.")
    lowest, highest = probability.min(), probability.max()
    if not (lowest >= 0 and highest <= 1):  # written so that nan fails too
        raise ValueError(f"{name}: the probabilities go from {lowest} to {highest}, allowed is 0 to 1 and no nan.")
    if inside is not None and not inside.any():
        raise ValueError(f"{name}: the field of view is empty.")
    if probability.dtype not in (np.float32, np.float64):
        probability = probability.astype(np.float32)  # half precision is too coarse for the logits
    return probability, mask.astype(bool), None if inside is None else inside.astype(bool)


def count_image(
    prediction: np.ndarray, mask: np.ndarray, inside: np.ndarray | None, boundary_width: int
) -> dict[str, int]:
    """The pixel counts that every metric with a threshold is made of."""
    predicted_line, true_line = skeletonize(prediction), skeletonize(mask)
    predicted_edge, true_edge = _boundary(prediction, boundary_width), _boundary(mask, boundary_width)
    if inside is not None:
        prediction, mask = prediction & inside, mask & inside
        predicted_line, true_line = predicted_line & inside, true_line & inside
        predicted_edge, true_edge = predicted_edge & inside, true_edge & inside
    regions = {
        "prediction": prediction,
        "mask": mask,
        "both": prediction & mask,
        "predicted_line": predicted_line,
        "predicted_line_hit": predicted_line & mask,
        "true_line": true_line,
        "true_line_hit": true_line & prediction,
        "edge_both": predicted_edge & true_edge,
        "edge_either": predicted_edge | true_edge,
    }
    counts = {key: int(np.count_nonzero(region)) for key, region in regions.items()}
    errors = [abs(one - other) for one, other in zip(_betti(prediction), _betti(mask), strict=True)]
    counts["pixels"] = mask.size if inside is None else int(np.count_nonzero(inside))
    return counts | {"images": 1, "betti0_error": errors[0], "betti1_error": errors[1]}


def _betti(mask: np.ndarray) -> tuple[int, int]:
    """β0 and β1: connected components (8 neighbours), and holes in them (background of 4 neighbours)."""
    components = ndimage.label(mask, np.ones((3, 3)), output=np.int32)[1]
    # The margin joins all background that reaches the border to the one component that is not a hole.
    background = ndimage.label(~np.pad(mask, 1), output=np.int32)[1]
    return components, background - 1


def calibration(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels, vessels and sum of probabilities in each bin, (3, bins)."""
    scores = scores.astype(np.float64)
    bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    counted = [np.bincount(bins, weights, CALIBRATION_BINS) for weights in (None, truth, scores)]
    return np.stack([row.astype(np.float64) for row in counted])


def calibration_error(calibration: list[np.ndarray]) -> float:
    # Rounded once, so that the order of the images does not matter.
    pixels, vessels, probability = (
        [math.fsum(column) for column in zip(*(image[row] for image in calibration), strict=True)] for row in range(3)
    )
    gaps = (abs(total - found) for total, found in zip(probability, vessels, strict=True))
    return math.fsum(gaps) / math.fsum(pixels)


def _boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of the mask within `width` of its contour; the image border counts as contour, as in the paper."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3), dtype=bool), iterations=width)


def ratios(counts: dict[str, int]) -> dict[str, float]:
    """The metrics with a threshold from the counts of one image or of many; see the table in [`VesselMetrics`]."""
    prediction, mask, both = counts["prediction"], counts["mask"], counts["both"]
    # A skeleton can lie outside the field of view where its vessel does not, so lines are asked for on their own.
    line_precision = _ratio(counts["predicted_line_hit"], counts["predicted_line"], or_else=0.0)
    line_recall = _ratio(counts["true_line_hit"], counts["true_line"])
    if counts["true_line"]:
        cldice = _ratio(2 * line_precision * line_recall, line_precision + line_recall, or_else=0.0)
    else:
        cldice = 0.0 if counts["predicted_line"] else math.nan
    return {
        "dice": _ratio(2 * both, prediction + mask),
        "iou": _ratio(both, prediction + mask - both),
        "precision": _ratio(both, prediction, or_else=0.0 if mask else math.nan),
        "recall": _ratio(both, mask),
        "cldice": cldice,
        "boundary_iou": _ratio(counts["edge_both"], counts["edge_either"]),
        "centerline_recall": line_recall,
        "mcc": _matthews(prediction, mask, both, counts["pixels"]),
        "betti0_error": counts["betti0_error"] / counts["images"],
        "betti1_error": counts["betti1_error"] / counts["images"],
    }


def _matthews(prediction: int, mask: int, both: int, pixels: int) -> float:
    if mask == pixels or not (mask or prediction):
        return math.nan
    spread = math.sqrt(prediction * (pixels - prediction) * mask * (pixels - mask))
    return _ratio(both * pixels - prediction * mask, spread, or_else=0.0)


def _ratio(part: float, whole: float, or_else: float = math.nan) -> float:
    return part / whole if whole else or_else


def rank_exactly(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Average precision and AUROC of one image, by sorting its pixels once."""
    order = np.argsort(scores)[::-1]
    scores, truth = scores[order], truth[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true_positives = np.cumsum(truth)[last_of_tie]
    return rank(true_positives, last_of_tie + 1 - true_positives)


def rank(true_positives: np.ndarray, false_positives: np.ndarray) -> tuple[float, float]:
    """Average precision and AUROC from the cumulative counts at falling thresholds, the last at everything."""
    num_positives, num_negatives = int(true_positives[-1]), int(false_positives[-1])
    if not num_positives:
        return math.nan, math.nan
    gained = np.diff(true_positives, prepend=0)
    # A bin with no pixel at the top of a histogram gains nothing; its 0 / 0 must not become nan.
    precision = true_positives / np.maximum(true_positives + false_positives, 1)
    average_precision = float(np.sum(gained * precision) / num_positives)
    if not num_negatives:
        return average_precision, math.nan
    sensitivity = np.concatenate([[0.0], true_positives / num_positives])
    fall_out = np.concatenate([[0.0], false_positives / num_negatives])
    return average_precision, float(np.sum(np.diff(fall_out) * (sensitivity[1:] + sensitivity[:-1]) / 2))
