"""
Find the vessels in photographs.

    reg4pru predict --model_name_or_path outputs/tiny --images photograph.png --output_dir outputs/masks

writes for every photograph, at its own size, `<name>_mask.png` (0 and 255), `<name>_probability.png` (16 bits: 65535
is probability 1) and `<name>_overlay.png` (the vessels drawn over the photograph, inside the field of view only). Mask
and probability are as the model predicts them, outside the field of view, too. Folders of photographs work as well.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import HfArgumentParser

from datasets_fives.field_of_view import field_of_view
from modeling_reg4pru.configuration_reg4pru import expand_keep_rates

from ..console import set_up_logging
from .loading import load_checkpoint
from .panels import blank_outside, overlay_panel
from .prediction import predict_probability

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
RESULTS = ("mask", "probability", "overlay")


@dataclass
class PredictionArguments:
    """What is predicted, by which model, and where the result goes."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint: a folder or a Hub id."})
    images: list[str] = field(metadata={"help": f"Photographs, or folders of them ({', '.join(SUFFIXES)})."})
    output_dir: str = field(metadata={"help": "Folder for the three pictures of every photograph."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    keep_rates: list[float] | None = field(
        default=None,
        metadata={"help": "One keep rate for all pruning stages or one per stage; default: the checkpoint's."},
    )
    threshold: float = field(default=0.5, metadata={"help": "A pixel is vessel if its probability is above it."})
    batch_size: int = field(default=4, metadata={"help": "Tiles per forward pass."})
    overwrite: bool = field(default=False, metadata={"help": "Replace pictures of an earlier run."})
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})
    seed: int = field(default=0, metadata={"help": "Seed, for a checkpoint that selects tokens at random."})


def list_images(paths: list[str]) -> list[Path]:
    """
    The photographs among files and folders, in order.

    Args:
        paths (`list[str]`): Files, and folders of which every file with one of [`SUFFIXES`] is taken.

    Raises:
        `ValueError`: If a path does not exist, a folder holds no photograph, or two photographs have one name.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
            if not found:
                raise ValueError(f"The folder {path} holds no photographs ({', '.join(SUFFIXES)}).")
            images += found
        elif path.is_file():
            images.append(path)
        else:
            raise ValueError(f"{path} does not exist.")
    by_name: dict[str, Path] = {}
    for image in images:
        if image.stem in by_name:
            raise ValueError(f"{by_name[image.stem]} and {image} would write to the same files: predict them apart.")
        by_name[image.stem] = image
    return images


def read_image(path: Path) -> Image.Image:
    """The photograph in RGB; raises `ValueError`, with its name, if it cannot be read."""
    try:
        with Image.open(path) as opened:
            opened.load()
            if opened.mode[0] in "IF":
                raise ValueError(f"{path} has pixels of more than 8 bits (mode {opened.mode}): convert it first.")
            return opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a photograph: {error}") from error


def check_images(images: list[Path]) -> None:
    """Raises `ValueError` that names all photographs (up to ten) that cannot be read."""
    problems = []
    for path in images:
        try:
            read_image(path)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError("; ".join(problems[:10]) + more)


def result_path(output_dir: Path, image: Path, kind: str) -> Path:
    """Where one of [`RESULTS`] of a photograph goes."""
    return output_dir / f"{image.stem}_{kind}.png"


def _check(arguments: PredictionArguments) -> list[Path]:
    if not 0 < arguments.threshold < 1:
        raise ValueError(f"--threshold is {arguments.threshold}: it must lie between 0 and 1, both excluded.")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size is {arguments.batch_size}: it must be at least 1.")
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir is {output_dir}, which is a file.")
    images = list_images(arguments.images)
    if any(output_dir.resolve() == Path(path).resolve() for path in arguments.images):
        raise ValueError(f"--output_dir is {output_dir}, the folder of the photographs: choose another.")
    taken = [path for image in images for kind in RESULTS if (path := result_path(output_dir, image, kind)).exists()]
    if taken and not arguments.overwrite:
        raise ValueError(
            f"{len(taken)} of the files to write exist already, the first is {taken[0]}: choose another --output_dir, "
            "or add --overwrite to replace them."
        )
    if {image.resolve() for image in images} & {path.resolve() for path in taken}:
        raise ValueError(f"The results would replace the photographs themselves in {output_dir}: choose another.")
    check_images(images)
    return images


def main(argv: list[str] | None = None) -> None:
    """Predict as the command line says."""
    set_up_logging()
    parser = HfArgumentParser(PredictionArguments)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    rates = arguments.keep_rates
    try:
        images = _check(arguments)
        model, processor = load_checkpoint(
            arguments.model_name_or_path, arguments.model_revision, arguments.device, arguments.dtype
        )
        if rates is not None:
            rates = expand_keep_rates(rates[0] if len(rates) == 1 else rates, model.config.num_stages)
    except ValueError as error:
        parser.error(str(error))

    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for path in tqdm(images, desc="Predicting", unit="photograph"):
        image = read_image(path)
        torch.manual_seed(arguments.seed)
        probability = predict_probability(model, processor, image, rates, batch_size=arguments.batch_size)
        vessels = probability > arguments.threshold
        pixels = np.asarray(image)
        pictures = {
            "mask": vessels.astype(np.uint8) * np.uint8(255),
            "probability": np.round(probability * 65535).astype(np.uint16),
            "overlay": blank_outside(overlay_panel(pixels, vessels), field_of_view(pixels)),
        }
        for kind, picture in pictures.items():
            Image.fromarray(picture).save(result_path(output_dir, path, kind))
    logger.info("Written to %s: mask, probability and overlay of %d photographs", output_dir, len(images))
