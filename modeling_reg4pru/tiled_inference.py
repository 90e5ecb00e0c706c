"""Images of any size through the model, in batches of tiles: class scores, and where tokens were pruned."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.image_utils import ImageInput

from .image_budget import BUDGET_TILES, shares_budget
from .image_tiles import StageBlender, TileBlender, TiledImage, most_probable, tile_probabilities


@dataclass
class ImagePrediction:
    """
    What the model predicted for an image.

    Args:
        probabilities (`torch.Tensor` of shape `(num_labels, height, width)`, `float32`):
            As [`Reg4PruImageProcessor.post_process_probabilities`] gives them, at the image's own size.
        stages (`torch.Tensor` of shape `(height, width)`, `uint8`, *optional*):
            The stage at which the token of each pixel was pruned, see [`pruning_stages`]. Where tiles overlap, the
            stage is that of the tile in whose middle the pixel lies.
        num_tiles (`int`): Number of tiles that the image was cut into.
        num_tokens (`int`): Number of tokens that the layers ran on, summed over layers and tiles.
    """

    probabilities: torch.Tensor
    stages: torch.Tensor | None
    num_tiles: int
    num_tokens: int

    @property
    def foreground_probability(self) -> torch.Tensor:
        """
        Of two classes the probability of the second, `(height, width)`: above one half where it is the
        [`segmentation`]. Of many queries it is the share of the scores, which do not sum to 1.
        """
        foreground, total = self.probabilities[1], self.probabilities.sum(dim=0)
        share = foreground / total.clamp_min(torch.finfo(total.dtype).tiny)
        # Those of a single query do, but for rounding, and stay as they are.
        return torch.where((total - 1).abs() < 1e-5, foreground, share)

    @property
    def segmentation(self) -> torch.Tensor:
        """The class of every pixel, `(height, width)`, `int64`; with many queries 255 where a pixel mask was 0."""
        return most_probable(self.probabilities)


def predict_image(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    image: ImageInput | TiledImage,
    keep_rates: float | Sequence[float] | str | None = "config",
    *,
    pixel_mask: ImageInput | None = None,
    batch_size: int = 4,
    output_stages: bool = False,
) -> ImagePrediction:
    """
    The prediction for one image, see [`predict_images`]; nothing is shown where `pixel_mask`, of the size of the
    upright image, is 0.
    """
    _check_processor(processor)
    if pixel_mask is not None:
        if isinstance(image, TiledImage):
            raise ValueError("The image is cut already: give its mask to `cut_image`, and no `pixel_mask`.")
        image = processor.cut_image(image, pixel_mask)
    return next(
        predict_images(model, processor, [image], keep_rates, batch_size=batch_size, output_stages=output_stages)
    )


def predict_images(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    images: Iterable[ImageInput | TiledImage],
    keep_rates: float | Sequence[float] | str | None = "config",
    *,
    batch_size: int = 4,
    output_stages: bool = False,
) -> Iterator[ImagePrediction]:
    """
    Predictions for images of any size, each as soon as its last tile has been predicted.

    The result of processor, model and post-processing one after another, but with at most `batch_size` tiles in memory
    at a time, and with tiles of several small images in a batch.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): The model. Its training mode is left as it was.
        processor ([`Reg4PruImageProcessor`]): Its image processor.
        images (iterable of `PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `str`, `os.PathLike` or [`TiledImage`]):
            The images, or where they are: paths, URLs, or images in base64. One that is predicted several times can be
            given as what [`Reg4PruImageProcessor.cut_image`] made of it.
        keep_rates (`float`, sequence of `float` or `None`, *optional*, defaults to `"config"`):
            As in the model's forward: `None` switches pruning off, `"config"` takes those of the configuration.
        batch_size (`int`, *optional*, defaults to 4): Tiles per forward pass. Where tiles of an image share a budget
            (`allocation="image"`, and a keep rate below 1), all of them are in one pass, up to `BUDGET_TILES`; a
            larger image has a budget for every so many.
        output_stages (`bool`, *optional*, defaults to `False`): Whether to return where tokens were pruned.

    Yields:
        [`ImagePrediction`]: one per image, in their order.

    Raises:
        `ValueError`: if the batch size is not positive, or the image processor is that of another model.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}: it must be at least 1.")
    _check_processor(processor)
    return _predict(model, processor, images, keep_rates, batch_size, output_stages)


def _check_processor(processor: BaseImageProcessor) -> None:
    # By name: a class whose code came with the checkpoint is another object than the same class from elsewhere.
    if all(base.__name__ != "Reg4PruImageProcessor" for base in type(processor).__mro__):
        raise ValueError(
            f"The image processor is a {type(processor).__name__}, which cuts tiles of its own kind: use a "
            "Reg4PruImageProcessor, as in `Reg4PruImageProcessor(size={'height': 640, 'width': 640}, "
            "working_size=<longest side in pixels>, image_mean=..., image_std=...)`."
        )


def _predict(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    images: Iterable[ImageInput | TiledImage],
    keep_rates: float | Sequence[float] | str | None,
    batch_size: int,
    output_stages: bool,
) -> Iterator[ImagePrediction]:
    open_images: list[_Collector] = []  # those some of whose tiles are still to come, in their order
    batch: list[tuple[np.ndarray, np.ndarray | None, _Collector, torch.Tensor]] = []
    by_image = shares_budget(model.config, keep_rates)
    at_once = BUDGET_TILES if by_image else batch_size
    for image in images:
        tiled = image if isinstance(image, TiledImage) else processor.cut_image(image)
        collector = _Collector(tiled.patch_offsets, output_stages)
        open_images.append(collector)
        for index, (row, tile) in enumerate(zip(tiled.patch_offsets, tiled, strict=True)):
            batch.append((tile, tiled.pixel_mask(index), collector, row))
            if len(batch) == at_once or (by_image and len(batch) == collector.num_missing):
                _run(model, batch, keep_rates, output_stages)
                batch = []
                while open_images and not open_images[0].num_missing:
                    yield open_images.pop(0).result()
    if batch:
        _run(model, batch, keep_rates, output_stages)
    for collector in open_images:
        yield collector.result()


class _Collector:
    """What has been predicted so far for the tiles of one image."""

    def __init__(self, patch_offsets: torch.Tensor, output_stages: bool):
        self.blender = TileBlender(patch_offsets)
        self.stages = StageBlender(patch_offsets) if output_stages else None
        self.num_tiles = self.num_missing = len(patch_offsets)
        self.num_tokens = 0

    def result(self) -> ImagePrediction:
        stages = None if self.stages is None else self.stages.result()
        return ImagePrediction(self.blender.result(), stages, self.num_tiles, self.num_tokens)


@torch.inference_mode()
def _run(
    model: PreTrainedModel,
    batch: list[tuple[np.ndarray, np.ndarray | None, _Collector, torch.Tensor]],
    keep_rates: float | Sequence[float] | str | None,
    output_stages: bool,
) -> None:
    """A batch of tiles through the model, and what comes out to the images that they belong to."""
    pixel_values = torch.from_numpy(np.stack([tile for tile, *_ in batch]))
    masks = {}
    if any(mask is not None for _, mask, *_ in batch):
        filled = [np.ones(tile.shape[1:], bool) if mask is None else mask for tile, mask, *_ in batch]
        masks["pixel_mask"] = torch.from_numpy(np.stack(filled)).to(model.device)
    training = [module for module in model.modules() if module.training]  # some of them may be frozen
    model.eval()
    try:
        outputs = model(
            pixel_values=pixel_values.to(model.device, model.dtype),
            keep_rates=keep_rates,
            output_keep_masks=output_stages,
            patch_offsets=torch.stack([row for *_, row in batch]).to(model.device),
            **masks,
        )
    finally:
        for module in training:
            module.training = True
    num_tokens = outputs.token_counts.sum(dim=0).expand(len(batch)).tolist()
    for index, (tile, _, collector, row) in enumerate(batch):
        collector.blender.add(row, tile_probabilities(outputs, index, tile.shape[-2:]))
        if output_stages and outputs.keep_masks is not None:  # None: a model without pruning stages
            collector.stages.add(row, pruning_stages(outputs.keep_masks[index]))
        collector.num_missing -= 1
        collector.num_tokens += num_tokens[index]


def pruning_stages(keep_masks: torch.Tensor) -> torch.Tensor:
    """
    The stage at which each token was pruned, counted from 0, and `num_stages` where it is active after the last one.
    With the selection pool `all` a token can come back; then the stage is the one at which it left for good.

    Args:
        keep_masks (`torch.Tensor` of shape `(num_stages, rows, columns)`, `bool`): True for active tokens.

    Returns:
        `torch.Tensor` of shape `(rows, columns)`, `int64`.
    """
    after = torch.arange(1, keep_masks.shape[0] + 1, device=keep_masks.device)[:, None, None]
    return (keep_masks * after).amax(dim=0)


__all__ = ["ImagePrediction", "predict_image", "predict_images", "pruning_stages"]
