"""Metrics of label maps of any number of classes, streamed one image at a time.

Nothing of this package is imported here: the file also travels to the Hub, beside `segmentation_metrics.py`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torchmetrics.functional.classification import multiclass_confusion_matrix

# Width of a boundary as a share of the diagonal of the image (Cheng et al., CVPR 2021).
BOUNDARY_WIDTH = 0.02


class ClassMetrics:
    """Mean IoU, pixel accuracy and boundary IoU of label maps, with IoU and Dice of each class, in constant memory.

    What is kept is two confusion matrices; no pixel and no image stays, so the size of the test set does not matter.
    All values are over the pixels of the whole set, as the field reports them, and not means over images.

    - `mean_iou`: the mean of the IoU of the classes, |predicted ∩ true| / |predicted ∪ true|.
    - `pixel_accuracy`: the share of the pixels that have the right class.
    - `boundary_iou`: the mean over the classes of the IoU of their boundaries, the pixels of a class no further than
      2 % of the diagonal from its contour (Cheng et al., CVPR 2021). As in that paper the border of the image is
      contour.

    Pixels whose label is `ignore_index` do not count, whatever is predicted there, and no contour runs along them:
    nobody knows what class they have. A class that does not occur is counted as in `mean_iou` of `evaluate`, which the
    example of transformers uses, in mmsegmentation, and in torchmetrics' `MulticlassJaccardIndex`:

    | in the labels of the set | predicted | IoU, Dice and boundary IoU of the class |
    |---|---|---|
    | yes | yes | by the definition |
    | yes | no | 0 |
    | no | yes | 0, and so part of the mean |
    | no | no | `nan`, left out of the mean |

    So an image without sky neither gains nor loses by it, but a set without any sky does as soon as one pixel is
    predicted to be sky. `torchmetrics.segmentation.MeanIoU` is another number, a mean over images.

    Args:
        class_names (`Sequence[str]`):
            Names of the classes, at least 2, in the order of their indices.
        ignore_index (`int`, *optional*, defaults to 255):
            Label of pixels that do not count. Not the index of a class.

    Raises:
        `ValueError`: If there are fewer than 2 names, one occurs twice, or `ignore_index` is the index of a class.

    Example:

    ```python
    >>> metrics = ClassMetrics(["road", "sky", "tree"])
    >>> for predicted, labels in label_maps:
    ...     of_this_image = metrics.update(predicted, labels)
    >>> metrics.compute()["mean_iou"]
    ```
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int = 255) -> None:
        names = list(class_names)
        if len(names) < 2:
            raise ValueError(f"class_names is {names}; at least 2 classes are needed.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"class_names has {', '.join(twice)} twice; every class needs a name of its own.")
        if 0 <= ignore_index < len(names):
            raise ValueError(f"ignore_index is {ignore_index}, which is the class {names[ignore_index]}.")
        self.class_names = names
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        """Forget all that was added."""
        count = len(self.class_names)
        self.num_images = 0
        self._pixels = torch.zeros(count, count, dtype=torch.long)  # true class by predicted class
        # The same of boundaries, with one more class for pixels that are on none.
        self._boundaries = torch.zeros(count + 1, count + 1, dtype=torch.long)

    def update(self, predicted: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor) -> dict:
        """Add one image.

        Args:
            predicted (`np.ndarray` or `torch.Tensor` of shape `(height, width)`, integers):
                The predicted class of each pixel.
            labels (`np.ndarray` or `torch.Tensor` of shape `(height, width)`, integers):
                The true class, or `ignore_index`.

        Returns:
            `dict`: What [`ClassMetrics.compute`] returns, of this image alone.

        Raises:
            `ValueError`: If the shapes differ or a value is no class. Nothing is changed then.
        """
        predicted, labels = self._checked(predicted, labels)
        count, ignored = len(self.class_names), labels == self.ignore_index
        width = max(1, round(BOUNDARY_WIDTH * math.hypot(*labels.shape)))
        edges = [np.where(_near_contour(each, ignored, width), each, count) for each in (predicted, labels)]
        edges[1][ignored] = self.ignore_index
        matrices = [
            multiclass_confusion_matrix(
                *map(torch.from_numpy, maps), num_classes, ignore_index=self.ignore_index, validate_args=False
            )
            for maps, num_classes in (((predicted, labels), count), (edges, count + 1))
        ]
        self._pixels += matrices[0]
        self._boundaries += matrices[1]
        self.num_images += 1
        return {"num_images": 1, **self._summary(*matrices)}

    def merge(self, other: "ClassMetrics") -> None:
        """Take in what another object measured on other images, for instance on another process.

        Args:
            other ([`ClassMetrics`]):
                Of the same classes and ignored label.

        Raises:
            `ValueError`: If these differ. Nothing is changed then.
        """
        for setting in ("class_names", "ignore_index"):
            mine, theirs = vars(self)[setting], vars(other)[setting]
            if mine != theirs:
                raise ValueError(f"{setting} differs: {mine} here, {theirs} in the metrics to merge.")
        self._pixels += other._pixels
        self._boundaries += other._boundaries
        self.num_images += other.num_images

    def compute(self) -> dict:
        """Everything added so far; it stays, see [`ClassMetrics.reset`].

        Returns:
            `dict`: `num_images`, `mean_iou`, `pixel_accuracy`, `boundary_iou` (`float`), and `per_class`: the name of
            each class → its `iou`, `dice` and `boundary_iou`. `nan` where undefined; all are if no pixel counts.

        Raises:
            `ValueError`: If no image was added.
        """
        if not self.num_images:
            raise ValueError("No image was measured yet; call update first.")
        return {"num_images": self.num_images, **self._summary(self._pixels, self._boundaries)}

    def _summary(self, pixels: torch.Tensor, boundaries: torch.Tensor) -> dict:
        iou, dice = _ratios(pixels)
        boundary_iou = _ratios(boundaries)[0][:-1]
        of_classes = zip(iou.tolist(), dice.tolist(), boundary_iou.tolist(), strict=True)
        return {
            "mean_iou": iou.nanmean().item(),
            "pixel_accuracy": (pixels.diagonal().sum().double() / pixels.sum()).item(),
            "boundary_iou": boundary_iou.nanmean().item(),
            "per_class": {
                name: dict(zip(("iou", "dice", "boundary_iou"), values, strict=True))
                for name, values in zip(self.class_names, of_classes, strict=True)
            },
        }

    def _checked(
        self, predicted: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        maps = {}
        for what, values in (("prediction", predicted), ("label map", labels)):
            array = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
            if array.ndim != 2 or array.dtype.kind not in "iu":
                raise ValueError(
                    f"A {what} of type {array.dtype} and shape {array.shape}; needed are integers (height, width)."
                )
            maps[what] = array.astype(np.int64)
        predicted, labels = maps.values()
        if predicted.shape != labels.shape:
            raise ValueError(f"The prediction is {predicted.shape}, the label map {labels.shape}: they must be alike.")
        counted = labels != self.ignore_index
        for what, array in maps.items():
            wrong = np.unique(array[counted & ((array < 0) | (array >= len(self.class_names)))]).tolist()
            if wrong:
                raise ValueError(
                    f"A {what} has the values {', '.join(map(str, wrong[:8]))}; allowed are 0 to "
                    f"{len(self.class_names) - 1}" + (f", and {self.ignore_index} for pixels that do not count."
                    if what == "label map" else ".")
                )  # fmt: skip
        return predicted, labels


def _near_contour(classes: np.ndarray, ignored: np.ndarray, width: int) -> np.ndarray:
    """The pixels with one of another class, or the border of the image, within a square of `width` on each side.

    For each class these are its pixels but those that are left after `width` erosions by a square of 3 x 3, as in
    Cheng et al.; ignored pixels are of the same class as whatever lies beside them.
    """
    size, limits = 2 * width + 1, np.iinfo(np.int32)
    highest = ndimage.maximum_filter(np.where(ignored, limits.min, classes).astype(np.int32), size, mode="nearest")
    lowest = ndimage.minimum_filter(np.where(ignored, limits.max, classes), size, mode="nearest")
    near = highest != lowest
    for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        near[edge] = True
    return near


def _ratios(confusion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and Dice of each class, `nan` (0 / 0) where it does not occur."""
    both, sizes = confusion.diagonal().double(), confusion.sum(0) + confusion.sum(1)
    return both / (sizes - both), 2 * both / sizes
