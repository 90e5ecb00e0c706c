"""The evaluations of a run at every keep rate, over all pixels and by image; each is done once."""

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import yaml
from datasets import Dataset
from PIL import Image
from transformers import BaseImageProcessor

from datasets_fives import load_segmentation
from datasets_fives.metrics import METRICS, MeasuredClasses, VesselMetrics, measure, measure_classes
from modeling_reg4pru import Reg4PruForSemanticSegmentation

from ..common.atomic_files import replace_table, replace_text
from ..common.former_names import present_name
from ..common.keep_rates import rate_name
from ..common.spread import spread
from ..inference.loading import load_checkpoint, select_at_random
from ..inference.model_classes import VESSEL_CLASSES, check_same_classes, model_classes
from ..inference.predictors import predictors
from ..training.setup import load_data
from .definition import DATA_FIELDS, MODEL_FIELDS, Study, is_as_trained
from .metrics import CLASSES, VESSELS, metrics_of
from .run_folder import RunFolder

_PLACE = ("evaluation", "keep_rate", "name", "condition")
IMAGE_FIELDS = (*_PLACE, *METRICS)


def evaluate_run(study: Study, folder: RunFolder) -> None:
    """
    Do the evaluations that are missing. Metrics over all pixels go to `evaluation.json` of the run, those of every
    image to `per_image.csv`.
    """
    results, rows = folder.results(), read_images(folder)
    selector = yaml.safe_load(folder.recipe.read_text(encoding="utf-8")).get("config_overrides", {}).get("selector")
    first_on: dict[tuple, str] = {}  # data → the first evaluation on it
    for name, settings in study.evaluations.items():
        done = results.setdefault(name, {})
        first = first_on.setdefault(tuple(settings.get(field) for field in DATA_FIELDS), name)
        changes_nothing = {field: settings[field] for field in MODEL_FIELDS if field in settings} == {
            "selector": selector
        }
        for rate in map(rate_name, study.keep_rates):
            # What an evaluation changes in the model has no effect without pruning.
            if first != name and (float(rate) == 1 or (changes_nothing and is_as_trained(study.evaluations[first]))):
                done[rate], rows[name, rate] = results[first][rate], rows[first, rate]
        # What has no rows of images was measured before these were recorded, and is measured again.
        known = {rate for rate in done if (name, rate) in rows}
        missing = [rate for rate in study.keep_rates if rate_name(rate) not in known]
        if not missing:
            continue
        model, processor = load_evaluated(folder, settings)
        images = test_images(folder, settings)
        images = images.select(spread(len(images), study.limit))
        by_rate = predictors(model, processor, missing, batch_size=16)
        check_same_classes(model.config, images, settings.get("dataset", "the data set of the training"))
        for rate, metrics in measure_by_classes(by_rate, images, model_classes(model.config)).items():
            done[rate] = over_all_pixels(metrics.compute())
            rows[name, rate] = metrics.rows
        write_results(folder, results, rows)
    if json.dumps(results) != json.dumps(folder.results()):  # what was taken from another evaluation
        write_results(folder, results, rows)


def measure_by_classes(
    by_name: Mapping[str, Callable[[Image.Image, int], np.ndarray]], images: Dataset, classes: list[str]
) -> dict[str, VesselMetrics] | dict[str, MeasuredClasses]:
    """
    What is measured of predictors: of two classes by [`~datasets_fives.metrics.measure`], of more by
    [`~datasets_fives.metrics.measure_classes`]; arguments as there.
    """
    if len(classes) > 2:
        return measure_classes(by_name, images, classes)
    return measure(by_name, images, inside_field_of_view=classes == VESSEL_CLASSES)


def over_all_pixels(result: dict) -> dict[str, float]:
    """The metrics over all pixels; of more than two classes with the IoU of each, as `iou_<class>`."""
    if "pooled" in result:
        return {metric: result["pooled"][metric] for metric in METRICS}
    per_class = {f"iou_{name}": values["iou"] for name, values in result["per_class"].items()}
    return {metric: result[metric] for metric in CLASSES.compared} | per_class


def load_evaluated(folder: RunFolder, settings: dict) -> tuple[Reg4PruForSemanticSegmentation, BaseImageProcessor]:
    """The trained model of a run with the changes of an evaluation, and its image processor."""
    model, processor = load_checkpoint(str(folder.weights()))
    for name, value in settings.items():
        if name == "selector":
            select_at_random(model)
        elif name not in DATA_FIELDS:
            setattr(model.config, name, value)
    if "tile_overlap" in settings:
        processor.tile_overlap = settings["tile_overlap"]
    return model, processor


def test_images(folder: RunFolder, settings: dict) -> Dataset:
    """The test images of an evaluation, at its working size or else at that of the training."""
    _, data_arguments, arguments = folder.arguments()
    size = settings.get("working_size", data_arguments.working_size)
    if "dataset" not in settings:
        return load_data(replace(data_arguments, working_size=size), arguments.seed)["test"]
    split = settings.get("split", "official")
    sides = load_segmentation(settings["dataset"], split=split, working_size=size)
    if "test" not in sides:
        raise ValueError(f"The data set {settings['dataset']} has no test images under split {split!r}.")
    return sides["test"]


def read_images(folder: RunFolder) -> dict[tuple[str, str], list[dict]]:
    """Rows of images measured so far, by evaluation and keep rate; nan for a metric that the record does not have."""
    rows: dict[tuple[str, str], list[dict]] = {}
    if not folder.per_image.is_file():
        return rows
    with folder.per_image.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            image = {"name": row["name"], "condition": row["condition"]}
            names = METRICS if metrics_of([row]) is VESSELS else [name for name in row if name not in _PLACE]
            image |= {metric: float(row.get(metric, math.nan)) for metric in names}
            rows.setdefault((present_name(row["evaluation"]), row["keep_rate"]), []).append(image)
    return rows


def write_results(folder: RunFolder, results: dict, rows: dict[tuple[str, str], list[dict]]) -> None:
    """Write `per_image.csv`, the rows of [`read_images`], and `evaluation.json`."""
    places = ({"evaluation": evaluation, "keep_rate": rate} for evaluation, rate in rows)
    every = [place | image for place, images in zip(places, rows.values(), strict=True) for image in images]
    replace_table(folder.per_image, IMAGE_FIELDS if metrics_of(every) is VESSELS else list(every[0]), every)
    replace_text(folder.evaluation, json.dumps(results, indent=2) + "\n")
