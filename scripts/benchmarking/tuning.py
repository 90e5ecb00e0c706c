"""Time and quality of one checkpoint over keep rates, and the choice within a budget."""

import json
import logging
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassClassValidationError
from tqdm import tqdm
from transformers import BaseImageProcessor

from modeling_reg4pru import Reg4PruForSemanticSegmentation
from modeling_reg4pru.configuration_reg4pru import SELECTION_POOLS
from modeling_reg4pru.speed_budget import SPEED_FILE, choose_candidate, describe_machine, fingerprint_weights

from ..common.atomic_files import replace_text
from ..common.cli import check_at_least_1
from ..common.data_overlap import describe_data
from ..common.keep_rates import check_keep_rates
from ..common.provenance import provenance
from ..inference.evaluation_data import AsSeenArguments
from ..reporting.speed import draw_front, front_table
from .baselines import variant, variant_config
from .flops import forward_flops
from .keep_rate_search import Setting, greedy_walk, pareto_front, uniform_settings, walk_length
from .quality import measure_quality
from .report import summary
from .timing import interleaved_seconds

logger = logging.getLogger("tune")

REPORTS = (SPEED_FILE, "speed.md", "speed.png")
CONFIG_FIELDS = ("keep_rates", "reactivation_layer", "selection_pool")


@dataclass(kw_only=True)
class TuneArguments(AsSeenArguments):
    """What is tuned, on what, and for which budget."""

    keep_rates: list[float] = field(
        default_factory=lambda: [1.0, 0.85, 0.7, 0.55, 0.4, 0.3],
        metadata={"help": "Rates that a stage can have; fewer are measured sooner."},
    )
    reactivation_layers: list[int] = field(
        default_factory=lambda: [-2, -1],
        metadata={"help": "Negative ones count from the depth; the checkpoint's own is always among them."},
    )
    selection_pools: list[str] = field(
        default_factory=lambda: list(SELECTION_POOLS), metadata={"help": "The checkpoint's own is always among them."}
    )
    batch_size: int = field(default=1, metadata={"help": "Tiles per forward pass, when time is measured, too."})
    rounds: int = field(default=5, metadata={"help": "Interleaved rounds of timing."})
    min_seconds: float = field(default=0.2, metadata={"help": "Short forward passes repeat within a round this long."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads; default: torch's choice."})
    budget_ms: float | None = field(
        default=None, metadata={"help": "Milliseconds an image may take: write the best settings into config.json."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Measure anew, and replace what was measured before."})


def check_arguments(arguments: TuneArguments) -> Path:
    """
    The folder of the checkpoint.

    Raises:
        `ValueError`: naming the flag, its value and what is allowed; before anything is loaded.
    """
    folder = Path(arguments.model_name_or_path)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"--model_name_or_path is {folder}: it must be a folder with a checkpoint, as the results are written "
            "into it. Fetch one of the Hub with `hf download <name> --local-dir <folder>`."
        )
    check_keep_rates(arguments.keep_rates)
    if 1 not in arguments.keep_rates or len(arguments.keep_rates) < 2:
        raise ValueError(f"--keep_rates is {arguments.keep_rates}: it must hold 1.0 and lower rates.")
    check_at_least_1(arguments, "batch_size", "rounds", "limit", "num_threads")
    if arguments.budget_ms is not None and not arguments.budget_ms > 0:
        raise ValueError(f"--budget_ms is {arguments.budget_ms}: it must be above 0.")
    existing = [name for name in REPORTS if (folder / name).exists()]
    if existing and not arguments.overwrite and (arguments.budget_ms is None or SPEED_FILE not in existing):
        raise ValueError(
            f"{folder} holds {', '.join(existing)}: choose from it with --budget_ms, or measure anew with --overwrite."
        )
    return folder


class Tuning:
    """
    One checkpoint, the settings measured so far, and the file that they are kept in.

    Args:
        arguments ([`TuneArguments`]): What is tuned.
        folder (`Path`): The checkpoint.
        model ([`Reg4PruForSemanticSegmentation`]), processor ([`Reg4PruImageProcessor`]): What was loaded from it.
        images (`Dataset`): The validation images.

    Raises:
        `ValueError`: for a model without stages, settings that it cannot have, or an unfinished tuning of something
            else.
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
            raise ValueError(f"{folder} has no pruning stages: there is nothing to tune.")
        depth = config.num_hidden_layers
        layers = {layer + depth if layer < 0 else layer for layer in arguments.reactivation_layers}
        layers = sorted(layers | {config.reactivation_layer})
        pools = list(dict.fromkeys([config.selection_pool, *arguments.selection_pools]))
        self.space = (config.num_stages, sorted(arguments.keep_rates), layers, pools)
        for layer in layers:
            for pool in pools:
                try:
                    variant_config(config, reactivation_layer=layer, selection_pool=pool)
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
        content = json.loads(self.unfinished.read_text())
        if content["identity"] != self.identity:
            raise ValueError(
                f"{self.unfinished} holds a tuning of other weights, images or data type: remove it, or "
                "replace it with --overwrite."
            )
        logger.info("Going on with %d settings of %s.", len(content["qualities"]), self.unfinished)
        return {Setting(tuple(rates), layer, pool): row for rates, layer, pool, row in content["qualities"]}

    def cost(self, setting: Setting) -> int:
        """Operations of a forward pass."""
        grid_size = tuple(side // self.model.config.patch_size for side in self.size)
        return sum(forward_flops(self._variant(setting).config, grid_size).values())

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
            if math.isnan(quality["average_precision"]):
                raise ValueError("There is no vessel in the validation images, so nothing tells good rates from bad.")
            self.qualities[setting] = quality
            rows = [[*setting, row] for setting, row in self.qualities.items()]
            replace_text(self.unfinished, _json({"identity": self.identity, "qualities": rows}))
        return self.qualities[setting]

    def measure_qualities(self) -> list[Setting]:
        """Measure the uniform rates and those of the walk; all that they are, in the order of their measurement."""
        uniform = uniform_settings(*self.space)
        met: dict[Setting, None] = {}
        with tqdm(total=len(uniform) + walk_length(*self.space), desc="Settings (at most)", unit="setting") as bar:

            def average_precision(setting: Setting) -> float:
                precision = self.quality(setting)["average_precision"]
                if setting not in met:
                    met[setting] = None
                    bar.update()
                return precision

            for setting in uniform:
                average_precision(setting)
            greedy_walk(*self.space, average_precision, self.cost)
        return list(met)

    @torch.inference_mode()
    def measure_times(self, settings: list[Setting]) -> list[list[float]]:
        """Seconds of a forward pass, by setting and round; all settings run once in every round."""
        batch_size = self.arguments.batch_size
        shape = (batch_size, self.model.config.num_channels, *self.size)
        pixel_values = torch.randn(shape, device=self.model.device, dtype=self.model.dtype)
        models = [self._variant(setting) for setting in settings]
        calls = [lambda model=model: model(pixel_values) for model in models]
        return interleaved_seconds(calls, self.model.device, self.arguments.rounds, self.arguments.min_seconds)

    def run(self) -> dict:
        """Measure, and write speed.json, speed.md and speed.png; what speed.json holds."""
        arguments = self.arguments
        settings = self.measure_qualities()
        seconds = self.measure_times(settings)
        rows = []
        for setting, own in zip(settings, seconds, strict=True):
            timed = summary(own, seconds[0], arguments.batch_size)  # the first one is unpruned
            rows.append(
                {
                    **setting._asdict(),
                    "milliseconds": 1000 * timed["latency"] / arguments.batch_size,
                    "milliseconds_quartiles": [
                        1000 * one / arguments.batch_size for one in timed["latency_quartiles"]
                    ],
                    "ratio": timed["ratio"],
                    "gflops": self.cost(setting) / 1e9,
                    **self.qualities[setting],
                }
            )
        front = set(pareto_front([(row["milliseconds"], row["average_precision"]) for row in rows]))
        tiles = [self.processor.cut_image(row["image"]).patch_offsets for row in self.images]
        speed = {
            "provenance": provenance(self.model.device, arguments.seed),
            "settings": asdict(arguments),
            "data": self.data,
            "machine": describe_machine(self.model.device, self.model.dtype),
            "image_size": list(self.size),
            "batch_size": arguments.batch_size,
            "tiles_per_image": sum(map(len, tiles)) / len(tiles),
            "weights": self.identity["weights"],
            "num_layers": self.model.config.num_hidden_layers,
            "checkpoint": {name: vars(self.model.config)[name] for name in CONFIG_FIELDS},
            "candidates": [{**row, "on_front": index in front} for index, row in enumerate(rows)],
        }
        (self.folder / "speed.md").write_text(front_table(speed) + "\n")
        draw_front(speed, self.folder / "speed.png")
        standard = json.loads(json.dumps(speed), parse_constant=lambda constant: None)  # there is no nan in JSON
        replace_text(self.folder / SPEED_FILE, _json(standard))
        self.unfinished.unlink(missing_ok=True)
        return speed


def _json(content: dict) -> str:
    return json.dumps(content, indent=1) + "\n"


def write_choice(folder: Path, speed: dict, budget: float) -> dict:
    """
    Write the most accurate settings within a budget into the configuration of a checkpoint.

    Returns:
        `dict`: what was chosen.

    Raises:
        `ValueError`: if the budget is below the fastest that was measured.
    """
    chosen = choose_candidate(speed["candidates"], budget)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    before = {name: config.get(name) for name in CONFIG_FIELDS}
    after = {name: list(chosen[name]) if name == "keep_rates" else chosen[name] for name in CONFIG_FIELDS}
    replace_text(path, json.dumps({**config, **after}, indent=2, sort_keys=True) + "\n")
    logger.info(
        "Written into %s for %g ms: %s (%.3g ms, average precision %.3f). Before it held %s.",
        path,
        budget,
        after,
        chosen["milliseconds"],
        chosen["average_precision"],
        before,
    )
    return chosen
