"""Drift of preserved states in a run, by layer, and what can be decoded from them; measured once per run."""

import csv
from pathlib import Path

import numpy as np
import torch

from datasets_fives import class_names
from datasets_fives.metrics import ClassMetrics
from datasets_fives.metrics.image_counts import rank_exactly
from datasets_fives.training_samples import cut_into_tiles
from datasets_fives.transforms import EvalTransform
from modeling_reg4pru.label_maps import IGNORE_INDEX

from ..common.atomic_files import replace_table
from ..common.spread import spread
from ..inference.loading import load_checkpoint, training_size
from ..training.setup import load_data
from .definition import Study
from .drift_trace import measure_drift, trace_grid
from .metrics import CLASSES, VESSELS
from .run_folder import RunFolder

NUM_TILES = 16
PLACE = ("variant", "seed", "keep_rate", "layer")


def measure_run(folder: RunFolder, rate: float) -> None:
    """
    Write `drift.csv` of a run, unless it exists for this keep rate: for every layer the cosine similarity to the
    unpruned states, and the average precision, or of more than two classes the mean IoU, of what the heads decode
    after it. Up to [`NUM_TILES`] test tiles with vessels, or with labels, are used, evenly spaced.
    """
    if folder.drift.is_file() and {row["keep_rate"] for row in _read(folder.drift)} == {rate}:
        return
    model, processor = load_checkpoint(str(folder.weights()))
    pixels, labels, names = _load_tiles(folder, training_size(model.config), processor)
    pixels = pixels.to(model.device)
    pruned, unpruned = trace_grid(model, pixels, rate), trace_grid(model, pixels, 1.0)
    drift = measure_drift(pruned, unpruned)
    main = VESSELS.main if len(names) == 2 else CLASSES.main
    columns = {"cosine_pruned": drift.pruned.tolist(), "cosine_kept": drift.kept.tolist()}
    for name, trace in {main: pruned, f"{main}_unpruned": unpruned}.items():
        columns[name] = [_decoded(layer, labels, names) for layer in trace.logits]
    rows = [
        {"keep_rate": rate, "layer": layer, **dict(zip(columns, numbers, strict=True))}
        for layer, numbers in enumerate(zip(*columns.values(), strict=True))
    ]
    replace_table(folder.drift, list(rows[0]), rows)


def collect_drift(study: Study, runs_dir: Path) -> list[dict]:
    """One row with [`PLACE`] and what was measured per compared variant, seed and layer, in the order of the study."""
    return [
        {"variant": variant, "seed": seed, **row}
        for variant in study.compare
        for seed in study.seeds_of(variant)
        for row in _read(RunFolder(runs_dir, variant, seed).drift)
    ]


def write_drift(path: Path, rows: list[dict]) -> None:
    """Write the rows of [`collect_drift`] as CSV."""
    replace_table(path, list(rows[0]), rows)


def _read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [{**row, "layer": int(row["layer"])} for row in rows]


def _load_tiles(folder: RunFolder, size: int, processor) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Pixels and labels of tiles, and the names of the classes."""
    _, data_arguments, arguments = folder.arguments()
    images = load_data(data_arguments, arguments.seed)["test"]
    tiles, names = cut_into_tiles(images, size), class_names(images)
    nothing = 0 if len(names) == 2 else IGNORE_INDEX
    filled = [index for index, mask in enumerate(tiles["mask"]) if (np.asarray(mask) != nothing).any()]
    chosen = tiles.select([filled[index] for index in spread(len(filled), NUM_TILES)])
    normalise = EvalTransform(num_labels=len(names), image_mean=processor.image_mean, image_std=processor.image_std)
    batch = normalise(chosen[:])
    return torch.stack(batch["pixel_values"]), torch.stack(batch["labels"]), names


def _decoded(logits: torch.Tensor, labels: torch.Tensor, names: list[str]) -> float:
    """Average precision, or of more than two classes mean IoU, over all pixels of the tiles."""
    enlarged = torch.nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear").cpu()
    if len(names) == 2:
        return rank_exactly((enlarged[:, 1] - enlarged[:, 0]).flatten().numpy(), labels.flatten().numpy() == 1)[0]
    metrics = ClassMetrics(names, IGNORE_INDEX)
    for predicted, label_map in zip(enlarged.argmax(1), labels, strict=True):
        metrics.update(predicted, label_map)
    return metrics.compute()["mean_iou"]
