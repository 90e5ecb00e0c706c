"""
What the variants of a study cost, measured side by side in one process: time and memory of a training step, throughput
of inference. See [`~reg4pru.benchmarking.timing.interleaved_rounds`]. What differs in its images or seeds only is
measured once; on one thread of a CPU seconds are those that it computed, whatever else runs there.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from ..benchmarking.timing import interleaved_seconds, peak_memory, summary
from ..benchmarking.training_steps import make_step
from ..common.dataset_loading import read_classes_flag
from ..common.devices import fast_dtype, usable_device
from ..common.keep_rates import rate_name
from ..common.provenance import provenance
from ..inference.loading import training_size
from ..training.arguments import TrainArguments
from ..training.distillation import distilled_loss
from ..training.schedule import keep_rates_of_step
from ..training.setup import build_model, make_processor, names_of
from .definition import Study
from .run_folder import RunFolder
from .unet import VARIANT, UNet, unet_recipe, with_unet

# What a model follows from beside its configuration, and fields of that which concern training only.
_ORIGIN = ("model_name_or_path", "backbone_name_or_path", "dataset", "classes")
_OF_TRAINING = ("train_pruning", "routing", "routing_probability", "routing_keep_rate", "routing_window")


def measure_study(study: Study, runs_dir: Path, rounds: int) -> dict:
    """
    Costs of all variants, which do not depend on the weights. They are measured once and kept in `cost.json` beside
    the runs until the recipes change; a part of the study that begins with the same variant needs no other ones.

    Args:
        study ([`Study`]): The study; ratios are relative to its first variant.
        runs_dir (`Path`): Folder of its runs.
        rounds (`int`): Interleaved rounds.

    Returns:
        `dict`: `training`, by variant `seconds` (median), `time_ratio`, `memory_bytes` and `memory_ratio`;
        `training_dtype`, the data type of all training steps; `inference`, by variant and keep rate
        `images_per_second` and `ratio` (relative to the first variant unpruned); `rounds`; `clock`, what is counted as
        time; and `provenance`.
    """
    path = runs_dir / "cost.json"
    recipes = {variant: study.run_recipe(variant, study.seeds[0]) for variant in study.variants}
    if VARIANT in with_unet(study, runs_dir).variants:
        recipes[VARIANT] = unet_recipe(study, study.seeds[0])
    key = json.loads(json.dumps({"recipes": recipes, "keep_rates": study.keep_rates}))
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if _covers(kept.pop("key"), key):
            return kept
    device = usable_device()
    dtype = _training_dtype(study, runs_dir, device)
    cost = {
        "training": _training(study, runs_dir, device, dtype, rounds),
        "training_dtype": str(dtype).removeprefix("torch."),
        "inference": _inference(study, runs_dir, device, rounds),
        "rounds": rounds,
        "clock": "wall time" if _clock(device) is time.perf_counter else "CPU time",
        "provenance": provenance(device),
    }
    path.write_text(json.dumps({**cost, "key": key}, indent=2) + "\n", encoding="utf-8")
    return cost


def _covers(measured: dict, wanted: dict) -> bool:
    """Whether costs were measured for these variants, and perhaps more, relative to the same first one."""
    recipes, known = wanted["recipes"], measured["recipes"]
    return (
        measured["keep_rates"] == wanted["keep_rates"]
        and next(iter(known)) == next(iter(recipes))
        and all(known.get(variant) == recipe for variant, recipe in recipes.items())
    )


def _clock(device: torch.device) -> Callable[[], float]:
    """Several threads wait for each other, so that only one thread's CPU time is the time that it needs."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _first_alike(study: Study, training: bool) -> dict[str, str]:
    """
    By variant the first one that costs the same, since no setting differs that a training step or, if not `training`,
    a prediction depends on.
    """
    first: dict[str, str] = {}
    alike = {}
    for variant in study.variants:
        recipe = study.run_recipe(variant, study.seeds[0])
        settings = {name: value for name, value in recipe.items() if name not in ("working_size", "seed")}
        if not training:
            config = {name: value for name, value in recipe["config_overrides"].items() if name not in _OF_TRAINING}
            settings = {"config": config, **{name: recipe.get(name) for name in _ORIGIN}}
        alike[variant] = first.setdefault(json.dumps(settings, sort_keys=True), variant)
    return alike


def _training_dtype(study: Study, runs_dir: Path, device: torch.device) -> torch.dtype:
    """
    That of the first variant, since variants are compared and not precisions; float32 where bfloat16 would be
    emulated, which is tens of times slower.
    """
    _, _, arguments = RunFolder(runs_dir, next(iter(study.variants)), study.seeds[0]).arguments()
    if arguments.mixed_precision == "bf16" and fast_dtype(str(device)) == "float32":
        return torch.float32
    return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[arguments.mixed_precision]


def _training(
    study: Study, runs_dir: Path, device: torch.device, dtype: torch.dtype, rounds: int
) -> dict[str, dict[str, float]]:
    """Steps of every variant with pruning and routing in effect, on random images."""
    steps, memory, alike = {}, {}, _first_alike(study, training=True)
    for variant in dict.fromkeys(alike.values()):
        run = RunFolder(runs_dir, variant, study.seeds[0])
        arguments = run.arguments()[2]
        torch.manual_seed(0)
        model = _untrained(run).to(device).train()
        size = training_size(model.config)
        pixel_values = torch.randn(arguments.per_device_train_batch_size, 3, size, size, device=device)
        labels = (torch.rand(len(pixel_values), size, size, device=device) < 0.1).long()
        if model.config.num_labels > 2:
            labels = torch.randint_like(labels, model.config.num_labels)
        batch = {"pixel_values": pixel_values, "labels": labels}
        step = make_step(model, dtype, None, partial(_loss, batch=batch, arguments=arguments))
        steps[variant] = step
        draws = [peak_memory(step, device) for _ in range(5)]  # routing windows differ
        memory[variant] = statistics.median(draws)
    seconds = interleaved_seconds(steps, device, rounds, clock=_clock(device))
    first = next(iter(study.variants))
    return {
        variant: {
            "seconds": (measured := summary(seconds[like], seconds[first]))["latency"],
            "time_ratio": 1 / measured["ratio"],
            "memory_bytes": memory[like],
            "memory_ratio": memory[like] / memory[first],
        }
        for variant, like in alike.items()
    }


def _loss(
    model: Reg4PruForSemanticSegmentation, batch: dict[str, torch.Tensor], arguments: TrainArguments
) -> torch.Tensor:
    """The loss of the last step of a training."""
    rates = None if model.config.keep_rates is None else keep_rates_of_step(model, arguments, 1.0)
    if arguments.distillation:
        return distilled_loss(model, model.config, batch, rates)[0]
    return model(**batch, keep_rates=rates).loss


def training_time(study: Study, variant: str, cost: dict) -> float:
    """Time of a whole training relative to that of the first variant; dense steps count as a step of the latter."""
    recipe = study.run_recipe(variant, study.seeds[0])
    dense_fraction = float(recipe.get("dense_fraction", 0.0))
    return dense_fraction + (1 - dense_fraction) * cost["training"][variant]["time_ratio"]


@torch.inference_mode()
def _inference(study: Study, runs_dir: Path, device: torch.device, rounds: int) -> dict[str, dict]:
    """Throughput of every variant's model, in batches as large as those of the training of the first variant."""
    first = next(iter(study.variants))
    batch_size = RunFolder(runs_dir, first, study.seeds[0]).arguments()[2].per_device_train_batch_size
    calls, alike = {}, _first_alike(study, training=False)
    for variant in dict.fromkeys(alike.values()):
        model = _untrained(RunFolder(runs_dir, variant, study.seeds[0])).to(device).eval()
        size = training_size(model.config)
        pixel_values = torch.randn(batch_size, 3, size, size, device=device)
        for rate in sorted({1.0, *study.keep_rates}, reverse=True):
            calls[variant, rate] = partial(model, pixel_values, keep_rates=rate)
    if VARIANT in with_unet(study, runs_dir).variants:
        size = study.recipe["config_overrides"]["image_size"]
        model = UNet().to(device, memory_format=torch.channels_last).eval()  # the fastest way to run convolutions
        pixel_values = torch.randn(batch_size, 3, size, size, device=device)
        calls[VARIANT, 1.0] = partial(model, pixel_values.contiguous(memory_format=torch.channels_last))
        alike[VARIANT] = VARIANT
    seconds = interleaved_seconds(calls, device, rounds, clock=_clock(device))
    costs: dict[str, dict] = {}
    for variant, rate in calls:
        measured = summary(seconds[variant, rate], seconds[first, 1.0], batch_size)
        cost = {"images_per_second": measured["throughput"], "ratio": measured["ratio"]}
        costs.setdefault(variant, {})[rate_name(rate)] = cost
    return {variant: costs[like] for variant, like in alike.items()}


def _untrained(run: RunFolder) -> Reg4PruForSemanticSegmentation:
    """The model of a run as its training begins, with the classes of its weights, else of its flags."""
    model_arguments, data_arguments, _ = run.arguments()
    stated = read_classes_flag(data_arguments.classes)
    names = names_of(Reg4PruConfig.from_pretrained(run.checkpoint)) if run.has_weights else stated
    return build_model(model_arguments, names if isinstance(names, list) else None)


def tiles_per_image(study: Study, runs_dir: Path, image: Image.Image, settings: dict) -> dict[str, int]:
    """
    Number of tiles of an image by variant in an evaluation with these settings, as the variant's image processor cuts
    it (the saved one, if there are weights).
    """
    tiles = {}
    for variant in study.variants:
        run = RunFolder(runs_dir, variant, study.seeds[0])
        if run.has_weights:
            processor = Reg4PruImageProcessor.from_pretrained(run.checkpoint)
        else:
            processor = make_processor(_untrained(run).config, run.arguments()[1])
        if "tile_overlap" in settings:
            processor.tile_overlap = settings["tile_overlap"]
        tiles[variant] = len(processor.cut_image(image).patch_offsets)
    return tiles
