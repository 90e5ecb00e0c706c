"""Metrics of whole images while training: one ruler for `reg4pru train` and for `Trainer`."""

import logging
import math

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAveragePrecision, BinaryF1Score, BinaryJaccardIndex
from transformers import EvalPrediction

from datasets_fives.masks import check_labels
from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.image_budget import budget_groups
from modeling_reg4pru.image_tiles import TileBlender, TiledImage, cut_tile
from modeling_reg4pru.label_maps import IGNORE_INDEX, resize_label_map

logger = logging.getLogger(__name__)

# `label_names` of `TrainingArguments`: what `Trainer` hands on to the two functions below beside the logits.
LABEL_NAMES = ["labels", "patch_offsets"]


class ImageTiles(torch.utils.data.Dataset):
    """
    The tiles of images as the image processor cuts them everywhere else, one image after another.

    Args:
        rows (`Dataset`): Images as [`~datasets_fives.load_vessels`] gives them.
        processor ([`Reg4PruImageProcessor`]): Of the model.
        allocation (`str`, *optional*, defaults to `"tile"`): That of the model. With `"image"` batches must be of
            `batch_size`: then each holds the tiles that share a budget, and where these are fewer, tiles that show
            nothing, each an image of its own without a pixel that counts. So batches are equally large in all
            processes, none of which gets a part of a budget.

    Attributes:
        batch_size (`int` or `None`): Tiles that batches must have; `None`: any number.

    Raises:
        `ValueError`: for masks that are no vessel masks of {0, 1, 255}.

    Returns:
        `dict` (when indexed): `pixel_values` `(3, tile, tile)`, `labels` `(tile, tile)`, 255 beyond the image,
        and `patch_offsets` `(9,)`.
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
        for row, mask in enumerate(rows["mask"]):
            check_labels(np.asarray(mask), f"The mask of validation image {row}")
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
            labels = resize_label_map(np.asarray(row["mask"]), *tiles.patch_offsets[0, 4:6].tolist(), num_labels=2)
            self._opened = image, tiles, labels
        return self._opened[1:]


def vessel_probability(logits: torch.Tensor, labels: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """
    One probability a pixel, at the size of the labels; `preprocess_logits_for_metrics` of `Trainer`.

    Args:
        logits (`torch.Tensor` of shape `(batch, 2, map_height, map_width)`): Of the model.
        labels (`torch.Tensor` of shape `(batch, height, width)`, or a tuple that begins with it): Label maps.
    """
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
    [`PixelMetrics`] of images at their working size, whose tiles come in batches, in the order of
    [`ImageTiles`], and are blended as they are in every prediction.

    Args:
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX):
        self.metrics, self.ignore_index = PixelMetrics(ignore_index), ignore_index
        self._blender: TileBlender | None = None

    def update(self, probability: torch.Tensor, labels: torch.Tensor, patch_offsets: torch.Tensor) -> None:
        """
        Add a batch of tiles.

        Args:
            probability (`torch.Tensor` of shape `(batch, tile, tile)`): Vessel probability.
            labels (`torch.Tensor` of shape `(batch, tile, tile)`): Label maps.
            patch_offsets (`torch.Tensor` of shape `(batch, 9)`): Where the tiles lie.
        """
        self.metrics.to(probability.device)
        for tile, label_map, row in zip(probability, labels.cpu(), patch_offsets.cpu(), strict=True):
            if not row[1:3].any():  # the first tile of an image lies at (0, 0)
                self._end_image()
                self._blender = TileBlender(row[None])
                self._labels = torch.full(self._blender.frame_size, self.ignore_index)
            frame, inside = self._blender.place(row)
            self._blender.add(row, tile[None])
            self._labels[frame] = label_map[inside]

    def compute(self) -> dict[str, float]:
        """`ap`, `dice` and `iou` of all that was added, NaN where it has no vessels; then it starts again."""
        self._end_image()
        dice = self.metrics["dice"]
        if dice.tp + dice.fn:
            results = {name: value.item() for name, value in self.metrics.compute().items()}
        else:
            logger.warning("The validation images have no vessels: ap, dice and iou are undefined.")
            results = dict.fromkeys(self.metrics, math.nan)
        self.metrics.reset()
        return results

    def _end_image(self) -> None:
        if self._blender is not None:
            blended = self._blender.result(self._blender.frame_size)[0]
            device = self.metrics["ap"].device
            self.metrics.update(blended.to(device), self._labels.to(device))
            self._blender = None


class StreamingMetrics:
    """
    `compute_metrics` of `Trainer` with `batch_eval_metrics=True` and `label_names=LABEL_NAMES`:
    [`ImageMetrics`] of [`ImageTiles`].
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX):
        self.metrics = ImageMetrics(ignore_index)

    def __call__(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        probability, (labels, patch_offsets) = prediction
        self.metrics.update(probability, labels, patch_offsets)
        return self.metrics.compute() if compute_result else {}
