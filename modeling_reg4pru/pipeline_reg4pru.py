"""The `image-segmentation` pipeline for Reg4Pru models."""

import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ImageSegmentationPipeline

from .image_reading import open_image, read_image
from .tiled_inference import predict_images

# As it stands in `config.json`, for those who load a checkpoint without this package.
CUSTOM_PIPELINES = {
    "image-segmentation": {
        "impl": "pipeline_reg4pru.Reg4PruImageSegmentationPipeline",
        "pt": ["AutoModelForSemanticSegmentation"],
    }
}


class Reg4PruImageSegmentationPipeline(ImageSegmentationPipeline):
    """
    [`~transformers.ImageSegmentationPipeline`] for images of any size: paths, URLs, PIL images, or lists of them.
    The masks have the images' own size, turned as their EXIF orientation says.

    Modifications: images are read with 16 bits where they have them, and go through the model in batches of
    tiles; nobody is asked about remote code for a video processor that no model here has; ours is not reported as a
    model that is not supported.

    Example:

    ```python
    >>> import modeling_reg4pru
    >>> from transformers import pipeline

    >>> segmenter = pipeline("image-segmentation", model="user/reg4pru-vits16-fives")
    >>> masks = {result["label"]: result["mask"] for result in segmenter("fundus.png")}
    ```
    """

    _load_video_processor = False

    def __new__(cls, model, **kwargs: Any):
        # The package registers this class for the task, where it meets every model: those of others get the original.
        if model.config.model_type != "reg4pru":
            return ImageSegmentationPipeline(model=model, **kwargs)
        return super().__new__(cls)

    def __init__(self, model, **kwargs: Any):
        super().__init__(model=model, **kwargs)
        # transformers has put classes for their names there, with which the configuration cannot be saved or printed.
        model.config.custom_pipelines = CUSTOM_PIPELINES

    def check_model_type(self, supported_models: list[str] | dict) -> None:
        """Nothing to check: transformers' list lacks the models of others, and `__new__` let only ours pass."""

    def _sanitize_parameters(
        self, subtask: str | None = None, timeout: float | None = None
    ) -> tuple[dict, dict, dict]:
        if subtask not in (None, "semantic"):
            raise ValueError(f"`subtask` is {subtask!r}: the model does semantic segmentation only.")
        return ({} if timeout is None else {"timeout": timeout}), {}, {}

    def preprocess(
        self, image: str | os.PathLike | Image.Image, timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Reads an image; tiles are cut when it is the image's turn."""
        if isinstance(image, (str, os.PathLike)):
            image = open_image(image, timeout)
        return {"image": read_image(image)}

    def _forward(self, model_inputs: dict[str, np.ndarray | list[np.ndarray]]) -> dict[str, list[torch.Tensor]]:
        images = model_inputs["image"]
        images = images if isinstance(images, list) else [images]
        predictions = predict_images(self.model, self.image_processor, images, batch_size=max(4, len(images)))
        return {"segmentation": [prediction.segmentation for prediction in predictions]}

    def postprocess(self, model_outputs: dict[str, list[torch.Tensor]]) -> list[dict[str, Any]]:
        """For every class that was found its `label` and a `mask`, black and white; the `score` is `None`."""
        segmentation = model_outputs["segmentation"][0].numpy()
        return [
            {
                "score": None,
                "label": self.model.config.id2label[label],
                "mask": Image.fromarray((segmentation == label).astype(np.uint8) * 255),
            }
            for label in np.unique(segmentation).tolist()
        ]


__all__ = ["Reg4PruImageSegmentationPipeline"]
