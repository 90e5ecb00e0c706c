"""Predict images at several keep rates: their masks, probabilities and overlays, and the rows of the table."""

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
from accelerate import PartialState
from skimage.morphology import skeletonize
from tqdm import tqdm
from transformers import BaseImageProcessor

from datasets_fives.field_of_view import field_of_view
from datasets_fives.images import fingerprint, read_image
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import ImagePrediction, predict_image

from ..reporting.panels import blank_outside, mask_image, overlay_panel, probability_image, stage_panel
from .output_folder import ResultFolder, Task
from .predictors import fixed_draws

logger = logging.getLogger(__name__)


def predict_missing(
    state: PartialState,
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    tasks: list[Task],
    results: ResultFolder,
    **settings,
) -> tuple[int, list[str]]:
    """
    Share out over the processes what no run has done yet, and do this one's part.

    Args:
        state (`PartialState`): The processes.
        model, processor, tasks, results, settings: See [`predict_files`].

    Returns:
        `tuple[int, list[str]]`: how many tasks all processes have done, and what this one could not predict.
    """
    done = results.done(tasks)
    left = [task for task in tasks if task.key not in done]
    state.wait_for_everyone()  # nobody writes while somebody still looks what is done
    with state.split_between_processes(list(range(len(left)))) as mine:
        own = [left[place] for place in mine]
        bar = tqdm(own, desc="Predicting", unit="image", disable=not state.is_local_main_process)
        problems = list(predict_files(model, processor, bar, results, **settings))
    state.wait_for_everyone()
    masks = {row["mask"] for row in results.rows()}
    return sum(task.result("mask") in masks for task in left), problems


def predict_files(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    tasks: Iterable[Task],
    results: ResultFolder,
    *,
    threshold: float = 0.5,
    stage_map: bool = False,
    batch_size: int = 4,
    seed: int = 0,
) -> Iterator[str]:
    """
    Predict images at keep rates, and write what comes out.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): The model.
        processor ([`Reg4PruImageProcessor`]): Its image processor.
        tasks (iterable of [`Task`]): Images and keep rates. What all rates of an image share, reading it, its field of
            view, its working size, is done once if they follow one another.
        results ([`ResultFolder`]): Where result images and rows go.
        threshold (`float`, *optional*, defaults to 0.5): A pixel is vessel if its probability is above it.
        stage_map (`bool`, *optional*, defaults to `False`): Whether to show where tokens were pruned, too.
        batch_size (`int`, *optional*, defaults to 4): Tiles per forward pass.
        seed (`int`, *optional*, defaults to 0): Of random selection.

    Yields:
        `str`: what could not be predicted, and why.
    """
    for image, group in groupby(tasks, key=lambda task: task.image):
        start = time.perf_counter()
        try:
            content = image.read()
            opened = read_image(content)
            pixels, tiles = np.asarray(opened), processor.cut_image(opened)
            inside = field_of_view(pixels)
        except Exception as error:  # whatever is wrong with one image, it costs no other
            yield f"{image.name}: {_reason(error)}"
            continue
        shared, digest = time.perf_counter() - start, fingerprint(content)
        for task in group:
            start = time.perf_counter()
            try:
                with fixed_draws(model, seed):
                    rate = "config" if task.rate is None else task.rate
                    prediction = predict_image(
                        model, processor, tiles, rate, batch_size=batch_size, output_stages=stage_map
                    )
                results.begin(task)
                for kind, made in result_images(
                    pixels, inside, prediction, threshold, model.config.num_stages
                ).items():
                    results.save(task.result(kind), made)
                file, keep_rate = task.key
                results.add_row(
                    {
                        "file": file,
                        "keep_rate": keep_rate,
                        "mask": task.result("mask"),
                        **measures(prediction.probabilities[1].numpy() > threshold, inside),
                        "num_tokens": prediction.num_tokens,
                        "seconds": f"{shared + time.perf_counter() - start:.3f}",
                        "fingerprint": digest,
                    }
                )
            except Exception as error:
                results.discard(task)
                yield f"{image.name} at keep rate {task.key[1]}: {_reason(error)}"


def _reason(error: Exception) -> str:
    """What to say of an error, with its kind where it is none of ours."""
    logger.debug("", exc_info=error)
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def result_images(
    pixels: np.ndarray, inside: np.ndarray, prediction: ImagePrediction, threshold: float, num_stages: int
) -> dict[str, np.ndarray]:
    """
    The result images of a prediction by kind: mask, probability, overlay, and stages if they were asked for.

    Args:
        pixels (`np.ndarray` of shape `(height, width, 3)`, `uint8`): The image.
        inside (`np.ndarray` of shape `(height, width)`, `bool`): Its field of view.
        prediction ([`~modeling_reg4pru.tiled_inference.ImagePrediction`]): What the model made of it.
        threshold (`float`): A pixel is vessel if its probability is above it.
        num_stages (`int`): Pruning stages of the model.
    """
    probability = prediction.probabilities[1].numpy()
    vessels = probability > threshold
    made = {
        "mask": mask_image(vessels),
        "probability": probability_image(probability),
        "overlay": blank_outside(overlay_panel(pixels, vessels), inside),
    }
    if prediction.stages is not None:
        made["stages"] = blank_outside(stage_panel(pixels, prediction.stages.numpy(), num_stages), inside)
    return made


def measures(vessels: np.ndarray, inside: np.ndarray) -> dict[str, str]:
    """
    Share of the field of view that is vessel, length of the vessel skeleton in pixels, and that length by the area of
    the field of view (1 / pixel).

    Args:
        vessels (`np.ndarray` of shape `(height, width)`, `bool`): The mask.
        inside (`np.ndarray` of shape `(height, width)`, `bool`): The field of view.
    """
    found = vessels & inside
    area, length = np.count_nonzero(inside), np.count_nonzero(skeletonize(found))
    return {
        "vessel_fraction": f"{np.count_nonzero(found) / area:.6f}",
        "skeleton_length": str(length),
        "skeleton_density": f"{length / area:.6f}",
    }
