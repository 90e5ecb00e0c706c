"""The metrics of any number of classes as a module of the `evaluate` library.

From a checkout: `evaluate.load("datasets_fives/metrics/segmentation_metrics.py", class_names=[...])`. From a Space,
which holds this file beside the one that it imports (see `space.py`): `evaluate.load("<user>/segmentation_metrics",
class_names=[...])`. `evaluate` finds the other file by reading the import line below.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .class_metrics import ClassMetrics

_DESCRIPTION = """
Metrics of semantic segmentation over the pixels of a test set: mean IoU, pixel accuracy, boundary IoU (2 % of the
diagonal), and IoU, Dice and boundary IoU of every class.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: one predicted label map (height, width) of integers per image; sizes may differ.
    references: one label map (height, width) of integers per image, 255 (ignore_index) where pixels do not count.
Returns:
    num_images, mean_iou, pixel_accuracy, boundary_iou, and per_class {name: {iou, dice, boundary_iou}}.
"""

_CITATION = """
@inproceedings{cheng2021boundary,
  title={Boundary {IoU}: Improving Object-Centric Image Segmentation Evaluation},
  author={Cheng, Bowen and Girshick, Ross and Doll{\\'a}r, Piotr and Berg, Alexander C. and Kirillov, Alexander},
  booktitle={CVPR}, year={2021}}
"""


class SegmentationMetricsModule(evaluate.Metric):
    """`add`, `add_batch` and `compute` of `evaluate`, on [`ClassMetrics`].

    `evaluate` stores every prediction until `compute`; here each image is measured as it is added and then let go, and
    images of different sizes may be mixed.

    Args:
        class_names (`Sequence[str]`), ignore_index (`int`, *optional*, defaults to 255):
            See [`ClassMetrics`]; both are keywords of `evaluate.load`.
        kwargs:
            Those of `evaluate.Metric`.

    Raises:
        `ValueError`: If there are no names of classes, a setting is wrong, or for `num_process` above 1: nothing is
        written to files that other processes could read.
    """

    def __init__(self, class_names: Sequence[str] = (), ignore_index: int = 255, **kwargs) -> None:
        if kwargs.get("num_process", 1) != 1:
            raise ValueError(f"num_process is {kwargs['num_process']}; this module measures in one process.")
        self._metrics = ClassMetrics(class_names, ignore_index)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int32")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def __len__(self) -> int:
        return self._metrics.num_images

    def add(self, *, prediction: np.ndarray, reference: np.ndarray) -> None:
        """Measure one image."""
        self._metrics.update(np.asarray(prediction), np.asarray(reference))

    def add_batch(self, *, predictions: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> None:
        """Measure several images; if one of them cannot be measured, none is added."""
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions, but {len(references)} references.")
        batch = ClassMetrics(self._metrics.class_names, self._metrics.ignore_index)
        for prediction, reference in zip(predictions, references, strict=True):
            batch.update(np.asarray(prediction), np.asarray(reference))
        self._metrics.merge(batch)

    def compute(
        self, *, predictions: Sequence[np.ndarray] | None = None, references: Sequence[np.ndarray] | None = None
    ) -> dict:
        """Measure what is given, if anything, return the metrics of all that was added, and begin anew."""
        if (predictions is None) != (references is None):
            missing = "predictions" if predictions is None else "references"
            raise ValueError(f"{missing} are missing; predictions and references come together.")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        result = self._metrics.compute()
        self._metrics.reset()
        return result
