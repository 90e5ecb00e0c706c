"""Predict the images of a folder: masks, probabilities, overlays and the rows of the table."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset
from PIL import Image
from skimage.morphology import skeletonize
from transformers import BaseImageProcessor

from datasets_fives.field_of_view import field_of_view
from datasets_fives.images import SUFFIXES, read_image
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import ImagePrediction, predict_image

from ..common.keep_rates import rate_name
from ..reporting.panels import (
    blank_outside,
    mask_image,
    overlay_panel,
    prediction_panels,
    probability_image,
    save_prediction_figure,
    stage_panel,
)
from .output_folder import ResultFolder, Task
from .predictors import fixed_draws


@dataclass
class PredictionArguments:
    """What is predicted, by which model, and where the result goes."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder for the pictures, predictions.csv and predictions.json."})
    images: list[str] = field(
        default_factory=list, metadata={"help": f"Files, folders or patterns ({', '.join(SUFFIXES)})."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Instead of files: a Hub id, a folder with Parquet files or a saved data set."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub data set."})
    side: str = field(default="test", metadata={"help": "The side of the data set: train, validation or test."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    keep_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": "Keep rates to compare, each for all stages; the names of pictures end in them. Default: the "
            "checkpoint's, and names without any."
        },
    )
    stage_map: bool = field(default=False, metadata={"help": "Also show at which stage every token was pruned."})
    threshold: float = field(default=0.5, metadata={"help": "A pixel is vessel if its probability is above it."})
    batch_size: int = field(default=4, metadata={"help": "Tiles per forward pass."})
    parquet: bool = field(default=False, metadata={"help": "Also write masks and probabilities as a data set."})
    push_to_hub: bool = field(default=False, metadata={"help": "Upload that data set, as one commit."})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "Repository for it, user/name."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Make the repository private."})
    overwrite_repo: bool = field(
        default=False, metadata={"help": "Replace what the repository holds, even if it is something else."}
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Predict anew what an earlier run has done of these images and keep rates; what it did of "
            "others stays, and is refused if it was made with another model or other settings."
        },
    )
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})
    fast: bool = field(
        default=False, metadata={"help": "Compute in bfloat16 where this machine can; it says so where it cannot."}
    )
    seed: int = field(default=0, metadata={"help": "Seed, for a checkpoint that selects tokens at random."})


FIGURE_ROWS = 4


def draw_figure(
    path: Path,
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    dataset: Dataset,
    keep_rate: float,
    *,
    threshold: float = 0.5,
    batch_size: int = 4,
    seed: int = 0,
) -> None:
    """Draw up to four images, evenly spaced over the data set; the panels are those of `figures.COLUMNS`."""
    num_stages, rows = model.config.num_stages, []
    for index in np.linspace(0, len(dataset) - 1, min(len(dataset), FIGURE_ROWS)).round().astype(int).tolist():
        row = dataset[index]
        with fixed_draws(model, seed + index):  # as it was measured
            prediction = predict_image(
                model, processor, row["image"], keep_rate, batch_size=batch_size, output_stages=True
            )
        probability = prediction.probabilities[1].numpy()
        stages = np.zeros_like(probability, dtype=np.uint8) if prediction.stages is None else prediction.stages.numpy()
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"]).astype(bool)
        inside = field_of_view(image)
        rows.append(prediction_panels(row["name"], image, mask, probability, stages, num_stages, inside, threshold))
    title = f"keep rate {rate_name(keep_rate)} at each of {num_stages} stages" if num_stages else "no pruning stages"
    save_prediction_figure(path, rows, num_stages, title)


def pictures(
    image: Image.Image, prediction: ImagePrediction, threshold: float, num_stages: int
) -> dict[str, np.ndarray]:
    """The pictures of a prediction by kind: mask, probability, overlay, and stages if they were asked for."""
    probability, pixels = prediction.probabilities[1].numpy(), np.asarray(image)
    vessels, inside = probability > threshold, field_of_view(pixels)
    made = {
        "mask": mask_image(vessels),
        "probability": probability_image(probability),
        "overlay": blank_outside(overlay_panel(pixels, vessels), inside),
    }
    if prediction.stages is not None:
        made["stages"] = blank_outside(stage_panel(pixels, prediction.stages.numpy(), num_stages), inside)
    return made


def measures(image: Image.Image, vessels: np.ndarray) -> dict[str, str]:
    """
    Share of the field of view that is vessel, length of the vessel skeleton in pixels, and that length by the area of
    the field of view (1 / pixel).
    """
    inside = field_of_view(np.asarray(image))
    area, length = np.count_nonzero(inside), np.count_nonzero(skeletonize(vessels & inside))
    return {
        "vessel_fraction": f"{np.count_nonzero(vessels & inside) / area:.6f}",
        "skeleton_length": str(length),
        "skeleton_density": f"{length / area:.6f}",
    }


def predict_files(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    tasks: list[Task],
    results: ResultFolder,
    arguments: PredictionArguments,
) -> Iterator[str]:
    """Predict files at keep rates, and yield what could not be read."""
    for task in tasks:
        image, rate = task
        start = time.perf_counter()
        try:
            pixels = read_image(image.content())
        except ValueError as error:
            yield f"{image.name}: {error}"
            continue
        with fixed_draws(model, arguments.seed):
            prediction = predict_image(
                model,
                processor,
                pixels,
                "config" if rate is None else rate,
                batch_size=arguments.batch_size,
                output_stages=arguments.stage_map,
            )
        made = pictures(pixels, prediction, arguments.threshold, model.config.num_stages)
        results.begin(task)
        for kind, picture in made.items():
            results.save(task.picture(kind), picture)
        file, keep_rate = task.key
        results.add_row(
            {
                "file": file,
                "keep_rate": keep_rate,
                "mask": task.picture("mask"),
                **measures(pixels, made["mask"] > 0),
                "num_tokens": prediction.num_tokens,
                "seconds": f"{time.perf_counter() - start:.3f}",
            }
        )
