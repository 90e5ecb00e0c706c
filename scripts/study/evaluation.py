"""The trained model of a run, measured: each evaluation and keep rate once, over all pixels and by image."""

import csv
import json
from dataclasses import replace

from datasets import Dataset
from transformers import BaseImageProcessor

from datasets_fives import load_vessels
from datasets_fives.metrics import METRICS, measure
from modeling_reg4pru import Reg4PruForSemanticSegmentation

from ..common.atomic_files import replace_table, replace_text
from ..common.keep_rates import rate_name
from ..inference.loading import load_checkpoint, select_at_random
from ..inference.predictors import predictors
from ..training.setup import load_data
from .definition import DATA_FIELDS, Study
from .run_folder import RunFolder

IMAGE_FIELDS = ("evaluation", "keep_rate", "name", "condition", *METRICS)


def evaluate_run(study: Study, folder: RunFolder) -> None:
    """
    Measure what is missing, evaluation by evaluation. `evaluation.json` of the run gets the metrics over all pixels,
    `per_image.csv` those of every image.
    """
    results, rows = folder.results(), read_images(folder)
    first_on: dict[tuple, str] = {}  # data → the first evaluation on them
    for name, settings in study.evaluations.items():
        done = results.setdefault(name, {})
        first = first_on.setdefault(tuple(settings.get(field) for field in DATA_FIELDS), name)
        for rate in map(rate_name, study.keep_rates):
            # Without pruning nothing that an evaluation changes in the model has an effect.
            if first != name and float(rate) == 1:
                done[rate], rows[name, rate] = results[first][rate], rows[first, rate]
        # A run that was measured before images had rows is measured again.
        known = {rate for rate in done if (name, rate) in rows}
        missing = [rate for rate in study.keep_rates if rate_name(rate) not in known]
        if not missing:
            continue
        model, processor = load_evaluated(folder, settings)
        measured = measure(predictors(model, processor, missing, batch_size=16), _images(folder, settings, model))
        for rate, metrics in measured.items():
            pooled = metrics.compute()["pooled"]
            done[rate] = {metric: pooled[metric] for metric in METRICS}
            rows[name, rate] = metrics.rows
        _write_images(folder, rows)
        replace_text(folder.evaluation, json.dumps(results, indent=2) + "\n")


def load_evaluated(folder: RunFolder, settings: dict) -> tuple[Reg4PruForSemanticSegmentation, BaseImageProcessor]:
    """The trained model of a run and its image processor, changed as an evaluation wants it."""
    model, processor = load_checkpoint(str(folder.weights()))
    for name, value in settings.items():
        if name == "selector":
            select_at_random(model)
        elif name not in DATA_FIELDS:
            setattr(model.config, name, value)
    return model, processor


def _images(folder: RunFolder, settings: dict, model: Reg4PruForSemanticSegmentation) -> Dataset:
    """The test images of an evaluation, at its size, else at that of those of the training."""
    _, data_arguments, arguments = folder.arguments()
    size = settings.get("working_size", data_arguments.working_size)
    if "dataset" not in settings:
        return load_data(replace(data_arguments, working_size=size), arguments.seed)["test"]
    split = settings.get("split", "official")
    sides = load_vessels(settings["dataset"], split=split, working_size=size)
    if "test" not in sides:
        raise ValueError(f"The data set {settings['dataset']} has no test images under split {split!r}.")
    return sides["test"]


def read_images(folder: RunFolder) -> dict[tuple[str, str], list[dict]]:
    """Rows of images by evaluation and keep rate, as far as they have been measured."""
    rows: dict[tuple[str, str], list[dict]] = {}
    if not folder.per_image.is_file():
        return rows
    with folder.per_image.open(newline="") as file:
        for row in csv.DictReader(file):
            numbers = {metric: float(row[metric]) for metric in METRICS}
            place = (row.pop("evaluation"), row.pop("keep_rate"))
            rows.setdefault(place, []).append({**row, **numbers})
    return rows


def _write_images(folder: RunFolder, rows: dict[tuple[str, str], list[dict]]) -> None:
    of_all = [
        {"evaluation": evaluation, "keep_rate": rate, **row}
        for (evaluation, rate), images in rows.items()
        for row in images
    ]
    replace_table(folder.per_image, IMAGE_FIELDS, of_all)
