"""Predict images at several keep rates: their result images, and the rows of the table."""

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
from accelerate import PartialState
from tqdm import tqdm
from transformers import BaseImageProcessor

from datasets_fives.field_of_view import field_of_view
from datasets_fives.images import fingerprint, read_image
from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.tiled_inference import predict_image

from ..reporting.panels import blank_outside, stage_panel
from .model_classes import is_of_vessels
from .output_folder import ResultFolder, Task
from .prediction_results import results_of
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
    skip_outside: bool = False,
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
        threshold (`float`, *optional*, defaults to 0.5): Of two classes: a pixel is foreground if its probability is
            above it.
        skip_outside (`bool`, *optional*, defaults to `False`): Whether what is outside the field of view is left out.
        stage_map (`bool`, *optional*, defaults to `False`): Whether to show where tokens were pruned, too.
        batch_size (`int`, *optional*, defaults to 4): Tiles per forward pass.
        seed (`int`, *optional*, defaults to 0): Of random selection.

    Yields:
        `str`: what could not be predicted, and why.
    """
    kind = results_of(model.config, threshold)
    for image, group in groupby(tasks, key=lambda task: task.image):
        start = time.perf_counter()
        try:
            content = image.read()
            opened = read_image(content)
            pixels = np.asarray(opened)
            inside = field_of_view(pixels) if is_of_vessels(model.config) else np.ones(pixels.shape[:2], dtype=bool)
            tiles = processor.cut_image(opened, inside if skip_outside else None)
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
                for name, made in kind.images(pixels, inside, prediction).items():
                    results.save(task.result(name), made)
                if prediction.stages is not None:
                    stages = stage_panel(pixels, prediction.stages.numpy(), model.config.num_stages)
                    results.save(task.result("stages"), blank_outside(stages, inside))
                file, keep_rate = task.key
                results.add_row(
                    {
                        "file": file,
                        "keep_rate": keep_rate,
                        "mask": task.result("mask"),
                        **kind.measures(prediction, inside),
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
