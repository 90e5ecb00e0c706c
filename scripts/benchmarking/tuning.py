"""Time and quality of one checkpoint in every setting of its pruning, and the choice within a budget."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from huggingface_hub.errors import StrictDataclassClassValidationError
from tqdm import tqdm
from transformers import BaseImageProcessor

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.speed_budget import (
    SPEED_FILE,
    accuracy,
    choose_candidate,
    describe_machine,
    fingerprint_weights,
)
from modeling_reg4pru.tiled_inference import predict_image

from ..common.atomic_files import replace_json, replace_text
from ..common.cli import check_at_least_1
from ..common.data_overlap import describe_data
from ..common.former_names import with_present_names
from ..common.keep_rates import check_keep_rates
from ..common.provenance import provenance
from ..inference.model_classes import is_of_vessels
from ..reporting.speed import draw_front, front_table, measured_sentence
from .arguments import TuneArguments
from .baselines import variant
from .flops import forward_flops
from .quality import measure_quality
from .timing import interleaved_seconds, summary

logger = logging.getLogger("tune")

REPORTS = (SPEED_FILE, "speed.md", "speed.png")


class Setting(NamedTuple):
    """How a checkpoint prunes: these fields of its configuration, with a keep rate for each stage."""

    keep_rates: tuple[float, ...]
    reactivation_layer: int
    selection_pool: str
    allocation: str = "tile"  # what it was in unfinished measurements that do not tell


def settings_to_measure(
    num_stages: int,
    keep_rates: Sequence[float],
    layers: Sequence[int],
    pools: Sequence[str],
    allocations: Sequence[str],
) -> list[Setting]:
    """
    One keep rate for all stages, from unpruned down, with every reactivation layer, selection pool and allocation;
    unpruned, where these make no difference, only once.

    Args:
        num_stages (`int`): Number of pruning stages.
        keep_rates (`Sequence[float]`): Keep rates, 1 among them.
        layers (`Sequence[int]`), pools, allocations (`Sequence[str]`): Values of these fields.
    """
    pruned = [
        Setting((rate,) * num_stages, layer, pool, allocation)
        for rate in sorted(set(keep_rates), reverse=True)
        for layer in layers
        for pool in pools
        for allocation in allocations
        if rate < 1
    ]
    return [Setting((1.0,) * num_stages, layers[0], pools[0], allocations[0]), *pruned]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """
    Indices of the points (time, quality) that no other point beats in both, the fastest first.

    Args:
        points (`Sequence[tuple[float, float]]`): Less time and more quality are better.
    """
    front, best = [], -math.inf
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front


def check_arguments(arguments: TuneArguments) -> Path:
    """
    The folder of the checkpoint.

    Raises:
        `ValueError`: naming the flag, its value and what is allowed; before anything is loaded.
    """
    folder = Path(arguments.model_name_or_path)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"--model_name_or_path is {folder}: it must be the folder of a checkpoint, since the results are written "
            "into it. Download one from the Hub with `hf download <name> --local-dir <folder>`."
        )
    check_keep_rates(arguments.keep_rates)
    if 1 not in arguments.keep_rates or len(arguments.keep_rates) < 2:
        raise ValueError(f"--keep_rates is {arguments.keep_rates}: it must contain 1.0 and at least one lower rate.")
    check_at_least_1(arguments, "batch_size", "rounds", "limit", "num_threads")
    if arguments.budget_ms is not None and not arguments.budget_ms > 0:
        raise ValueError(f"--budget_ms is {arguments.budget_ms}: it must be above 0.")
    existing = [name for name in REPORTS if (folder / name).exists()]
    if existing and not arguments.overwrite and (arguments.budget_ms is None or SPEED_FILE not in existing):
        raise ValueError(
            f"{folder} already contains {', '.join(existing)}: choose a setting with --budget_ms, or measure again "
            "with --overwrite."
        )
    return folder


class Tuning:
    """
    One checkpoint, the settings measured so far, and the file that holds them until all are.

    Args:
        arguments ([`TuneArguments`]): What is measured.
        folder (`Path`): The checkpoint.
        model ([`Reg4PruForSemanticSegmentation`]), processor ([`Reg4PruImageProcessor`]): Loaded from it.
        images (`Dataset`): The validation images.

    Raises:
        `ValueError`: if the model has no pruning stages or cannot have a setting, or the folder holds an unfinished
            measurement of something else.
    """

    def __init__(
        self,
        arguments: TuneArguments,
        folder: Path,
        model: Reg4PruForSemanticSegmentation,
        processor: BaseImageProcessor,
        images: Dataset,
    ):
        self.arguments, self.folder = arguments, folder
        self.model, self.processor, self.images = model, processor, images
        config = model.config
        if not config.num_stages:
            raise ValueError(f"The model in {folder} has no pruning stages: there is nothing to tune.")
        depth = config.num_hidden_layers
        layers = {layer + depth if layer < 0 else layer for layer in arguments.reactivation_layers}
        layers = sorted(layers | {config.reactivation_layer})
        pools = list(dict.fromkeys([config.selection_pool, *arguments.selection_pools]))
        self.tiles = processor.cut_image(images[0]["image"])  # whose time is measured
        allocations = list(dict.fromkeys([config.allocation, *arguments.allocations]))
        if len(self.tiles) == 1:
            allocations = [config.allocation]
        self.settings = settings_to_measure(config.num_stages, arguments.keep_rates, layers, pools, allocations)
        for setting in self.settings:
            try:
                self._variant(setting)
            except StrictDataclassClassValidationError as error:
                raise ValueError(str(error.__cause__)) from None
        self.size = (processor.size.height, processor.size.width)
        self.data = describe_data({"validation": images})
        self.identity = {
            "weights": fingerprint_weights(folder),
            "dtype": arguments.dtype,
            "images": self.data["fingerprint"],
            "working_size": arguments.working_size,
            "seed": arguments.seed,
        }
        self.unfinished = folder / f"{SPEED_FILE}.unfinished"
        self.qualities = {} if arguments.overwrite else self._read_unfinished()

    def _read_unfinished(self) -> dict[Setting, dict[str, float]]:
        if not self.unfinished.exists():
            return {}
        content = with_present_names(json.loads(self.unfinished.read_text(encoding="utf-8")))
        if content["identity"] != self.identity:
            raise ValueError(
                f"{self.unfinished} holds measurements of other weights, images or data type: remove it, or replace "
                "it with --overwrite."
            )
        logger.info("Continuing with %d settings from %s.", len(content["qualities"]), self.unfinished)
        return {Setting(tuple(rates), *others): row for rates, *others, row in content["qualities"]}

    def cost(self, setting: Setting) -> int:
        """Floating-point operations of an image, counted as if each of its tiles kept the same number of tokens."""
        grid_size = tuple(side // self.model.config.patch_size for side in self.size)
        return sum(forward_flops(self._variant(setting).config, grid_size, len(self.tiles)).values())

    def _variant(self, setting: Setting) -> Reg4PruForSemanticSegmentation:
        return variant(self.model, **{**setting._asdict(), "keep_rates": list(setting.keep_rates)})

    def quality(self, setting: Setting) -> dict[str, float]:
        """Quality of a setting on the validation images, as `reg4pru evaluate` measures it."""
        if setting not in self.qualities:
            quality = measure_quality(
                self._variant(setting),
                self.processor,
                self.images,
                setting.keep_rates,
                batch_size=self.arguments.batch_size,
                seed=self.arguments.seed,
            )
            if math.isnan(accuracy(quality)):
                what = "vessels" if is_of_vessels(self.model.config) else "pixels that count"
                raise ValueError(f"The validation images contain no {what}: quality cannot be measured on them.")
            self.qualities[setting] = quality
            rows = [[*setting, row] for setting, row in self.qualities.items()]
            replace_text(self.unfinished, json.dumps({"identity": self.identity, "qualities": rows}, indent=1) + "\n")
        return self.qualities[setting]

    def measure_times(self) -> dict[Setting, list[float]]:
        """Seconds of the first image, from its pixels to its blended map, in every round, by setting."""
        calls = {
            setting: partial(
                predict_image,
                self._variant(setting),
                self.processor,
                self.tiles,
                setting.keep_rates,
                batch_size=self.arguments.batch_size,
            )
            for setting in self.settings
        }
        return interleaved_seconds(calls, self.model.device, self.arguments.rounds, self.arguments.min_seconds)

    def run(self) -> dict:
        """Measure, and write speed.json, speed.md and speed.png; returns the content of speed.json."""
        arguments = self.arguments
        qualities = [self.quality(setting) for setting in tqdm(self.settings, desc="Quality", unit="setting")]
        seconds = self.measure_times()
        rows = []
        for setting, quality in zip(self.settings, qualities, strict=True):
            timed = summary(seconds[setting], seconds[self.settings[0]])  # to the first: unpruned
            rows.append(
                {
                    **setting._asdict(),
                    "milliseconds": 1000 * timed["latency"],
                    "milliseconds_quartiles": [1000 * one for one in timed["latency_quartiles"]],
                    "ratio": timed["ratio"],
                    "gflops": self.cost(setting) / 1e9,
                    **quality,
                }
            )
        front = set(pareto_front([(row["milliseconds"], accuracy(row)) for row in rows]))
        speed = {
            "provenance": provenance(self.model.device, arguments.seed),
            "settings": asdict(arguments),
            "data": self.data,
            "machine": describe_machine(self.model.device, self.model.dtype),
            "image_size": list(self.size),
            "frame_size": self.tiles.patch_offsets[0, 4:6].tolist(),
            "batch_size": arguments.batch_size,
            "tiles_per_image": len(self.tiles),
            "weights": self.identity["weights"],
            "num_layers": self.model.config.num_hidden_layers,
            "checkpoint": {name: vars(self.model.config)[name] for name in Setting._fields},
            "candidates": [{**row, "on_front": index in front} for index, row in enumerate(rows)],
        }
        replace_json(self.folder / SPEED_FILE, speed, indent=1)
        replace_text(self.folder / "speed.md", speed_markdown(speed) + "\n")
        draw_front(speed, self.folder / "speed.png")
        self.unfinished.unlink(missing_ok=True)
        return speed


def speed_markdown(speed: dict) -> str:
    """What is shown of a `speed.json`, as Markdown."""
    return f"{measured_sentence(speed)}\n\n{front_table(speed)}"


def write_choice(folder: Path, speed: dict, budget: float) -> dict:
    """
    Write the most accurate setting within a budget into the configuration of a checkpoint.

    Returns:
        `dict`: the chosen candidate.

    Raises:
        `ValueError`: if the budget is below the time of the fastest setting.
    """
    chosen = choose_candidate(speed["candidates"], budget)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    before = {name: config.get(name) for name in Setting._fields}
    after = {name: list(chosen[name]) if name == "keep_rates" else chosen[name] for name in Setting._fields}
    replace_text(path, json.dumps({**config, **after}, indent=2, sort_keys=True) + "\n")
    logger.info(
        "Written to %s for a budget of %g ms: %s (%.3g ms, %s %.3f). Before: %s.",
        path,
        budget,
        after,
        chosen["milliseconds"],
        "mean IoU" if "mean_iou" in chosen else "average precision",
        accuracy(chosen),
        before,
    )
    return chosen
