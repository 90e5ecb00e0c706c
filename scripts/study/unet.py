"""
A plain U-Net from scratch (Ronneberger et al., arXiv 1505.04597), for the study `race`: what somebody would take who
does without a pretrained backbone.

It learns from the crops and augmentation of the study's variants, and is measured on the same tiles, blended alike, so
that a run has the records of theirs. An interrupted run continues from its latest state; a finished one is kept.

Example:
    FIVES_DIR=path/to/fives DINOV2_DIR=facebook/dinov2-small python -m reg4pru.study.unet --runs_dir results/race/runs
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from datasets_fives.masks import IGNORED
from datasets_fives.metrics import measure
from datasets_fives.training_samples import ResumableSampler, SeededSamples
from datasets_fives.transforms import TrainTransform
from modeling_reg4pru import Reg4PruImageProcessor
from modeling_reg4pru.image_tiles import TileBlender

from ..common.atomic_files import replace_text
from ..common.cli import CommandParser
from ..common.provenance import provenance
from ..common.recipes import find_yaml
from ..training.setup import load_data
from .definition import Study, is_as_trained, read_study
from .evaluation import over_all_pixels, read_images, test_images, write_results
from .run_folder import RunFolder

VARIANT = "unet"
LABEL = "U-Net from scratch"
# What a run takes over from the recipe of the study, and what is its own.
_SHARED = ("dataset", "synthetic_counts", "split", "working_size", "random_crop", "samples_per_image")
_OWN = {"max_train_steps": 600, "per_device_train_batch_size": 4, "learning_rate": 2e-3, "weight_decay": 0.01}
_STATE_STEPS = 50
_OVERLAP = 0.25  # of the other variants' tiles, unless an evaluation says its own


class UNet(nn.Module):
    """
    Four halvings, two convolutions with batch normalisation at each size, bilinear upsampling; 2.0 M parameters.

    Args:
        width (`int`, *optional*, defaults to 16): Channels at full size; they double with every halving.
        depth (`int`, *optional*, defaults to 4): Number of halvings.
    """

    def __init__(self, width: int = 16, depth: int = 4):
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(map(_convolutions, [3, *widths[:-1]], widths))
        self.up = nn.ModuleList(_convolutions(3 * channels, channels) for channels in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits of the foreground, `(batch, height, width)`, of normalised images `(batch, 3, height, width)`."""
        states, hidden = [], pixel_values
        for level, block in enumerate(self.down):
            hidden = block(F.max_pool2d(hidden, 2) if level else hidden)
            states.append(hidden)
        for block, skipped in zip(self.up, reversed(states[:-1]), strict=True):
            # To the size of what is skipped: that of a tile need not be a power of two.
            upsampled = F.interpolate(hidden, size=skipped.shape[-2:], mode="bilinear")
            hidden = block(torch.cat([upsampled, skipped], dim=1))
        return self.head(hidden)[:, 0]


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers)


@dataclass(kw_only=True)
class UNetArguments:
    """What is trained, and where it is written."""

    _argument_group_name = "U-Net"

    runs_dir: str = field(metadata={"help": "Folder of the study's runs; those of the U-Net lie beside them."})
    study: str = field(default="race", metadata={"help": "YAML file of the study, or its name."})
    seeds: list[int] | None = field(default=None, metadata={"help": "Only these seeds."})


def with_unet(study: Study, runs_dir: Path) -> Study:
    """The study with the U-Net as its last variant, where runs of it have been measured; it never learned to prune."""
    if not any(RunFolder(runs_dir, VARIANT, seed).evaluation.is_file() for seed in study.seeds):
        return study
    unet = {"label": LABEL, "config": {"train_pruning": "none"}, "flags": {}}
    return replace(study, variants={**study.variants, VARIANT: unet})


def complete_run(study: Study, runs_dir: Path, seed: int) -> None:
    """
    Train and measure what is left of a run.

    Raises:
        `ValueError`: if it was started with other settings, or measured with other weights.
    """
    folder, recipe = RunFolder(runs_dir, VARIANT, seed), unet_recipe(study, seed)
    folder.training.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.path / "lock", blocking=False):
        folder.check_recipe(recipe)
        replace_text(folder.recipe, yaml.safe_dump(recipe, sort_keys=False))
        tile = study.recipe["config_overrides"]["image_size"]
        if not folder.is_trained:
            _train(folder, tile)
        folder.check_measured()
        _evaluate(study, folder, tile)


def unet_recipe(study: Study, seed: int) -> dict:
    """The data of the study, and a training of its own."""
    return {**{name: study.recipe[name] for name in _SHARED if name in study.recipe}, **_OWN, "seed": seed}


def _train(folder: RunFolder, tile: int) -> None:
    """AdamW with one cycle of the learning rate; the full state is saved every [`_STATE_STEPS`]."""
    _, data, arguments = folder.arguments()
    rows = load_data(data, arguments.seed)["train"]
    torch.manual_seed(arguments.seed)
    model = UNet().train().to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    total, batch_size = arguments.max_train_steps, arguments.per_device_train_batch_size
    optimizer = torch.optim.AdamW(model.parameters(), arguments.learning_rate, weight_decay=arguments.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, total)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    start, state_path = 0, folder.training / "state.pt"
    if state_path.is_file():
        state = torch.load(state_path)
        start = state.pop("step")
        for name, part in state.items():
            parts[name].load_state_dict(part)
    samples = SeededSamples(rows, TrainTransform(tile, crop_size=tile), arguments.seed)
    sampler = ResumableSampler(
        len(rows), data.samples_per_image, total * batch_size, start * batch_size, arguments.seed
    )
    for step, batch in enumerate(DataLoader(samples, batch_size, sampler=sampler), start + 1):
        loss = _loss(model(batch["pixel_values"]), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _STATE_STEPS == 0:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"step": step, **state}, state_path.with_suffix(".unfinished"))
            state_path.with_suffix(".unfinished").replace(state_path)
    folder.checkpoint.mkdir(exist_ok=True)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder.checkpoint / "model.safetensors")
    results = {
        "provenance": provenance(torch.device("cpu"), arguments.seed),
        "total_steps": total,
        "train_names": sorted(rows["name"]),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    replace_text(folder.training / "train_results.json", json.dumps(results, indent=2) + "\n")


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and Dice loss over the pixels that count, as Mask2Former's loss has both."""
    counts, target = (labels != IGNORED).float(), (labels == 1).float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, weight=counts)
    probability = logits.sigmoid() * counts
    overlap, total = (probability * target).sum((1, 2)), (probability + target).sum((1, 2))
    return cross_entropy + (1 - (2 * overlap + 1) / (total + 1)).mean()


def _evaluate(study: Study, folder: RunFolder, tile: int) -> None:
    """The evaluations of the study that are missing; nothing is pruned, so that all are at keep rate 1.0."""
    results, rows = folder.results(), read_images(folder)
    for name, settings in study.evaluations.items():
        if name in results or not is_as_trained(settings):  # there is no pruning to change
            continue
        predict = unet_predictor(
            folder.weights(), tile, settings.get("tile_overlap", _OVERLAP), folder.arguments()[1].working_size
        )
        measured = measure({"1.0": predict}, test_images(folder, settings), inside_field_of_view=True)["1.0"]
        results[name], rows[name, "1.0"] = {"1.0": over_all_pixels(measured.compute())}, measured.rows
        write_results(folder, results, rows)


def unet_predictor(
    checkpoint: Path, tile: int, tile_overlap: float, working_size: int | None = None
) -> Callable[[Image.Image, int], np.ndarray]:
    """
    A trained U-Net as a function of an image and its number, as [`~reg4pru.inference.predictors.predictor`] has it.

    Args:
        checkpoint (`Path`): Folder with `model.safetensors`.
        tile (`int`): Side of its tiles, in pixels.
        tile_overlap (`float`): Part of a tile that neighbours share at least.
        working_size (`int`, *optional*): Longer side that images are brought to, in pixels.
    """
    model = UNet().eval()
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    processor = Reg4PruImageProcessor(
        size={"height": tile, "width": tile}, working_size=working_size, num_labels=2, tile_overlap=tile_overlap
    )

    @torch.inference_mode()
    def predict(image: Image.Image, index: int) -> np.ndarray:
        tiled = processor.cut_image(image)
        blender = TileBlender(tiled.patch_offsets)
        for row, pixels in zip(tiled.patch_offsets, tiled, strict=True):
            foreground = model(torch.from_numpy(pixels)[None]).sigmoid()
            blender.add(row, torch.cat([1 - foreground, foreground]))
        return blender.result()[1].numpy()

    return predict


def main(argv: list[str] | None = None) -> None:
    """Train and measure the U-Net with every seed of the study."""
    (arguments,) = CommandParser(UNetArguments, __doc__).read_flags(argv)
    study = read_study(find_yaml(arguments.study, "studies")).part(seeds=arguments.seeds)
    for seed in study.seeds:
        complete_run(study, Path(arguments.runs_dir), seed)


if __name__ == "__main__":
    main()
