"""Metrics of whole images while training: one ruler for `reg4pru train` and for `Trainer`."""

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAveragePrecision, BinaryF1Score, BinaryJaccardIndex
from transformers import EvalPrediction

from datasets_fives import class_names
from datasets_fives.class_names import BINARY
from datasets_fives.masks import check_classes, check_labels
from datasets_fives.metrics import ClassMetrics
from datasets_fives.metrics.evaluation import imaged_area
from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.image_budget import budget_groups
from modeling_reg4pru.image_tiles import TileBlender, TiledImage, cut_tile
from modeling_reg4pru.label_maps import IGNORE_INDEX, resize_label_map

logger = logging.getLogger(__name__)

# `label_names` of `TrainingArguments`: what `Trainer` hands on to the two functions below beside the logits.
LABEL_NAMES = ["labels", "patch_offsets"]
# What is measured of two classes, and of more; the first decides which state of a training is the best.
BINARY_METRICS = ("ap", "dice", "iou")
CLASS_METRICS = ("mean_iou", "pixel_accuracy", "boundary_iou")


def metric_names(num_labels: int) -> tuple[str, ...]:
    """What is measured of so many classes; the first metric chooses the best state of a training."""
    return BINARY_METRICS if num_labels == 2 else CLASS_METRICS


class ImageTiles(torch.utils.data.Dataset):
    """
    The tiles of images as the image processor cuts them everywhere else, one image after another.

    Args:
        rows (`Dataset`): Images as [`~datasets_fives.load_segmentation`] gives them.
        processor ([`Reg4PruImageProcessor`]): Of the model.
        allocation (`str`, *optional*, defaults to `"tile"`): That of the model. With `"image"` batches must be of
            `batch_size`: then each holds the tiles that share a budget, and where these are fewer, tiles that show
            nothing, each an image of its own without a pixel that counts. So batches are equally large in all
            processes, none of which gets a part of a budget.

    Attributes:
        batch_size (`int` or `None`): Tiles that batches must have; `None`: any number.

    Raises:
        `ValueError`: for masks that hold anything but the classes of the rows and 255.

    Returns:
        `dict` (when indexed): `pixel_values` `(3, tile, tile)`, `labels` `(tile, tile)`, 255 beyond the image and, of
        vessels, outside the field of view, and `patch_offsets` `(9,)`.
    """

    def __init__(self, rows: Dataset, processor: Reg4PruImageProcessor, allocation: str = "tile"):
        self.rows, self.processor = rows, processor
        offsets = [processor.cut_image(image).patch_offsets for image in rows["image"]]
        self.places: list[tuple[int, int] | None] = []
        self.batch_size = None
        if allocation == "image":
            self.batch_size = max(size for one in offsets for size in budget_groups(one))
        for row, one in enumerate(offsets):
            self.places += [(row, tile) for tile in range(len(one))]
            if self.batch_size is not None:
                self.places += [None] * (-len(one) % self.batch_size)
        names = class_names(rows)
        self.num_labels, self.is_of_vessels = len(names), names == list(BINARY)
        for row, mask in enumerate(rows["mask"]):
            if self.num_labels == 2:
                check_labels(np.asarray(mask), f"The mask of validation image {row}")
            else:
                check_classes(np.asarray(mask), self.num_labels, f"The label map of validation image {row}")
        self._opened: tuple[int, TiledImage, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self.places[index] is None:
            return self._empty_tile()
        image, tile = self.places[index]
        tiles, labels = self._open(image)
        offsets = tiles.patch_offsets[tile]
        _, top, left, size, *_ = offsets.tolist()
        return {
            "pixel_values": torch.from_numpy(tiles[tile]),
            "labels": torch.from_numpy(cut_tile(labels, top, left, size, fill=IGNORE_INDEX).astype(np.int64)),
            "patch_offsets": offsets,
        }

    def _empty_tile(self) -> dict[str, torch.Tensor]:
        size = self.processor.size.height
        return {
            "pixel_values": torch.zeros(3, size, size),
            "labels": torch.full((size, size), IGNORE_INDEX),
            "patch_offsets": torch.tensor((0, 0, 0, *[size] * 5, 0)),
        }

    def _open(self, image: int) -> tuple[TiledImage, np.ndarray]:
        """The last image is kept: tiles are asked for in their order."""
        if self._opened is None or self._opened[0] != image:
            row = self.rows[image]
            tiles = self.processor.cut_image(row["image"])
            size = tiles.patch_offsets[0, 4:6].tolist()
            mask = np.asarray(row["mask"])
            if self.is_of_vessels:  # nothing counts outside the field of view, as in `reg4pru evaluate`
                mask = np.where(imaged_area(row), mask, np.uint8(IGNORE_INDEX))
            labels = resize_label_map(mask, *size, num_labels=self.num_labels)
            self._opened = image, tiles, labels
        return self._opened[1:]


def tile_predictions(logits: torch.Tensor, labels: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """
    What [`ImageMetrics`] takes of the logits of tiles; `preprocess_logits_for_metrics` of `Trainer`.

    Args:
        logits (`torch.Tensor` of shape `(batch, num_labels, map_height, map_width)`): Of the model.
        labels (`torch.Tensor` of shape `(batch, height, width)`, or a tuple that begins with it): Label maps.

    Returns:
        `torch.Tensor`: of two classes the probability of the second, at the size of the labels, `(batch, height,
        width)`; of more the logits themselves, which are smaller.
    """
    if logits.shape[1] > 2:
        return logits.float()
    size = (labels if isinstance(labels, torch.Tensor) else labels[0]).shape[-2:]
    return F.interpolate(logits.float(), size=size, mode="bilinear").softmax(1)[:, 1]


class PixelMetrics(MetricCollection):
    """
    `ap`, `dice` and `iou` over all pixels but those of `ignore_index`. Nothing is kept of a batch: exact average
    precision would need every pixel at once. Its thresholds are even in logits, as those of
    [`~datasets_fives.metrics.accumulator.VesselMetrics`], and so tell the pixels of a young model apart, too, whose
    probabilities are all small. What is added is gathered from all processes already.
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX):
        common = {"ignore_index": ignore_index, "sync_on_compute": False}
        thresholds = torch.linspace(-12, 12, 1000).sigmoid()
        super().__init__(
            {
                "ap": BinaryAveragePrecision(thresholds, **common),
                "dice": BinaryF1Score(**common),
                "iou": BinaryJaccardIndex(**common),
            },
            compute_groups=False,
        )


class ImageMetrics:
    """
    Metrics of images at their working size, whose tiles come in batches, in the order of [`ImageTiles`], and are
    blended as they are in every prediction: [`PixelMetrics`] of two classes,
    [`~datasets_fives.metrics.ClassMetrics`] of more.

    Args:
        names (`Sequence[str]`, *optional*, defaults to `("background", "vessel")`): The classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.
    """

    def __init__(self, names: Sequence[str] = ("background", "vessel"), ignore_index: int = IGNORE_INDEX):
        self.names, self.ignore_index = list(names), ignore_index
        self.is_binary = len(self.names) == 2
        self.metrics = PixelMetrics(ignore_index) if self.is_binary else ClassMetrics(self.names, ignore_index)
        self._blender: TileBlender | None = None

    def update(self, predictions: torch.Tensor, labels: torch.Tensor, patch_offsets: torch.Tensor) -> None:
        """
        Add a batch of tiles.

        Args:
            predictions (`torch.Tensor`): From [`tile_predictions`].
            labels (`torch.Tensor` of shape `(batch, tile, tile)`): Label maps.
            patch_offsets (`torch.Tensor` of shape `(batch, 9)`): Where the tiles lie.
        """
        if self.is_binary:
            self.metrics.to(predictions.device)
        for tile, label_map, row in zip(predictions, labels.cpu(), patch_offsets.cpu(), strict=True):
            if not row[1:3].any():  # the first tile of an image lies at (0, 0)
                self._end_image()
                self._blender = TileBlender(row[None])
                self._labels = torch.full(self._blender.frame_size, self.ignore_index)
            frame, inside = self._blender.place(row)
            self._blender.add(row, self._scores(tile, label_map.shape))
            self._labels[frame] = label_map[inside]

    def compute(self) -> dict[str, float]:
        """The metrics ([`metric_names`]) of all that was added, NaN where undefined; then it starts again."""
        self._end_image()
        if not self.is_binary:
            measured = self.metrics.compute()
            results = {name: measured[name] for name in CLASS_METRICS}
        elif self.metrics["dice"].tp + self.metrics["dice"].fn:
            results = {name: value.item() for name, value in self.metrics.compute().items()}
        else:
            foreground = "vessels" if self.names[1] == "vessel" else self.names[1]
            logger.warning("The validation images have no %s: ap, dice and iou are undefined.", foreground)
            results = dict.fromkeys(self.metrics, math.nan)
        self.metrics.reset()
        return results

    def _scores(self, tile: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Class scores of every pixel, `(channels, *size)`; of two classes the one channel of the second."""
        if self.is_binary:
            return tile[None]
        return F.interpolate(tile[None], size=size, mode="bilinear")[0].exp()

    def _end_image(self) -> None:
        if self._blender is None:
            return
        blended = self._blender.result(self._blender.frame_size)
        self._blender = None
        if self.is_binary:
            device = self.metrics["ap"].device
            self.metrics.update(blended[0].to(device), self._labels.to(device))
        else:
            self.metrics.update(blended.argmax(0), self._labels)


class StreamingMetrics:
    """
    `compute_metrics` of `Trainer` with `batch_eval_metrics=True`, `label_names=LABEL_NAMES` and
    `preprocess_logits_for_metrics=tile_predictions`: [`ImageMetrics`] of [`ImageTiles`]; arguments as there.

    Raises:
        `ValueError`: when called, if one of these three is missing.
    """

    def __init__(self, names: Sequence[str] = ("background", "vessel"), ignore_index: int = IGNORE_INDEX):
        self.metrics = ImageMetrics(names, ignore_index)

    def __call__(self, prediction: EvalPrediction, compute_result: bool | None = None) -> dict[str, float]:
        predictions, targets = prediction.predictions, prediction.label_ids
        num_dimensions = 3 if self.metrics.is_binary else 4
        if compute_result is None or not isinstance(targets, tuple | list) or predictions.ndim != num_dimensions:
            raise ValueError(
                "Metrics of whole images take tiles batch by batch: give TrainingArguments batch_eval_metrics=True "
                f"and label_names={LABEL_NAMES}, and Trainer preprocess_logits_for_metrics=tile_predictions."
            )
        self.metrics.update(predictions, *targets)
        return self.metrics.compute() if compute_result else {}
