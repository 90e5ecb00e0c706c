"""
Time and quality in several precisions and engines, of dense and pruned models in one run.

Compared are EoMT of transformers with the same weights, the other EoMT of transformers (on DINOv2 or DINOv3) of the
same shape with random weights, and the model at every keep rate, each in every engine that works on this machine.
Quality is measured on images and needs a checkpoint; time does not. It is that of the logits, which are what exported
models return: of several classes `reg4pru evaluate` knows the masks of all queries, and its edges differ a little.
"""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import set_seed

from modeling_reg4pru import Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from ..common.atomic_files import replace_json
from ..common.data_overlap import describe_data
from ..common.devices import usable_device
from ..common.keep_rates import rate_name
from ..common.provenance import provenance
from ..common.weight_fingerprints import measured_weights
from ..inference.evaluation_data import load_as_seen
from ..inference.loading import check_image_size, load_checkpoint
from ..inference.onnx_export import check_allocation, tiles_in_a_row
from .arguments import BenchmarkArguments
from .baselines import dense_model, model_config, variant, variant_config
from .engines import EngineModel, Logits, build_engine, why_not
from .quality import measure_quality
from .quality_names import CLASS_QUALITIES, QUALITIES, qualities_of
from .report import engine_table
from .timing import interleaved_seconds, summary

logger = logging.getLogger("engines")
OURS = "reg4pru"


def other_eomt(model: Reg4PruForSemanticSegmentation, image_size: int) -> torch.nn.Module:
    """The other EoMT of transformers (on DINOv2 or DINOv3), of the same shape, with random weights."""
    side = image_size // model.config.patch_size
    learned = model.config.positions != "learned"
    biases = {f"{name}_bias": True for name in ("query", "key", "value")}  # EoMT on DINOv2 always has them
    fields = {"positions": "learned", "position_grid": [side, side], **biases} if learned else {"positions": "rotary"}
    config = variant_config(model.config, **{"position_grid": None, **fields})
    return dense_model(Reg4PruForSemanticSegmentation(config), image_size)


class EngineComparison:
    """
    One comparison of engines.

    Args:
        arguments ([`BenchmarkArguments`]): What is measured.
        model ([`Reg4PruForSemanticSegmentation`]): The model.
        processor ([`Reg4PruImageProcessor`], *optional*): Its image processor, to measure quality.
        images (`Dataset`, *optional*): Images to measure quality on.

    Raises:
        `ValueError`: if the tiles of the model share a budget, its input is not square, or no engine works here.
    """

    def __init__(
        self,
        arguments: BenchmarkArguments,
        model: Reg4PruForSemanticSegmentation,
        processor: Reg4PruImageProcessor | None = None,
        images: Dataset | None = None,
    ):
        check_allocation(model.config)
        self.arguments, self.model = arguments, model
        (self.batch_size,) = arguments.batch_sizes
        self.weights = measured_weights(arguments.model_name_or_path, arguments.model_revision)
        self.processor, self.images = processor, images
        self.device = model.device
        size = (processor.size.height, processor.size.width) if processor else (arguments.image_size,) * 2
        if size[0] != size[1]:
            raise ValueError(f"The input has {size[0]} × {size[1]} pixels: EoMT of transformers takes squares only.")
        check_image_size(model.config, *size)
        self.image_size = size[0]
        skipped = {name: why_not(name, self.device) for name in arguments.engines}
        self.skipped = {name: reason for name, reason in skipped.items() if reason}
        for name, reason in self.skipped.items():
            logger.warning("Not measured: %s, %s.", name, reason)
        self.engines = [name for name in arguments.engines if name not in self.skipped]
        if not self.engines:
            raise ValueError(f"None of the engines {', '.join(arguments.engines)} works here.")

    def _models(self) -> list[tuple[str, float | None, torch.nn.Module, bool]]:
        """Name, keep rate and model, and whether its weights are those of the checkpoint."""
        dense = dense_model(self.model, self.image_size).to(self.device)
        other = other_eomt(self.model, self.image_size).to(self.device)
        rates = [(OURS, rate, variant(self.model, keep_rates=rate), True) for rate in self.arguments.keep_rates]
        return [(type(dense).__name__, None, dense, True), (type(other).__name__, None, other, False), *rates]

    def run(self) -> str:
        """Measure, and write engines.json and table.md into the output folder; returns the table."""
        with tempfile.TemporaryDirectory(prefix="reg4pru-engines-") as folder:
            results = self.measure(Path(folder))
        output_dir = Path(self.arguments.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        replace_json(output_dir / "engines.json", results, indent=1)
        text = engine_table(results)
        (output_dir / "table.md").write_text(text + "\n", encoding="utf-8")
        return text

    @torch.inference_mode()
    def measure(self, folder: Path) -> dict:
        """
        Build, measure quality, then time.

        Args:
            folder (`Path`): For the files of the engines.
        """
        arguments, size = self.arguments, (self.image_size,) * 2
        models = self._models()
        images = torch.randn(self.batch_size, self.model.config.num_channels, *size, device=self.device)
        offsets = tiles_in_a_row(self.batch_size, self.image_size).to(self.device)
        rows, runs = [], []
        with tqdm(total=len(models) * len(self.engines), desc="Engines", unit="model") as bar:
            for name, rate, model, trained in models:
                for engine in self.engines:
                    bar.set_postfix_str(f"{name}, {'dense' if rate is None else rate_name(rate)}, {engine}")
                    files = Path(tempfile.mkdtemp(dir=folder))
                    run = build_engine(engine, Logits(model).eval(), size, files, self.device)
                    run(images, offsets)  # compiles
                    row = {"model": name, "keep_rate": rate, "engine": engine, "trained": trained}
                    rows.append(row | self._quality(run, trained))
                    runs.append(run)
                    bar.update()
        calls = {place: partial(run, images, offsets) for place, run in enumerate(runs)}
        seconds = interleaved_seconds(calls, self.device, arguments.rounds, arguments.min_seconds)
        return {
            "provenance": provenance(self.device, arguments.seed),
            "settings": asdict(arguments) | {"batch_size": self.batch_size},
            "weights": self.weights,
            "data": None if self.images is None else describe_data({arguments.side: self.images}),
            "image_size": self.image_size,
            "skipped": self.skipped,
            "rows": with_ratios(rows, list(seconds.values()), self.batch_size),
        }

    def _quality(self, run: Callable[[torch.Tensor], torch.Tensor], trained: bool) -> dict[str, float | None]:
        if self.images is None or not trained:
            return dict.fromkeys(QUALITIES if self.model.config.num_labels == 2 else CLASS_QUALITIES)
        common = {"batch_size": self.batch_size, "seed": self.arguments.seed}
        engine = EngineModel(run, self.device, self.model.config.id2label)
        return measure_quality(engine, self.processor, self.images, "config", **common)


def with_ratios(rows: list[dict], seconds: list[list[float]], batch_size: int) -> list[dict]:
    """
    The rows with their times, the ratio to the first row (EoMT of transformers in the first engine) within rounds, and
    the `change` of their first quality from that of the same model in the first engine.

    Args:
        rows (`list[dict]`): What was measured, all engines of a model together.
        seconds (`list[list[float]]`): Seconds of every row, by round.
        batch_size (`int`): Images per call.
    """
    main, first = next(iter(qualities_of(rows[0]))), {}
    timed = []
    for row, own in zip(rows, seconds, strict=True):
        reference = first.setdefault((row["model"], row["keep_rate"]), row[main])
        change = None if row[main] is None else row[main] - reference
        timed.append({**row, "change": change, "seconds": own, **summary(own, seconds[0], batch_size)})
    return timed


def prepare_comparison(arguments: BenchmarkArguments) -> EngineComparison:
    """The comparison of these arguments; raises `ValueError` if it is not possible."""
    set_seed(arguments.seed)
    if arguments.model_name_or_path is None:
        device = usable_device(arguments.device)
        model = Reg4PruForSemanticSegmentation(model_config(arguments.model_size, arguments.image_size))
        return EngineComparison(arguments, model.eval().to(device))
    model, processor = load_checkpoint(arguments.model_name_or_path, arguments.model_revision, arguments.device)
    if arguments.allocation:
        model.config.allocation = arguments.allocation
    images = load_as_seen(arguments, processor, arguments.side)
    return EngineComparison(arguments, model, processor, images)
