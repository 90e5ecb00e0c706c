"""Image processor of Reg4Pru models, without torchvision."""

import numpy as np
import torch
import torch.nn.functional as F
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
from transformers.utils import TensorType


class Reg4PruImageProcessor(PilBackend):
    """
    Resizes photographs to the size that the model was trained at, scales them to [0, 1] and normalises them; label
    maps go along with nearest interpolation.

    Modifications: EoMT's processor turns label maps into lists of masks and offers panoptic and instance results,
    which the `image-segmentation` pipeline would prefer; this one gives `labels` and semantic results only.
    """

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

    def preprocess(self, images: ImageInput, segmentation_maps: ImageInput | None = None, **kwargs) -> BatchFeature:
        """
        Args:
            images (`ImageInput`): One or several photographs.
            segmentation_maps (`ImageInput`, *optional*): Their label maps, (height, width), a class per pixel.

        Returns:
            `BatchFeature` with `pixel_values` `(batch, 3, height, width)` and, with label maps, `labels`
            `(batch, height, width)`.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        do_convert_rgb: bool,
        input_data_format: ChannelDimension,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        photographs = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format
        )
        data = {"pixel_values": self._preprocess(photographs, **kwargs)}
        if segmentation_maps is not None:
            maps = self._prepare_image_like_inputs(
                images=segmentation_maps,
                expected_ndims=2,
                do_convert_rgb=False,
                input_data_format=ChannelDimension.FIRST,
            )
            if len(maps) != len(photographs):
                raise ValueError(f"Got {len(photographs)} images but {len(maps)} segmentation maps.")
            map_kwargs = {**kwargs, "do_normalize": False, "do_rescale": False, "resample": PILImageResampling.NEAREST}
            data["labels"] = [labels.squeeze(0).astype(np.int64) for labels in self._preprocess(maps, **map_kwargs)]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        **kwargs,
    ) -> list[np.ndarray]:
        processed = []
        for image in images:
            if do_resize:
                image = self.resize(image, size, resample)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            processed.append(image)
        return processed

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """
        Args:
            outputs ([`Reg4PruSemanticSegmenterOutput`]): Output of the model.
            target_sizes (`list[tuple[int, int]]`, *optional*): Height and width that each map is to have; unset, the
                size of the logits, a quarter of the input.

        Returns:
            `list[torch.Tensor]`: for every image a `(height, width)` map of classes.

        Raises:
            `ValueError`: if there are not as many sizes as images.
        """
        logits = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(target_sizes) != len(logits):
            raise ValueError(f"`target_sizes` has {len(target_sizes)} entries for {len(logits)} images.")
        return [
            F.interpolate(scores[None], size=tuple(int(side) for side in size), mode="bilinear")[0].argmax(dim=0)
            for scores, size in zip(logits, target_sizes, strict=True)
        ]


__all__ = ["Reg4PruImageProcessor"]
