"""Segmentation as a tool for programs and agents: over HTTP, and over the Model Context Protocol."""

import base64
import json
from collections.abc import Callable
from io import BytesIO

import gradio as gr
import numpy as np
from PIL import Image

from ..reporting.panels import mask_image
from .comparison import Comparer, agreement
from .uploads import decode_base64, open_upload


def segmentation_tool(comparer: Comparer) -> Callable[[str, float], str]:
    """The tool of a model; clients see its type hints and docstring."""

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
        try:
            opened = comparer.open("image", open_upload(decode_base64(image)))
            pruned = comparer.predict(opened.pixels, keep_rate)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        buffer = BytesIO()
        Image.fromarray(mask_image(pruned.vessels)).save(buffer, format="PNG")
        dice, _ = agreement(pruned, opened.dense.vessels, opened.inside)
        answer = {
            "mask": base64.b64encode(buffer.getvalue()).decode(),
            "vessel_fraction": round(float(pruned.vessels[opened.inside].mean()), 6),
            "dice_with_unpruned": None if np.isnan(dice) else round(dice, 4),
            "milliseconds": round(1000 * pruned.seconds, 1),
            "milliseconds_unpruned": round(1000 * opened.dense.seconds, 1),
        }
        return json.dumps(answer)  # as text, for MCP would be told the dictionary in Python's notation

    return segment
