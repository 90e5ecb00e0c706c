"""
Measure a checkpoint at several keep rates.

    python scripts/evaluate_checkpoint.py --model_name_or_path outputs/tiny --output_dir outputs/tiny-evaluated

writes `metrics.json`, `per_image.csv`, `table.md` and `figure.png`, and prints the table. Photographs are measured one
at a time, so a test set of any size fits in memory.
"""

import csv
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from datasets import Dataset
from tqdm import tqdm
from transformers import BaseImageProcessor, HfArgumentParser

from datasets_fives import load_fives
from datasets_fives.field_of_view import field_of_view
from datasets_fives.metrics import METRICS, VesselMetrics
from modeling_reg4pru import Reg4PruForSemanticSegmentation

from figures import prediction_panels, save_prediction_figure  # isort: skip
from inference import load_checkpoint, predict_probability, predict_with_stages, select_at_random  # isort: skip
from provenance import provenance  # isort: skip

logger = logging.getLogger(__name__)

FIGURE_ROWS = 4
HEADINGS = {
    "average_precision": "AP",
    "auroc": "AUROC",
    "dice": "Dice",
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "cldice": "clDice",
    "boundary_iou": "boundary IoU",
    "centerline_recall": "centre-line recall",
}


@dataclass
class EvaluationArguments:
    """What is measured, on what, and where the result goes."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder for metrics.json, per_image.csv, table.md and figure.png."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    dataset: str = field(default="synthetic", metadata={"help": "Folder, Hub id, saved DatasetDict or 'synthetic'."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub data set."})
    dataset_split: str = field(
        default="official",
        metadata={"help": "'official', 'resplit', 'sample', or a YAML or JSON file of names by side."},
    )
    split: str = field(default="test", metadata={"help": "The side to measure: train, validation or test."})
    synthetic_counts: list[int] = field(
        default_factory=lambda: [64, 8, 16],
        metadata={"help": "Synthetic photographs for train, validation and test; give what the training was given."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side to which photographs and masks are reduced; default: as they are."}
    )
    keep_rates: list[float] = field(
        default_factory=lambda: [1.0, 0.7, 0.5, 0.3],
        metadata={"help": "Keep rates to measure; each holds for every pruning stage, and stages compound."},
    )
    selection_pool: Literal["active", "all"] | None = field(
        default=None, metadata={"help": "Override what a stage chooses among."}
    )
    selector: Literal["random"] | None = field(
        default=None, metadata={"help": "'random' replaces the trained selectors by chance, as a control."}
    )
    field_of_view: bool = field(
        default=True, metadata={"help": "Measure inside the circular field of view (default)."}
    )
    threshold: float = field(default=0.5, metadata={"help": "A pixel is vessel if its probability is above it."})
    batch_size: int = field(default=4, metadata={"help": "Tiles per forward pass."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Allow an output folder that is not empty."})
    limit: int | None = field(default=None, metadata={"help": "Measure only the first so many photographs."})
    seed: int = field(default=0, metadata={"help": "Seed of synthetic photographs, splits and random selection."})
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Of the weights."})


def evaluate(
    model: Reg4PruForSemanticSegmentation,
    processor: BaseImageProcessor,
    dataset: Dataset,
    keep_rates: list[float],
    *,
    inside_field_of_view: bool = True,
    threshold: float = 0.5,
    tile_size: int | None = None,
    batch_size: int = 4,
    seed: int = 0,
) -> dict[str, VesselMetrics]:
    """
    Measure a model on the photographs of a data set, at the resolution of their masks.

    Args:
        model ([`Reg4PruForSemanticSegmentation`]): The model.
        processor (`BaseImageProcessor`): Its image processor.
        dataset (`Dataset`): Rows as [`~datasets_fives.load_fives`] gives them.
        keep_rates (`list[float]`): Keep rates in (0, 1], each for all stages.
        inside_field_of_view (`bool`, *optional*, defaults to `True`): Whether only pixels inside the field of view
            count; otherwise the whole frame does.
        threshold (`float`, *optional*, defaults to 0.5): A pixel is vessel if its probability is above it.
        tile_size (`int`, *optional*): Side of the tiles; by default the size that the model was trained at.
        batch_size (`int`, *optional*, defaults to 4): Tiles per forward pass.
        seed (`int`, *optional*, defaults to 0): Of random selection; each photograph and rate has draws of its own.

    Returns:
        `dict[str, VesselMetrics]`: by keep rate (`"0.7"`, see [`rate_name`]) what was measured: `compute()` for the
        summary, `rows` for the photographs.

    Raises:
        `ValueError`: If there are no photographs or the keep rates are wrong; before anything is predicted.
    """
    check_keep_rates(keep_rates)
    if not len(dataset):
        raise ValueError("There are no photographs to measure.")
    measured = {rate_name(rate): VesselMetrics(threshold=threshold) for rate in keep_rates}
    conditions = dataset.features["condition"]
    devices = [model.device] if model.device.type == "cuda" else []
    for index, row in enumerate(tqdm(dataset, desc="Measuring", unit="photograph")):
        mask = np.asarray(row["mask"])
        inside = field_of_view(np.asarray(row["image"])) if inside_field_of_view else None
        for rate, metrics in zip(keep_rates, measured.values(), strict=True):
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed + index)  # whichever rates and photographs are measured beside this one
                probability = predict_probability(
                    model, processor, row["image"], rate, tile_size=tile_size, batch_size=batch_size
                )
            metrics.update(row["name"], conditions.int2str(row["condition"]), probability, mask, inside)
    return measured


def rate_name(rate: float) -> str:
    """`"0.7"`: what a keep rate is called in the results."""
    return f"{rate:g}" if rate < 1 else "1.0"


def check_keep_rates(keep_rates: list[float]) -> None:
    """Raises `ValueError` unless there are distinct rates in (0, 1]."""
    if not keep_rates:
        raise ValueError("No keep rates were given.")
    for rate in keep_rates:
        if not 0 < rate <= 1:
            raise ValueError(f"The keep rates contain {rate}: every keep rate must lie in (0, 1].")
    if len({rate_name(rate) for rate in keep_rates}) < len(keep_rates):
        raise ValueError(f"The keep rates {keep_rates} contain one of them twice.")


def results_table(measured: dict[str, VesselMetrics]) -> str:
    """All metrics by keep rate, pooled, per image and by condition, as Markdown that also reads well on a terminal."""
    results = {rate: metrics.compute() for rate, metrics in measured.items()}
    num_images = next(iter(results.values()))["num_images"]
    headings = ["keep rate", *HEADINGS.values()]

    def pooled(result: dict) -> list[str]:
        return [f"{result['pooled'][metric]:.3f}" for metric in METRICS]

    def per_image(result: dict) -> list[str]:
        values = (result["per_image"][metric] for metric in METRICS)
        return [f"{value['mean']:.3f} ± {value['sd']:.3f}" for value in values]

    parts = [f"Pooled over all pixels (photographs: {num_images}):\n"]
    parts.append(_markdown([headings, *([rate, *pooled(result)] for rate, result in results.items())]))
    if num_images > 1:
        parts.append("\nPer photograph, mean ± sd:\n")
        parts.append(_markdown([headings, *([rate, *per_image(result)] for rate, result in results.items())]))
    rows = [
        [condition, rate, *pooled(part)]
        for rate, result in results.items()
        for condition, part in result["per_condition"].items()
    ]
    if len({row[0] for row in rows}) > 1:
        parts.append("\nPooled by condition:\n")
        parts.append(_markdown([["condition", *headings], *sorted(rows, key=lambda row: row[0])]))
    return "\n".join(parts) + "\n"


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def write_results(output_dir: Path, measured: dict[str, VesselMetrics], **context: dict) -> None:
    """
    Write `metrics.json` (the context, such as provenance, then `results` by keep rate), `per_image.csv` (a row per
    photograph and keep rate) and `table.md`.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    content = {**context, "results": {rate: metrics.compute() for rate, metrics in measured.items()}}
    # JSON knows no nan: what is undefined becomes null.
    content = json.loads(json.dumps(content), parse_constant=lambda constant: None)
    (output_dir / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")
    with (output_dir / "per_image.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["keep_rate", "name", "condition", *METRICS])
        writer.writeheader()
        for rate, metrics in measured.items():
            writer.writerows({"keep_rate": rate, **row} for row in metrics.rows)
    (output_dir / "table.md").write_text(results_table(measured))


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
    """Draw up to four photographs, evenly spaced over the data set; the panels are those of `figures.COLUMNS`."""
    num_stages, rows = model.config.num_stages, []
    devices = [model.device] if model.device.type == "cuda" else []
    for index in np.linspace(0, len(dataset) - 1, min(len(dataset), FIGURE_ROWS)).round().astype(int).tolist():
        row = dataset[index]
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed + index)  # as in evaluate
            probability, stages = predict_with_stages(model, processor, row["image"], keep_rate, batch_size=batch_size)
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"]).astype(bool)
        inside = field_of_view(image)
        patch_size = model.config.patch_size
        rows.append(
            prediction_panels(row["name"], image, mask, probability, stages, num_stages, patch_size, inside, threshold)
        )
    title = f"keep rate {rate_name(keep_rate)} at each of {num_stages} stages" if num_stages else "no pruning stages"
    save_prediction_figure(path, rows, num_stages, title)


def _check(arguments: EvaluationArguments) -> None:
    check_keep_rates(arguments.keep_rates)
    VesselMetrics(threshold=arguments.threshold)
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir is {output_dir}, which is a file.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not arguments.overwrite_output_dir:
        raise ValueError(
            f"--output_dir is {output_dir}, which is not empty: choose another, or add --overwrite_output_dir to "
            "replace the results in it."
        )
    for name in ("batch_size", "limit"):
        value = vars(arguments)[name]
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: it must be at least 1.")


def load_photographs(arguments: EvaluationArguments) -> Dataset:
    split = arguments.dataset_split
    if split.endswith((".yaml", ".yml", ".json")):
        if not Path(split).is_file():
            raise ValueError(f"--dataset_split is {split}, which does not exist.")
        split = yaml.safe_load(Path(split).read_text())
    sides = load_fives(
        arguments.dataset,
        split=split,
        seed=arguments.seed,
        image_size=arguments.image_size,
        revision=arguments.dataset_revision,
        synthetic_counts=tuple(arguments.synthetic_counts),
    )
    if arguments.split not in sides:
        raise ValueError(f"--split is {arguments.split!r}: {arguments.dataset} has the sides {', '.join(sides)}.")
    photographs = sides[arguments.split]
    if not len(photographs):
        raise ValueError(f"The side {arguments.split!r} of {arguments.dataset} has no photographs.")
    return photographs.select(range(min(arguments.limit or len(photographs), len(photographs))))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = HfArgumentParser(EvaluationArguments)
    parser.add_argument(
        "--whole_frame", dest="field_of_view", action="store_false", help="Measure all pixels of the photographs."
    )
    (arguments,) = parser.parse_args_into_dataclasses()
    try:
        _check(arguments)
        model, processor = load_checkpoint(
            arguments.model_name_or_path, arguments.model_revision, arguments.device, arguments.dtype
        )
        photographs = load_photographs(arguments)
    except ValueError as error:
        parser.error(str(error))
    if arguments.selection_pool:
        model.config.selection_pool = arguments.selection_pool
    if arguments.selector == "random":
        select_at_random(model)

    common = {"threshold": arguments.threshold, "batch_size": arguments.batch_size, "seed": arguments.seed}
    measured = evaluate(
        model,
        processor,
        photographs,
        arguments.keep_rates,
        inside_field_of_view=arguments.field_of_view,
        **common,
    )
    output_dir = Path(arguments.output_dir)
    write_results(
        output_dir, measured, provenance=provenance(model.device, arguments.seed), settings=asdict(arguments)
    )
    shown = next((rate for rate in arguments.keep_rates if rate < 1), arguments.keep_rates[0])
    draw_figure(output_dir / "figure.png", model, processor, photographs, shown, **common)
    print(results_table(measured))
    logger.info("Written to %s: metrics.json, per_image.csv, table.md, figure.png", output_dir)


if __name__ == "__main__":
    main()
