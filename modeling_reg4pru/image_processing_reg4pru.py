"""Image processor of Reg4Pru models, without torchvision: images to tiles, predictions of tiles to maps."""

import os
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import ModelOutput, TensorType, logging

from .image_reading import flat_list, flat_maps, is_floating, open_image, read_image
from .image_tiles import (
    TileBlender,
    TiledImage,
    cut_tile,
    most_probable,
    split_images,
    tile_grid,
    tile_probabilities,
)
from .label_maps import IGNORE_INDEX, fit_label_map, fit_pixel_mask

logger = logging.get_logger(__name__)

# The default of processors that were saved without `tile_overlap`.
_FORMER_OVERLAP = 0.25


class Reg4PruImageProcessorKwargs(ImagesKwargs, total=False):
    """Fields of [`Reg4PruImageProcessor`] beside those that all image processors have."""

    working_size: int | None
    tile_overlap: int | float | None
    do_split_image: bool
    do_reduce_labels: bool
    num_labels: int | None


class Reg4PruImageProcessor(PilBackend):
    r"""
    Scales images of any size to the scale that the model was trained at, cuts them into tiles of the model's input
    size, and blends what it predicts into maps of the images' own size.

    The aspect ratio is kept. Images smaller than a tile are padded by reflection. Label maps are cut alike; their
    padding is 255, the label to be ignored.

    Modifications: EoMT's processor scales the shorter side of an image to a tile and cuts along the longer one
    only; it turns label maps into lists of masks, and offers panoptic and instance results, which the
    `image-segmentation` pipeline would prefer. This one gives `labels` and semantic results only.

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"height": 1024, "width": 1024}`):
            Height and width of a tile in pixels, a square: the input size of the model.
        working_size (`int`, *optional*):
            Longest side in pixels to which an image is resized before it is cut. Unset, it keeps its resolution,
            or is resized to fit one tile if `do_split_image=False`.
        tile_overlap (`int` or `float`, *optional*):
            Least number of pixels that neighbouring tiles share, or as a `float` below 1 the part of a tile that they
            share; defaults to two ninths of a tile, with which tiles are few and their edges not seen in what is
            blended. A processor that was saved without it, as they were before, has a quarter.
        do_split_image (`bool`, *optional*, defaults to `True`):
            Whether to cut images that are larger than a tile.
        do_resize (`bool`, *optional*, defaults to `True`):
            Whether to resize images to their working size.
        num_labels (`int`, *optional*):
            Number of classes: with 2, masks with white foreground become {0, 1}.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether 0 in label maps means pixels to be ignored, and 1 becomes class 0.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std, resample (*optional*):
            As in every image processor.

    Example:

    ```python
    >>> processor = Reg4PruImageProcessor(size={"height": 1024, "width": 1024}, working_size=2048, num_labels=2)
    >>> inputs = processor(image, return_tensors="pt")
    >>> (vessels,) = processor.post_process_semantic_segmentation(model(**inputs))
    ```
    """

    valid_kwargs = Reg4PruImageProcessorKwargs
    model_input_names = ["pixel_values", "patch_offsets"]  # noqa: RUF012

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 1024, "width": 1024}  # noqa: RUF012
    default_to_square = True
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    working_size = None
    tile_overlap = None
    do_split_image = True
    do_reduce_labels = False
    num_labels = None

    def __init__(self, **kwargs: Unpack[Reg4PruImageProcessorKwargs]):
        super().__init__(**kwargs)
        self._validate_scale(self.size, self.working_size, self.tile_overlap, self.do_split_image)

    @classmethod
    def from_dict(cls, image_processor_dict: dict, **kwargs) -> "Reg4PruImageProcessor":
        """
        [`~transformers.BaseImageProcessor.from_dict`], with a warning where the configuration has no scale; one
        without an overlap was saved when the default was a quarter of a tile, and keeps it.
        """
        if "working_size" not in image_processor_dict and "working_size" not in kwargs:
            logger.warning(
                "The image processor's configuration does not say at which scale the model saw images: they keep "
                "their resolution. Set it with `from_pretrained(..., working_size=<longest side in pixels>)` "
                "(`working_size=None` for their own resolution) and save the processor."
            )
        return super().from_dict({"tile_overlap": _FORMER_OVERLAP, **image_processor_dict}, **kwargs)

    def to_dict(self) -> dict:
        """All fields; `working_size` and `tile_overlap` are among them even if they are `None`."""
        return {**super().to_dict(), "working_size": self.working_size, "tile_overlap": self.tile_overlap}

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        pixel_masks: ImageInput | None = None,
        **kwargs: Unpack[Reg4PruImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images (`ImageInput`):
                One or several images of any size: PIL images (their EXIF orientation is applied), arrays, tensors,
                paths or URLs; see [`read_image`].
            segmentation_maps (`ImageInput`, *optional*):
                Their masks or label maps, of the same size; see [`read_label_map`]. Two classes may be any two, so
                that a mask which is mostly foreground, maybe an inverted one, is taken as it is.
            pixel_masks (`ImageInput`, *optional*):
                For each image a mask of the same size, upright as the image is then, 0 where it shows nothing, as
                outside the field of view of a fundus image.
            kwargs: Fields of the processor that are to differ in this call, and `return_tensors`.

        Returns:
            `BatchFeature` with `pixel_values` `(num_tiles, 3, tile, tile)`; `patch_offsets` `(num_tiles, 9)`, `int64`,
            which the model hands on to post-processing: index of the image, top and left of the tile, its side,
            height and width of the image at its working size and of the image itself; with label maps, `labels`
            `(num_tiles, tile, tile)`, `int64`; and, with pixel masks, `pixel_mask` of the same shape, `bool`.

        Raises:
            `ValueError`: if an image, a label map or a pixel mask cannot be read, or they differ in size or number.
        """
        return super().preprocess(images, segmentation_maps, pixel_masks, **kwargs)

    def cut_image(
        self, image: ImageInput | os.PathLike, pixel_mask: ImageInput | os.PathLike | None = None
    ) -> TiledImage:
        """
        The tiles of one image, made one by one: those of a large image need not fit into memory.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `str` or `os.PathLike`): The image.
            pixel_mask (likewise, *optional*): A mask of the same size, upright, 0 where the image shows nothing.

        Returns:
            [`TiledImage`]: a sequence of `(3, tile, tile)` `float32` arrays, with `patch_offsets`.

        Raises:
            `ValueError`: if the image or its mask cannot be read, they differ in size, or fields that were set later
            do not fit.
        """
        return self._cut_image(image, 0, pixel_mask, **self._settings())

    def _settings(self) -> dict:
        """The fields, checked: they may have been set since the constructor saw them, `size` as a plain dictionary."""
        settings = {"input_data_format": None, **self._standardize_kwargs(**vars(self))}
        self._validate_preprocess_kwargs(**settings)
        return settings

    def _cut_image(
        self,
        image: ImageInput | os.PathLike,
        index: int,
        pixel_mask: ImageInput | os.PathLike | None = None,
        **settings,
    ) -> TiledImage:
        size, resample = settings["size"], settings["resample"]
        channels = settings["input_data_format"]
        if isinstance(image, (str, os.PathLike)):
            image = open_image(image)
        pixels = read_image(image, None if channels is None else channels == ChannelDimension.LAST)
        own_size = pixels.shape[:2]
        frame_size = self._frame_size(*own_size, **settings)
        if frame_size != own_size:
            pixels = np.asarray(Image.fromarray(pixels).resize(frame_size[::-1], resample))
        overlap = _overlap(size, settings["tile_overlap"])
        corners = tile_grid(*frame_size, size.height, overlap)
        offsets = [(index, top, left, size.height, *frame_size, *own_size, overlap) for top, left in corners]

        scale, shift = np.ones((3, 1, 1), np.float32), np.zeros((3, 1, 1), np.float32)
        if settings["do_rescale"]:
            scale *= settings["rescale_factor"]
        elif is_floating(image):  # such pixels are 0 to 1 already, and are to stay so
            scale /= 255
        if settings["do_normalize"]:
            mean, std = (np.reshape(settings[key], (-1, 1, 1)) for key in ("image_mean", "image_std"))
            scale, shift = (scale / std).astype(np.float32), (shift - mean / std).astype(np.float32)
        mask = None if pixel_mask is None else fit_pixel_mask(pixel_mask, own_size, frame_size)
        return TiledImage(pixels, torch.tensor(offsets), scale, shift, mask)

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        pixel_masks: ImageInput | None,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        flat = flat_list(images)
        masks = [None] * len(flat) if pixel_masks is None else flat_maps(pixel_masks, len(flat), "pixel masks")
        tiled = [
            self._cut_image(image, index, mask, **kwargs)
            for index, (image, mask) in enumerate(zip(flat, masks, strict=True))
        ]
        if not tiled:
            raise ValueError("There are no images to process.")
        offsets = torch.cat([tiles.patch_offsets for tiles in tiled])
        tile_size = kwargs["size"].height
        pixel_values = np.empty((len(offsets), 3, tile_size, tile_size), dtype=np.float32)
        for place, tile in zip(pixel_values, (tile for tiles in tiled for tile in tiles), strict=True):
            place[:] = tile
        data = {"pixel_values": pixel_values, "patch_offsets": offsets.numpy()}
        if pixel_masks is not None:
            data["pixel_mask"] = np.stack([tiles.pixel_mask(index) for tiles in tiled for index in range(len(tiles))])
        if segmentation_maps is not None:
            maps = flat_maps(segmentation_maps, len(tiled), "segmentation maps")
            labels = np.empty((len(offsets), tile_size, tile_size), dtype=np.int64)
            places = iter(labels)
            for label_map, tiles in zip(maps, tiled, strict=True):
                _, _, _, _, *sizes, _ = tiles.patch_offsets[0].tolist()
                fitted = fit_label_map(
                    label_map, sizes[2:], sizes[:2], kwargs["num_labels"], kwargs["do_reduce_labels"]
                )
                for _, top, left, *_ in tiles.patch_offsets.tolist():
                    next(places)[:] = cut_tile(fitted, top, left, tile_size, fill=IGNORE_INDEX)
            data["labels"] = labels
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _frame_size(
        self,
        height: int,
        width: int,
        *,
        size: SizeDict,
        working_size: int | None,
        do_resize: bool,
        do_split_image: bool,
        **kwargs,
    ) -> tuple[int, int]:
        """Height and width to which an image is resized before it is cut; its aspect ratio is kept."""
        longest = working_size
        if longest is None and not do_split_image:
            longest = size.height
        if do_resize and longest is not None:
            own = max(height, width)
            height, width = (max(1, round(side * longest / own)) for side in (height, width))
        if not do_split_image and max(height, width) > size.height:
            raise ValueError(
                f"An image of {height}x{width} pixels (height, width) does not fit a tile of {size.height}, and "
                "`do_split_image=False` forbids cutting it: set `do_resize=True`."
            )
        return height, width

    def _validate_preprocess_kwargs(self, **kwargs) -> None:
        scale = {key: kwargs[key] for key in ("size", "working_size", "tile_overlap", "do_split_image")}
        self._validate_scale(**scale)
        super()._validate_preprocess_kwargs(**kwargs)

    def _validate_scale(
        self, size: SizeDict, working_size: int | None, tile_overlap: int | float | None, do_split_image: bool
    ) -> None:
        if size.height is None or size.height != size.width or size.height < 1:
            raise ValueError(
                f"`size` is {dict(size)}: tiles are squares, as in {{'height': 1024, 'width': 1024}}; an image's "
                "longest side is `working_size`."
            )
        if working_size is not None and working_size < 1:
            raise ValueError(f"`working_size` is {working_size}: it must be at least 1, or None.")
        if not 0 <= _overlap(size, tile_overlap) < size.height:
            raise ValueError(
                f"`tile_overlap` is {tile_overlap}: tiles of side {size.height} (`size`) may share 0 to "
                f"{size.height - 1} pixels, or a part below 1."
            )
        if working_size is not None and working_size > size.height and not do_split_image:
            raise ValueError(
                f"`working_size` is {working_size} and `do_split_image=False`, but a tile has {size.height} pixels "
                "(`size`): allow to split, or lower the working size."
            )

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """
        Maps of classes from what the model predicted for tiles.

        Args:
            outputs ([`Reg4PruSemanticSegmenterOutput`]):
                Output of the model, with the `patch_offsets` that it was given.
            target_sizes (`list[tuple[int, int]]`, *optional*):
                Height and width that each map is to have; unset, those of the images. If the model was not given
                `patch_offsets`, every input is taken as the only tile of an image of this size, and without
                `target_sizes` the maps have the size of the logits.

        Returns:
            `list[torch.Tensor]`: for every image a `(height, width)` map of classes, `int64`, on the CPU.

        Raises:
            `ValueError`: if there are not as many sizes as images, or tiles are missing.
        """
        return [most_probable(scores) for scores in self.post_process_probabilities(outputs, target_sizes)]

    def post_process_probabilities(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """
        Class scores from what the model predicted for tiles: with a single foreground query the probabilities of
        background and foreground, with many queries EoMT's semantic scores.

        Args:
            outputs ([`Reg4PruSemanticSegmenterOutput`]): As in [`~post_process_semantic_segmentation`].
            target_sizes (`list[tuple[int, int]]`, *optional*): As in [`~post_process_semantic_segmentation`].

        Returns:
            `list[torch.Tensor]`: for every image its scores `(num_labels, height, width)`, `float32`, on the CPU.

        Raises:
            `ValueError`: if there are not as many sizes as images, or tiles are missing.
        """
        if isinstance(outputs, ModelOutput):  # the copy that pipelines of transformers make lacks fields that are None
            outputs = SimpleNamespace(**{"class_queries_logits": None, "patch_offsets": None, **outputs})
        offsets = outputs.patch_offsets
        if offsets is None or not len(offsets):
            logits = outputs.logits if outputs.class_queries_logits is None else outputs.masks_queries_logits
            if target_sizes is None:
                size = tuple(logits.shape[-2:])
                return [tile_probabilities(outputs, index, size).cpu() for index in range(len(logits))]
            offsets = self._single_tiles(target_sizes, len(logits))
        images = list(split_images(torch.stack(list(offsets)).cpu()))
        if target_sizes is not None and len(target_sizes) != len(images):
            raise ValueError(f"`target_sizes` has {len(target_sizes)} entries for {len(images)} images.")
        maps, index = [], 0
        for number, rows in enumerate(images):
            blender = TileBlender(rows)
            for row in rows:
                blender.add(row, tile_probabilities(outputs, index, (blender.tile_size, blender.tile_size)))
                index += 1
            maps.append(blender.result(None if target_sizes is None else target_sizes[number]))
        return maps

    def _single_tiles(self, target_sizes: list[tuple[int, int]], batch_size: int) -> torch.Tensor:
        """`patch_offsets` of images of one tile each."""
        if len(target_sizes) != batch_size:
            raise ValueError(f"`target_sizes` has {len(target_sizes)} entries for {batch_size} images.")
        settings, rows = self._settings(), []
        tile_size = settings["size"].height
        for index, size in enumerate(target_sizes):
            own_size = tuple(int(side) for side in size)
            frame_size = self._frame_size(*own_size, **settings)
            if max(frame_size) > tile_size:
                raise ValueError(
                    f"An image of {own_size[0]}x{own_size[1]} pixels does not fit a tile of {tile_size}: "
                    "give the model the `patch_offsets` of its tiles, as in `model(**inputs)`."
                )
            rows.append((index, 0, 0, tile_size, *frame_size, *own_size, 0))
        return torch.tensor(rows)


def _overlap(size: SizeDict, tile_overlap: int | float | None) -> int:
    """Least number of pixels that neighbouring tiles share: two ninths of a tile, unless it is set."""
    if tile_overlap is None:
        return size.height * 2 // 9
    return int(tile_overlap * size.height) if isinstance(tile_overlap, float) else tile_overlap


__all__ = ["Reg4PruImageProcessor"]
