"""The files that visitors take home: a folder for each, gone when they leave."""

import csv
import re
import shutil
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from ..reporting.panels import mask_image, probability_image
from .comparison import Prediction
from .html_tables import COLUMNS


class Downloads:
    """
    Folders of files by visitor.

    Args:
        folder (`Path`): Where they are; whoever made it removes it at the end.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, visitor: str, name: str, prediction: Prediction, rows: list[dict]) -> list[str]:
        """
        The mask (0 and 255), the probability (65535 is 1) at the image's own size, and the table.

        Returns:
            `list[str]`: the paths.
        """
        folder, name = self._folder(visitor), re.sub(r"[^\w.-]", "_", name)[:60]
        mask, probability = folder / f"{name}_mask.png", folder / f"{name}_probability.png"
        Image.fromarray(mask_image(prediction.vessels)).save(mask)
        Image.fromarray(probability_image(prediction.probability)).save(probability, compress_level=1)
        return [str(mask), str(probability), self.write_table(visitor, rows, f"{name}.csv")]

    def write_images(self, visitor: str, images: dict[str, np.ndarray]) -> tuple[str, ...]:
        """Images by name as PNG, compressed lightly, because somebody waits for them; the paths."""
        paths = {name: self._folder(visitor) / f"{name}.png" for name in images}
        for name, image in images.items():
            Image.fromarray(image).save(paths[name], compress_level=1)
        return tuple(map(str, paths.values()))

    def write_table(self, visitor: str, rows: list[dict], name: str) -> str:
        """Rows as CSV; the path."""
        path = self._folder(visitor) / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        return str(path)

    def forget(self, request: gr.Request) -> None:
        """Remove what was written for a visitor who has left."""
        shutil.rmtree(self._place(request.session_hash), ignore_errors=True)

    def _folder(self, visitor: str) -> Path:
        folder = self._place(visitor)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _place(self, visitor: str) -> Path:
        if not re.fullmatch(r"\w+", visitor):  # it comes from the browser
            raise ValueError("This session has no valid name.")
        return self.folder / visitor
