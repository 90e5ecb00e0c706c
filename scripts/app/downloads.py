"""The files that visitors take home: a folder for each, gone when they leave."""

import csv
import re
import shutil
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from .comparison import OpenImage
from .prediction import Prediction


class Downloads:
    """
    Folders of files by visitor.

    Args:
        folder (`Path`): Where they are; whoever made it removes it at the end.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, visitor: str, image: OpenImage, prediction: Prediction, rows: list[dict]) -> list[str]:
        """
        The files of the view, at the image's own size, and the table.

        Returns:
            `list[str]`: the paths.
        """
        name = re.sub(r"[^\w.-]", "_", image.name)[:60]
        files = image.view.write(self._folder(visitor), name, prediction)
        return [*files, self.write_table(visitor, rows, f"{name}.csv")]

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
            writer = csv.DictWriter(file, list(rows[0]))
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
