"""Vessel segmentation metrics, streamed one image at a time.

Of this package only `image_counts.py` is imported here: both also travel to the Hub, beside `vessel_metrics.py`.
"""

import math
from collections.abc import Mapping

import numpy as np

from .image_counts import calibration, calibration_error, checked, count_image, rank, rank_exactly, ratios

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
    "mcc",
    "betti0_error",
    "betti1_error",
    "calibration_error",
)
# Of these less is better; the two Betti errors are counts.
ERRORS = ("betti0_error", "betti1_error", "calibration_error")

# The bins of the pooled histograms are even in log(p / (1 - p)) between these ends. A float32 below 1 is at most
# 1 - 2^-24, whose logit is 16.6, so above it lies only p = 1 itself; p < 9e-14 shares the first bin.
LOGIT_RANGE = (-30.0, 17.0)


class VesselMetrics:
    """Thirteen metrics of binary vessel segmentation, pooled over pixels and per image, in constant memory.

    What is kept is a few numbers an image and, for every condition and group, two histograms of `num_bins`
    probabilities; no pixel stays, so the size of the test set does not matter. The object is plain data: it can be
    pickled, sent between processes (`accelerate.utils.gather_object`) and combined by [`VesselMetrics.merge`].

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
      2021). That paper's width, 2 % of the diagonal, is 58 pixels on a 2048² image, where about half of the
      vessels are under 12 pixels wide: all of a vessel would be boundary, and the metric would be the IoU. Here it is
      a thousandth of the longer side, at least 1 pixel: 2 pixels at 2048², 1 pixel up to 1500.
    - `mcc`: Matthews correlation coefficient, -1 to 1.
    - `betti0_error`, `betti1_error`: how far the number of connected components (β0) and of holes (β1) of the
      prediction is from that of the truth. Vessels connect over corners (8 neighbours), background does not (4). Here
      the field of view cuts first. There is no pooling of pixels here: pooled is the mean over the images.
    - `calibration_error`: expected calibration error of the probability of vessel, |mean probability − fraction of
      vessel| in 15 bins even in probability, weighted by their pixels.

    `compute` also tells the threshold with the highest pooled Dice, from the histograms, and that Dice: whether
    pruning moves it shows beside `threshold`.

    Undefined values are `nan`, and are left out of means (`compute` tells how many images each mean is over):

    | ground truth | prediction | value |
    |---|---|---|
    | empty | empty | all `nan` |
    | empty | not empty | 0; `nan` for `recall`, `centerline_recall`, `average_precision`, `auroc` |
    | not empty | empty | 0; `average_precision` and `auroc` as ever, for they need no threshold |
    | everything | any | `auroc` and `mcc` are `nan` |

    The errors are defined always.

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
    >>> for name, condition, probability, mask in images:
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
        # Of each image what is behind its row, in the same order; of each group the histograms.
        self._counts: list[dict[str, int]] = []
        self._calibration: list[np.ndarray] = []  # (3, bins): pixels, vessels, sum of probabilities
        # Of each image the groups it is in, ("condition", "A") first.
        self._groups: list[tuple[tuple[str, str | None], ...]] = []
        self._histograms: dict[tuple[str, str | None], np.ndarray] = {}  # (2, num_bins): not vessel, vessel

    def update(
        self,
        name: str,
        condition: str | None,
        probability: np.ndarray,
        mask: np.ndarray,
        field_of_view: np.ndarray | None = None,
        groups: Mapping[str, str] | None = None,
    ) -> dict[str, float | str | None]:
        """Measure one image.

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
            groups (`Mapping[str, str]`, *optional*):
                Further groups that it belongs to in `per_group`, such as `{"blur": "0"}`.

        Returns:
            `dict`: The row of this image: `name`, `condition` and the metrics.

        Raises:
            `ValueError`: If the name is not new, the shapes differ, the probabilities are not within [0, 1], the mask
            is not binary, the field of view is empty, or a group is called condition. Nothing is changed then.
        """
        if groups and "condition" in groups:
            raise ValueError(f"{name}: a group cannot be called condition, which has an argument of its own.")
        if any(row["name"] == name for row in self.rows):
            raise ValueError(f"{name} was measured already; every image needs a name of its own.")
        probability, mask, inside = checked(name, probability, mask, field_of_view)

        prediction = probability > self.threshold
        width = self.boundary_width or max(1, round(max(mask.shape) / 1000))
        counts = count_image(prediction, mask, inside, width)
        scores, truth = (probability, mask) if inside is None else (probability[inside], mask[inside])
        histogram = self._histogram(scores, truth)

        average_precision, auroc = rank_exactly(scores.ravel(), truth.ravel())
        binned = calibration(scores.ravel(), truth.ravel())
        row = {"name": name, "condition": condition, "average_precision": average_precision, "auroc": auroc}
        row.update(ratios(counts), calibration_error=calibration_error([binned]))
        self.rows.append(row)
        self._counts.append(counts)
        self._calibration.append(binned)
        self._groups.append((("condition", condition), *(groups or {}).items()))
        for group in self._groups[-1]:
            self._histograms[group] = self._histograms.get(group, 0) + histogram
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
            raise ValueError(f"Measured by both, but each image must be measured once: {', '.join(both)}.")
        self.rows += [dict(row) for row in other.rows]
        self._counts += [dict(counts) for counts in other._counts]
        self._calibration += other._calibration
        self._groups += other._groups
        for group, histogram in other._histograms.items():
            self._histograms[group] = self._histograms.get(group, 0) + histogram

    def compute(self) -> dict:
        """Everything measured so far.

        Returns:
            `dict`:
            - `num_images` (`int`)
            - `pooled`: metric → value over all pixels of all images
            - `per_image`: metric → `mean`, `sd` (of the sample; `nan` below two images) and `num_images`, the number
              of images in which the metric is defined
            - `best_threshold` (`float`), `best_dice` (`float`): the threshold with the highest pooled Dice, and that
            - `per_condition`: condition → these for its images alone; images without condition are left out
            - `per_group`: name of the group → its value → the same

        Raises:
            `ValueError`: If no image was measured.
        """
        if not self.rows:
            raise ValueError("No image was measured yet; call update first.")
        everything = [group for group in self._histograms if group[0] == "condition"]
        result = self._summary(everything)
        values: dict[str, dict[str, dict]] = {"condition": {}}
        for kind, value in sorted(group for group in self._histograms if group[1] is not None):
            values.setdefault(kind, {})[value] = self._summary([(kind, value)])
        return result | {"per_condition": values.pop("condition"), "per_group": values}

    def _summary(self, groups: list[tuple[str, str | None]]) -> dict:
        chosen = [i for i, mine in enumerate(self._groups) if any(group in mine for group in groups)]
        histogram = sum(self._histograms[group] for group in groups)
        # From the highest probability down.
        vessels, others = np.cumsum(histogram[1, ::-1]), np.cumsum(histogram[0, ::-1])
        average_precision, auroc = rank(vessels, others)
        counts = {key: sum(self._counts[i][key] for i in chosen) for key in self._counts[0]}
        pooled = {"average_precision": average_precision, "auroc": auroc, **ratios(counts)}
        pooled["calibration_error"] = calibration_error([self._calibration[i] for i in chosen])
        per_image = {}
        for metric in METRICS:
            values = np.array([self.rows[i][metric] for i in chosen])
            values = values[~np.isnan(values)]
            per_image[metric] = {
                "mean": float(values.mean()) if len(values) else math.nan,
                "sd": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
                "num_images": len(values),
            }
        best_threshold, best_dice = self._best_threshold(vessels, others)
        best = {"best_threshold": best_threshold, "best_dice": best_dice}
        return {"num_images": len(chosen), "pooled": pooled, "per_image": per_image, **best}

    def _best_threshold(self, vessels: np.ndarray, others: np.ndarray) -> tuple[float, float]:
        """Threshold of the highest Dice, and that Dice, from the counts in the highest bins."""
        if not vessels[-1]:
            return math.nan, math.nan
        dice = 2 * vessels / (vessels + others + vessels[-1])
        # Over empty bins Dice stays the same: the middle of the first such stretch of best bins.
        best = np.flatnonzero(dice == dice.max())
        stretch = best[: 1 + int(np.argmin(np.append(np.diff(best) == 1, False)))]
        low, high = LOGIT_RANGE
        # The lower edge of the last bin that is taken in, counted from the top.
        edge = high - (float(stretch.mean()) + 1) * (high - low) / self.num_bins
        return 1 / (1 + math.exp(-edge)), float(dice.max())

    def _histogram(self, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        low, high = LOGIT_RANGE
        with np.errstate(divide="ignore"):  # 0 and 1 go to the outer bins
            logits = np.clip(np.log(scores) - np.log1p(-scores), low, high)
        bins = ((logits - low) * (self.num_bins / (high - low))).astype(np.int64)
        np.minimum(bins, self.num_bins - 1, out=bins)
        positive = np.bincount(bins[truth], minlength=self.num_bins)
        return np.stack([np.bincount(bins.ravel(), minlength=self.num_bins) - positive, positive])
