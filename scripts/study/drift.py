"""Drift of preserved states in a run, by layer, and what can be decoded from them; measured once per run."""

import csv
from pathlib import Path

import numpy as np
import torch

from datasets_fives.metrics.image_counts import rank_exactly
from datasets_fives.training_samples import cut_into_tiles
from datasets_fives.transforms import EvalTransform

from ..common.atomic_files import replace_table
from ..inference.loading import load_checkpoint, training_size
from ..training.setup import load_data
from .definition import Study
from .drift_trace import measure_drift, trace_grid
from .run_folder import RunFolder

NUM_TILES = 16
MEASURED = ("cosine_pruned", "cosine_kept", "average_precision", "average_precision_unpruned")
FIELDS = ("variant", "seed", "keep_rate", "layer", *MEASURED)


def measure_run(folder: RunFolder, rate: float) -> None:
    """
    Write `drift.csv` of a run, unless it exists for this keep rate: for every layer the cosine similarity to the
    unpruned states, and the average precision of what the heads decode after it. Up to [`NUM_TILES`] test tiles with
    vessels are used, evenly spaced.
    """
    if folder.drift.is_file() and {row["keep_rate"] for row in _read(folder.drift)} == {rate}:
        return
    model, processor = load_checkpoint(str(folder.weights()), num_labels=2)
    pixels, labels = _load_tiles(folder, training_size(model.config), processor)
    pixels = pixels.to(model.device)
    pruned, unpruned = trace_grid(model, pixels, rate), trace_grid(model, pixels, 1.0)
    drift = measure_drift(pruned, unpruned)
    precisions = [_decoded_precision(trace.logits, labels) for trace in (pruned, unpruned)]
    values = zip(drift.pruned.tolist(), drift.kept.tolist(), *precisions, strict=True)
    rows = [
        {"keep_rate": rate, "layer": layer, **dict(zip(MEASURED, numbers, strict=True))}
        for layer, numbers in enumerate(values)
    ]
    replace_table(folder.drift, FIELDS[2:], rows)


def collect_drift(study: Study, runs_dir: Path) -> list[dict]:
    """One row with [`FIELDS`] per compared variant, seed and layer, in the order of the study."""
    return [
        {"variant": variant, "seed": seed, **row}
        for variant in study.compare
        for seed in study.seeds
        for row in _read(RunFolder(runs_dir, variant, seed).drift)
    ]


def write_drift(path: Path, rows: list[dict]) -> None:
    """Write the rows of [`collect_drift`] as CSV."""
    replace_table(path, FIELDS, rows)


def _read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [{**row, "layer": int(row["layer"])} for row in rows]


def _load_tiles(folder: RunFolder, size: int, processor) -> tuple[torch.Tensor, torch.Tensor]:
    _, data_arguments, arguments = folder.arguments()
    tiles = cut_into_tiles(load_data(data_arguments, arguments.seed)["test"], size)
    filled = [index for index, mask in enumerate(tiles["mask"]) if np.asarray(mask).any()]
    chosen = tiles.select([filled[index] for index in spread(len(filled), NUM_TILES)])
    batch = EvalTransform(image_mean=processor.image_mean, image_std=processor.image_std)(chosen[:])
    return torch.stack(batch["pixel_values"]), torch.stack(batch["labels"])


def _decoded_precision(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Average precision after every layer, over all pixels of the tiles."""
    precisions = []
    for layer in logits:
        enlarged = torch.nn.functional.interpolate(layer, size=labels.shape[-2:], mode="bilinear")[:, 0]
        precisions.append(rank_exactly(enlarged.flatten().cpu().numpy(), labels.flatten().numpy() == 1)[0])
    return precisions


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` evenly spaced indices below `count`."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()
