"""Time and quality of one checkpoint in every setting of its pruning, and the choice within a budget."""

import copy
import json
import logging
import math
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassClassValidationError
from tqdm import tqdm
from transformers import BaseImageProcessor

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.image_tiles import TiledImage
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
from ..common.devices import DTYPES
from ..common.former_names import with_present_names
from ..common.keep_rates import check_keep_rates
from ..common.provenance import provenance
from ..inference.model_classes import is_of_vessels
from ..reporting.speed import draw_front, front_table, measured_sentence
from .arguments import TuneArguments
from .baselines import variant
from .engines import engine_model
from .flops import forward_flops
from .quality import measure_quality
from .timing import interleaved_seconds, summary
from .tuned_settings import CONFIG_FIELDS, Setting, engines_to_measure, pareto_front, settings_to_measure

logger = logging.getLogger("tune")

PROCESSOR_FILE = "preprocessor_config.json"
REPORTS = (SPEED_FILE, "speed.md", "speed.png")


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
    if not all(0 <= overlap < 1 for overlap in arguments.tile_overlaps):
        raise ValueError(f"--tile_overlaps is {arguments.tile_overlaps}: each must be a part of a tile, in [0, 1).")
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
        if not model.config.num_stages:
            raise ValueError(f"The model in {folder} has no pruning stages: there is nothing to tune.")
        self.tiles = self._cut()  # the first image, whose time is measured, by overlap
        self.overlap = next(iter(self.tiles))
        self.engines = engines_to_measure(arguments.dtype, arguments.engines, model.device)
        self.models = {arguments.dtype: model}  # what has been built, by data type or setting
        self.settings = self._settings()
        for setting in self.settings:
            try:
                variant(self.model, **self._fields(setting))
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

    def _cut(self) -> dict[int, TiledImage]:
        """The first image in tiles, by overlap in pixels, the checkpoint's own first; equal tiles only once."""
        side, image = self.processor.size.height, self.images[0]["image"]
        own = self.processor.cut_image(image)
        cut = {int(own.patch_offsets[0, -1]): own}
        for overlap in self.arguments.tile_overlaps:
            tiles = self._processor(int(overlap * side)).cut_image(image)
            places = [known.patch_offsets[:, 1:3] for known in cut.values()]
            if not any(tiles.patch_offsets[:, 1:3].equal(known) for known in places):
                cut[int(overlap * side)] = tiles
        return cut

    def _settings(self) -> list[Setting]:
        arguments, config = self.arguments, self.model.config
        depth = config.num_hidden_layers
        layers = {layer + depth if layer < 0 else layer for layer in arguments.reactivation_layers}
        layers = sorted(layers | {config.reactivation_layer})
        pools = list(dict.fromkeys([config.selection_pool, *arguments.selection_pools]))
        allocations = list(dict.fromkeys([config.allocation, *arguments.allocations]))
        if len(self.tiles[self.overlap]) == 1:
            allocations = [config.allocation]
        return settings_to_measure(
            config.num_stages, arguments.keep_rates, layers, pools, allocations, list(self.tiles), self.engines
        )

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
        config = variant(self.model, **self._fields(setting)).config
        grid_size = tuple(side // config.patch_size for side in self.size)
        return sum(forward_flops(config, grid_size, len(self.tiles[setting.tile_overlap])).values())

    @staticmethod
    def _fields(setting: Setting) -> dict:
        return {name: getattr(setting, name) for name in CONFIG_FIELDS} | {"keep_rates": list(setting.keep_rates)}

    def _processor(self, overlap: int) -> BaseImageProcessor:
        processor = copy.copy(self.processor)
        processor.tile_overlap = overlap
        return processor

    def _model(self, setting: Setting) -> torch.nn.Module:
        """The model of a setting, or its engine in the place of the model; built once, whatever the overlap."""
        if setting.engine in DTYPES:
            if setting.engine not in self.models:
                self.models[setting.engine] = copy.deepcopy(self.model).to(DTYPES[setting.engine])
            return variant(self.models[setting.engine], **self._fields(setting))
        built = setting._replace(tile_overlap=None)
        if built not in self.models:
            model = variant(self.model, **self._fields(setting))
            self.models[built] = engine_model(setting.engine, model, self.size, self.scratch)
        return self.models[built]

    def quality(self, setting: Setting) -> dict[str, float]:
        """Quality of a setting on the validation images, as `reg4pru evaluate` measures it."""
        if setting not in self.qualities:
            quality = measure_quality(
                self._model(setting),
                self._processor(setting.tile_overlap),
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
            replace_json(self.unfinished, {"identity": self.identity, "qualities": rows}, indent=1)
        return self.qualities[setting]

    def measure_times(self) -> dict[Setting, list[float]]:
        """Seconds of the first image, from its pixels to its blended map, in every round, by setting."""
        calls = {
            setting: partial(
                predict_image,
                self._model(setting),
                self.processor,
                self.tiles[setting.tile_overlap],
                setting.keep_rates,
                batch_size=self.arguments.batch_size,
            )
            for setting in self.settings
        }
        return interleaved_seconds(calls, self.model.device, self.arguments.rounds, self.arguments.min_seconds)

    def run(self) -> dict:
        """Measure, and write speed.json, speed.md and speed.png; returns the content of speed.json."""
        arguments, tiles = self.arguments, self.tiles[self.overlap]
        with tempfile.TemporaryDirectory(prefix="reg4pru-tune-") as self.scratch:  # files of engines
            qualities = [self.quality(setting) for setting in tqdm(self.settings, desc="Quality", unit="setting")]
            seconds = self.measure_times()
        rows = []
        for setting, quality in zip(self.settings, qualities, strict=True):
            timed = summary(seconds[setting], seconds[self.settings[0]])  # to the first: unpruned
            rows.append(
                {
                    **setting._asdict(),
                    "tiles": len(self.tiles[setting.tile_overlap]),
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
            "frame_size": tiles.patch_offsets[0, 4:6].tolist(),
            "batch_size": arguments.batch_size,
            "tiles_per_image": len(tiles),
            "weights": self.identity["weights"],
            "num_layers": self.model.config.num_hidden_layers,
            "checkpoint": {
                **{name: vars(self.model.config)[name] for name in CONFIG_FIELDS},
                "tile_overlap": self.overlap,
            },
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
    Write the most accurate setting within a budget into the configurations of a checkpoint and of its image processor;
    of those in the data type that was measured first, as no other engine is part of a checkpoint.

    Returns:
        `dict`: the chosen candidate.

    Raises:
        `ValueError`: if the budget is below the time of the fastest setting.
    """
    dtype = speed["machine"]["dtype"]
    chosen = choose_candidate([row for row in speed["candidates"] if row.get("engine", dtype) == dtype], budget)
    before, after = _write_fields(folder / "config.json", {name: chosen[name] for name in CONFIG_FIELDS})
    cut = {"tile_overlap": chosen.get("tile_overlap")}  # early measurements know one only
    if cut["tile_overlap"] is not None and cut["tile_overlap"] != speed["checkpoint"]["tile_overlap"]:
        both = _write_fields(folder / PROCESSOR_FILE, cut)
        before, after = before | both[0], after | both[1]
        # The times that a loaded model chooses from are those of the tiles that are cut from now on.
        replace_json(folder / SPEED_FILE, {**speed, "checkpoint": {**speed["checkpoint"], **cut}}, indent=1)
    logger.info(
        "Written to %s for a budget of %g ms: %s (%.3g ms, %s %.3f). Before: %s.",
        folder,
        budget,
        after,
        chosen["milliseconds"],
        "mean IoU" if "mean_iou" in chosen else "average precision",
        accuracy(chosen),
        before,
    )
    return chosen


def _write_fields(path: Path, after: dict) -> tuple[dict, dict]:
    """Change fields of a JSON file; returns them as they were and as they are."""
    content = json.loads(path.read_text(encoding="utf-8"))
    before = {name: content.get(name) for name in after}
    replace_text(path, json.dumps({**content, **after}, indent=2, sort_keys=True) + "\n")
    return before, after
