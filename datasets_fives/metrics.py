"""Vessel segmentation metrics, streamed one photograph at a time.

Nothing of this package is imported here: the file also travels alone, beside `vessel_metrics.py`, to the Hub.
"""

import math

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

METRICS = (
    "average_precision",
    "auroc",
    "dice",
    "iou",
    "precision",
    "recall",
    "cldice",
    "boundary_iou",
    "centerline_recall",
)

# The bins of the pooled histograms are even in log(p / (1 - p)) between these ends. A float32 below 1 is at most
# 1 - 2^-24, whose logit is 16.6, so above it lies only p = 1 itself; p < 9e-14 shares the first bin.
LOGIT_RANGE = (-30.0, 17.0)


class VesselMetrics:
    """Nine metrics of binary vessel segmentation, pooled over pixels and per image, in constant memory.

    What is kept is one row of numbers an image and, for every condition, two histograms of `num_bins` probabilities;
    no pixel stays, so the size of the test set does not matter. The object is plain data: it can be pickled, sent
    between processes (`accelerate.utils.gather_object`) and combined by [`VesselMetrics.merge`].

    Per image, average precision (the step-wise sum of scikit-learn, no interpolation) and AUROC are exact. Pooled,
    they come from the histograms: probabilities that share a bin (0.0002 wide in logits by default) count as tied.
    That lowers average precision by less than 1e-5 for a trained model, by less than 1e-4 as long as the logits of a
    set have a standard deviation above 0.1, and changes AUROC by far less. Everything else is a ratio of counts, exact
    both ways; pooled, the counts are summed over the images first.

    - `dice`, `iou`, `precision`, `recall`: of the pixels with `probability > threshold`.
    - `cldice`: harmonic mean of the share of the predicted skeleton inside the true vessels and the share of the true
      skeleton inside the predicted vessels (Shit et al., CVPR 2021), on real skeletons
      (`skimage.morphology.skeletonize`), not the soft ones of the loss.
    - `centerline_recall`: the second of these two, the fraction of the true centre lines that was found.
    - `boundary_iou`: IoU of the mask pixels no further than `boundary_width` from their contour (Cheng et al., CVPR
      2021). That paper's width, 2 % of the diagonal, is 58 pixels on a 2048² photograph, where about half of the
      vessels are under 12 pixels wide: all of a vessel would be boundary, and the metric would be the IoU. Here it is
      a thousandth of the longer side, at least 1 pixel: 2 pixels at 2048², 1 pixel up to 1500.

    Undefined values are `nan`, and are left out of means (`compute` tells how many images each mean is over):

    | ground truth | prediction | value |
    |---|---|---|
    | empty | empty | all `nan` |
    | empty | not empty | 0; `nan` for `recall`, `centerline_recall`, `average_precision`, `auroc` |
    | not empty | empty | 0; `average_precision` and `auroc` as ever, for they need no threshold |
    | everything | any | `auroc` is `nan` |

    With a field of view only the pixels inside it count. Skeletons and boundaries are those of the whole image,
    restricted afterwards, so that the border of the field is not taken for the end or the side of a vessel.

    Args:
        threshold (`float`, *optional*, defaults to 0.5):
            A pixel is vessel if its probability is above it. Between 0 and 1, both excluded.
        num_bins (`int`, *optional*, defaults to 262144):
            Bins of the pooled histograms, at least 2.
        boundary_width (`int`, *optional*):
            Width in pixels for `boundary_iou`. By default a thousandth of the longer side of each image, at least 1.

    Raises:
        `ValueError`: If an argument is out of range.

    Example:

    ```python
    >>> metrics = VesselMetrics()
    >>> for name, condition, probability, mask in photographs:
    ...     row = metrics.update(name, condition, probability, mask)
    >>> metrics.compute()["pooled"]["average_precision"]
    ```
    """

    def __init__(self, threshold: float = 0.5, num_bins: int = 2**18, boundary_width: int | None = None) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}; it must lie between 0 and 1, both excluded.")
        if num_bins < 2:
            raise ValueError(f"num_bins is {num_bins}; at least 2 are needed.")
        if boundary_width is not None and boundary_width < 1:
            raise ValueError(f"boundary_width is {boundary_width}; it must be at least 1 pixel, or None.")
        self.threshold = threshold
        self.num_bins = num_bins
        self.boundary_width = boundary_width
        self.rows: list[dict[str, float | str | None]] = []
        # Of each image the counts behind its row, in the same order; of each condition the histograms.
        self._counts: list[dict[str, int]] = []
        self._histograms: dict[str | None, np.ndarray] = {}  # (2, num_bins): not vessel, vessel

    def update(
        self,
        name: str,
        condition: str | None,
        probability: np.ndarray,
        mask: np.ndarray,
        field_of_view: np.ndarray | None = None,
    ) -> dict[str, float | str | None]:
        """Measure one photograph.

        Args:
            name (`str`):
                Its name; each may occur once.
            condition (`str` or `None`):
                The group it belongs to in `per_condition`; `None` for no group.
            probability (`np.ndarray` of shape `(height, width)`):
                Probability of vessel, 0 to 1.
            mask (`np.ndarray` of shape `(height, width)`):
                Ground truth, `bool` or the numbers 0 and 1.
            field_of_view (`np.ndarray` of shape `(height, width)`, `bool`, *optional*):
                The pixels that count; all by default.

        Returns:
            `dict`: The row of this image: `name`, `condition` and the nine metrics.

        Raises:
            `ValueError`: If the name is not new, the shapes differ, the probabilities are not within [0, 1], the mask
            is not binary or the field of view is empty. Nothing is changed then.
        """
        if any(row["name"] == name for row in self.rows):
            raise ValueError(f"{name} was measured already; every image needs a name of its own.")
        probability, mask, inside = _checked(name, probability, mask, field_of_view)

        prediction = probability > self.threshold
        width = self.boundary_width or max(1, round(max(mask.shape) / 1000))
        counts = _count(prediction, mask, inside, width)
        scores, truth = (probability, mask) if inside is None else (probability[inside], mask[inside])
        histogram = self._histogram(scores, truth)

        average_precision, auroc = _rank_exactly(scores.ravel(), truth.ravel())
        row = {"name": name, "condition": condition, "average_precision": average_precision, "auroc": auroc}
        row.update(_ratios(counts))
        self.rows.append(row)
        self._counts.append(counts)
        self._histograms[condition] = self._histograms.get(condition, 0) + histogram
        return dict(row)

    def merge(self, other: "VesselMetrics") -> None:
        """Take in what another object measured, for instance on another process.

        Args:
            other ([`VesselMetrics`]):
                Measured with the same settings, on other images.

        Raises:
            `ValueError`: If the settings differ or an image was measured by both. Nothing is changed then.
        """
        for setting in ("threshold", "num_bins", "boundary_width"):
            mine, theirs = vars(self)[setting], vars(other)[setting]
            if mine != theirs:
                raise ValueError(f"{setting} differs: {mine} here, {theirs} in the metrics to merge.")
        both = sorted({row["name"] for row in self.rows} & {row["name"] for row in other.rows})
        if both:
            raise ValueError(f"Measured on both sides, must be on one only: {', '.join(both)}.")
        self.rows += [dict(row) for row in other.rows]
        self._counts += [dict(counts) for counts in other._counts]
        for condition, histogram in other._histograms.items():
            self._histograms[condition] = self._histograms.get(condition, 0) + histogram

    def compute(self) -> dict:
        """Everything measured so far.

        Returns:
            `dict`:
            - `num_images` (`int`)
            - `pooled`: metric → value over all pixels of all images
            - `per_image`: metric → `mean`, `sd` (of the sample; `nan` below two images) and `num_images`, the number
              of images in which the metric is defined
            - `per_condition`: condition → these three for its images alone; images without condition are left out

        Raises:
            `ValueError`: If no image was measured.
        """
        if not self.rows:
            raise ValueError("No image was measured yet; call update first.")
        conditions = sorted({row["condition"] for row in self.rows} - {None})
        result = self._summary(list(self._histograms))
        result["per_condition"] = {condition: self._summary([condition]) for condition in conditions}
        return result

    def _summary(self, conditions: list[str | None]) -> dict:
        chosen = [i for i, row in enumerate(self.rows) if row["condition"] in conditions]
        histogram = sum(self._histograms[condition] for condition in conditions)
        # From the highest probability down.
        average_precision, auroc = _rank(np.cumsum(histogram[1, ::-1]), np.cumsum(histogram[0, ::-1]))
        counts = {key: sum(self._counts[i][key] for i in chosen) for key in self._counts[0]}
        pooled = {"average_precision": average_precision, "auroc": auroc, **_ratios(counts)}
        per_image = {}
        for metric in METRICS:
            values = np.array([self.rows[i][metric] for i in chosen])
            values = values[~np.isnan(values)]
            per_image[metric] = {
                "mean": float(values.mean()) if len(values) else math.nan,
                "sd": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
                "num_images": len(values),
            }
        return {"num_images": len(chosen), "pooled": pooled, "per_image": per_image}

    def _histogram(self, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        low, high = LOGIT_RANGE
        with np.errstate(divide="ignore"):  # 0 and 1 go to the outer bins
            logits = np.clip(np.log(scores) - np.log1p(-scores), low, high)
        bins = ((logits - low) * (self.num_bins / (high - low))).astype(np.int64)
        np.minimum(bins, self.num_bins - 1, out=bins)
        positive = np.bincount(bins[truth], minlength=self.num_bins)
        return np.stack([np.bincount(bins.ravel(), minlength=self.num_bins) - positive, positive])


def _checked(
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
        raise ValueError(f"{name}: the probabilities are of type {probability.dtype}, needed are real numbers.")
    lowest, highest = probability.min(), probability.max()
    if not (lowest >= 0 and highest <= 1):  # written so that nan fails too
        raise ValueError(f"{name}: the probabilities go from {lowest} to {highest}, allowed is 0 to 1 and no nan.")
    if inside is not None and not inside.any():
        raise ValueError(f"{name}: the field of view is empty.")
    if probability.dtype not in (np.float32, np.float64):
        probability = probability.astype(np.float32)  # half precision is too coarse for the logits
    return probability, mask.astype(bool), None if inside is None else inside.astype(bool)


def _count(prediction: np.ndarray, mask: np.ndarray, inside: np.ndarray | None, boundary_width: int) -> dict[str, int]:
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
    return {key: int(np.count_nonzero(region)) for key, region in regions.items()}


def _boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of the mask within `width` of its contour; the image border counts as contour, as in the paper."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3), dtype=bool), iterations=width)


def _ratios(counts: dict[str, int]) -> dict[str, float]:
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
    }


def _ratio(part: float, whole: float, or_else: float = math.nan) -> float:
    return part / whole if whole else or_else


def _rank_exactly(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Average precision and AUROC of one image, by sorting its pixels once."""
    order = np.argsort(scores)[::-1]
    scores, truth = scores[order], truth[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true_positives = np.cumsum(truth)[last_of_tie]
    return _rank(true_positives, last_of_tie + 1 - true_positives)


def _rank(true_positives: np.ndarray, false_positives: np.ndarray) -> tuple[float, float]:
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
