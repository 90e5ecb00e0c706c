"""The vessel metrics as a module of the `evaluate` library.

From a checkout: `evaluate.load("datasets_fives/metrics/vessel_metrics.py")`. From a Space, which holds this file
beside those that it imports (see `space.py`): `evaluate.load("<user>/vessel_metrics")`. `evaluate` finds the other
files by reading the import lines below, and no others, so all of them must be imported here, each on one line.
"""

from collections.abc import Mapping, Sequence

import datasets
import evaluate
import numpy as np

from .accumulator import VesselMetrics
from .image_counts import CALIBRATION_BINS

_DESCRIPTION = f"""
Metrics of binary vessel segmentation: average precision, AUROC, Dice, IoU, precision, recall, clDice, boundary IoU,
recall on the vessel centre lines, MCC, errors of the Betti numbers 0 and 1, and calibration error ({CALIBRATION_BINS}
bins); pooled over pixels, per image (mean, sd), per condition and per group; and the threshold with the highest Dice.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: one image of vessel probabilities (height, width), 0 to 1, per image; sizes may differ.
    references: one binary mask (height, width), 0 and 1, per image.
    names (optional): one name per image, each used once; numbered from 0 if left out.
    conditions (optional): one group per image, for the results by condition.
    fields_of_view (optional): one binary image (height, width) per image; only the pixels inside count.
    groups (optional): one dict per image of further groups it belongs to, such as {"blur": "0"}.
Returns:
    num_images, pooled {metric: value}, per_image {metric: {mean, sd, num_images}}, best_threshold, best_dice,
    per_condition {condition: the same five} and per_group {group: {value: the same five}}.
"""

_CITATION = """
@inproceedings{shit2021cldice,
  title={clDice -- a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation},
  author={Shit, Suprosanna and Paetzold, Johannes C. and Sekuboyina, Anjany and Ezhov, Ivan and Unger, Alexander and
          Zhylka, Andrey and Pluim, Josien P. W. and Bauer, Ulrich and Menze, Bjoern H.},
  booktitle={CVPR}, year={2021}}
@inproceedings{cheng2021boundary,
  title={Boundary {IoU}: Improving Object-Centric Image Segmentation Evaluation},
  author={Cheng, Bowen and Girshick, Ross and Doll{\\'a}r, Piotr and Berg, Alexander C. and Kirillov, Alexander},
  booktitle={CVPR}, year={2021}}
"""


class VesselMetricsModule(evaluate.Metric):
    """`add`, `add_batch` and `compute` of `evaluate`, on [`VesselMetrics`].

    `evaluate` stores every prediction until `compute`; images of 2048² would need gigabytes. Here each image is
    measured as it is added and then let go, so that only numbers stay, and images of different sizes may be mixed.

    Args:
        threshold (`float`, *optional*, defaults to 0.5):
            See [`VesselMetrics`], as for the next one; both are keywords of `evaluate.load`.
        boundary_width (`int`, *optional*):
            Width in pixels for boundary IoU.
        kwargs:
            Those of `evaluate.Metric`.

    Raises:
        `ValueError`: If a setting is out of range, or for `num_process` above 1: nothing is written to files that
        other processes could read. Use [`VesselMetrics.merge`] there.
    """

    def __init__(self, threshold: float = 0.5, boundary_width: int | None = None, **kwargs) -> None:
        if kwargs.get("num_process", 1) != 1:
            raise ValueError(
                f"num_process is {kwargs['num_process']}; this module measures in one process. Measure with "
                "VesselMetrics in each process and combine by VesselMetrics.merge."
            )
        self._settings = {"threshold": threshold, "boundary_width": boundary_width}
        self._metrics = VesselMetrics(**self._settings)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
                    "references": datasets.Sequence(datasets.Sequence(datasets.Value("uint8"))),
                }
            ),
        )

    def __len__(self) -> int:
        return len(self._metrics.rows)

    def add(
        self,
        *,
        prediction: np.ndarray,
        reference: np.ndarray,
        name: str | None = None,
        condition: str | None = None,
        field_of_view: np.ndarray | None = None,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        """Measure one image."""
        name = str(len(self)) if name is None else name
        self._metrics.update(name, condition, prediction, reference, field_of_view, groups)

    def add_batch(
        self,
        *,
        predictions: Sequence[np.ndarray],
        references: Sequence[np.ndarray],
        names: Sequence[str] | None = None,
        conditions: Sequence[str] | None = None,
        fields_of_view: Sequence[np.ndarray] | None = None,
        groups: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        """Measure several images; if one of them cannot be measured, none is added."""
        count = len(predictions)
        columns = {
            "names": [str(len(self) + i) for i in range(count)] if names is None else names,
            "conditions": [None] * count if conditions is None else conditions,
            "predictions": predictions,
            "references": references,
            "fields_of_view": [None] * count if fields_of_view is None else fields_of_view,
            "groups": [None] * count if groups is None else groups,
        }
        for key, column in columns.items():
            if len(column) != count:
                raise ValueError(f"{count} predictions, but {len(column)} {key}.")
        batch = VesselMetrics(**self._settings)
        for image in zip(*columns.values(), strict=True):
            batch.update(*image)
        self._metrics.merge(batch)

    def compute(
        self,
        *,
        predictions: Sequence[np.ndarray] | None = None,
        references: Sequence[np.ndarray] | None = None,
        names: Sequence[str] | None = None,
        conditions: Sequence[str] | None = None,
        fields_of_view: Sequence[np.ndarray] | None = None,
        groups: Sequence[Mapping[str, str]] | None = None,
    ) -> dict:
        """Measure what is given, if anything, return the metrics of all that was added, and begin anew."""
        if (predictions is None) != (references is None):
            missing = "predictions" if predictions is None else "references"
            raise ValueError(f"{missing} are missing; predictions and references come together.")
        if predictions is not None:
            self.add_batch(
                predictions=predictions,
                references=references,
                names=names,
                conditions=conditions,
                fields_of_view=fields_of_view,
                groups=groups,
            )
        if not len(self):
            raise ValueError("No image was measured; call add or add_batch before compute, or pass predictions to it.")
        result = self._metrics.compute()
        self._metrics = VesselMetrics(**self._settings)
        return result
