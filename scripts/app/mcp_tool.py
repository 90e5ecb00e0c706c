"""Segmentation as a tool for programs and agents: over HTTP, and over the Model Context Protocol."""

import base64
import json
from collections.abc import Callable
from io import BytesIO

import gradio as gr
import numpy as np

from ..inference.model_classes import model_classes
from .comparison import Comparer, OpenImage
from .prediction import Prediction
from .uploads import decode_base64, open_upload


def segmentation_tool(comparer: Comparer) -> Callable[[str, float], str]:
    """The tool of a model; clients see its type hints and docstring."""
    if comparer.model.config.num_labels > 2:
        return _class_tool(comparer)
    if not comparer.view.is_of_vessels:
        return _mask_tool(comparer)

    def segment(image: str, keep_rate: float = 0.5) -> str:
        """
        Find the vessels in a fundus image with a token-pruned vision transformer. Research software, not a
        medical device.

        Args:
            image: The bytes of a PNG, JPEG or TIFF file, encoded in base64.
            keep_rate: Share of the image tokens that is kept at each pruning stage, above 0, at most 1 (no pruning).

        Returns:
            JSON with mask: the vessel mask as a PNG in base64, 255 is vessel; vessel_fraction: share of the field of
            view that is vessel; dice_with_unpruned: agreement with the unpruned mask, null where both are empty;
            milliseconds: time with pruning; milliseconds_unpruned: time without.
        """
        opened, pruned = _predict(comparer, image, keep_rate)
        content = {"vessel_fraction": round(float(pruned.labels[opened.inside].mean()), 6)}
        return _answer(opened, pruned, "mask", content, "dice")

    return segment


def _mask_tool(comparer: Comparer) -> Callable[[str, float], str]:
    _, name = model_classes(comparer.model.config)

    def segment(image: str, keep_rate: float = 0.5) -> str:
        """
        Find what this model segments in an image, with a token-pruned vision transformer. Research software, not a
        medical device.

        Args:
            image: The bytes of a PNG, JPEG or TIFF file, encoded in base64.
            keep_rate: Share of the image tokens that is kept at each pruning stage, above 0, at most 1 (no pruning).

        Returns:
            JSON with class: what is segmented; mask: a PNG in base64, 255 is that class; class_fraction: share of the
            image that it has; dice_with_unpruned: agreement with the unpruned mask, null where both are empty;
            milliseconds: time with pruning; milliseconds_unpruned: time without.
        """
        opened, pruned = _predict(comparer, image, keep_rate)
        content = {"class": name, "class_fraction": round(float(pruned.labels.mean()), 6)}
        return _answer(opened, pruned, "mask", content, "dice")

    return segment


def _class_tool(comparer: Comparer) -> Callable[[str, float], str]:
    names = comparer.view.names

    def segment(image: str, keep_rate: float = 0.5) -> str:
        """
        Segment an image into the classes of this model with a token-pruned vision transformer. Research software.

        Args:
            image: The bytes of a PNG, JPEG or TIFF file, encoded in base64.
            keep_rate: Share of the image tokens that is kept at each pruning stage, above 0, at most 1 (no pruning).

        Returns:
            JSON with label_map: a PNG in base64 whose palette indices are the classes; class_fractions: the share of
            the image that each class has, by name, in the order of the indices; mean_iou_with_unpruned: agreement with
            the unpruned label map; milliseconds: time with pruning; milliseconds_unpruned: time without.
        """
        opened, pruned = _predict(comparer, image, keep_rate)
        shares = np.bincount(pruned.labels.ravel(), minlength=len(names)) / pruned.labels.size
        content = {"class_fractions": dict(zip(names, shares.round(6).tolist(), strict=True))}
        return _answer(opened, pruned, "label_map", content, "mean_iou")

    return segment


def _predict(comparer: Comparer, image: str, keep_rate: float) -> tuple[OpenImage, Prediction]:
    try:
        opened = comparer.open("image", open_upload(decode_base64(image)))
        return opened, comparer.predict(opened.pixels, keep_rate)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _answer(opened: OpenImage, pruned: Prediction, kind: str, content: dict, score: str) -> str:
    """As text, for MCP would be told a dictionary in Python's notation."""
    buffer = BytesIO()
    opened.view.label_image(pruned).save(buffer, format="PNG")
    agreement = opened.view.agreement(pruned, opened.dense.labels, opened.inside)[score]
    answer = {
        kind: base64.b64encode(buffer.getvalue()).decode(),
        **content,
        f"{score}_with_unpruned": None if np.isnan(agreement) else round(agreement, 4),
        "milliseconds": round(1000 * pruned.seconds, 1),
        "milliseconds_unpruned": round(1000 * opened.dense.seconds, 1),
    }
    return json.dumps(answer)
