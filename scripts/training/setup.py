"""What a training works with: its processes, images, model and image processor."""

import logging
import os
import warnings

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError

from datasets_fives.masks import check_foreground
from datasets_fives.training_samples import cut_into_tiles, hold_in_memory
from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor

from ..common.dataset_loading import load_sides
from .arguments import DataArguments, ModelArguments
from .command_line import config_fields

logger = logging.getLogger(__name__)


def check_processes(num_processes: int) -> None:
    """
    Raises:
        `ValueError`: if more processes were started than belong together: each would train alone, in one folder; or
            if FSDP was asked for where Accelerate, which knows it on accelerators only, would leave it out unsaid.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > num_processes:
        raise ValueError(
            f"{started} processes were started (WORLD_SIZE), but this one would train with {num_processes}: without a "
            "GPU set ACCELERATE_USE_CPU=true; with GPUs start as many processes as there are."
        )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and PartialState().device.type == "cpu":
        raise ValueError("FSDP was asked for (ACCELERATE_USE_FSDP), but Accelerate shards on GPUs and the like only.")


def load_data(arguments: DataArguments, seed: int) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """
    Images by side (`train`, `validation`, `test`), those to train on in tiles where the recipe wants tiles. Under
    `--streaming` the training side is a stream, and the images of the validation side are held in memory.

    Args:
        arguments (`DataArguments`): Source, split, sizes.
        seed (`int`): Of the split, and of synthetic images.

    Raises:
        `ValueError`: if the source or the split does not exist, or there is nothing to train on.
    """
    sides = load_sides(arguments, seed, streaming=arguments.streaming)
    if "train" not in sides:
        raise ValueError(f"The data set {arguments.dataset} has no training images under split {arguments.split!r}.")
    if not arguments.streaming:  # of a stream nothing is known ahead
        check_foreground((np.asarray(mask) for mask in sides["train"]["mask"]), f"{arguments.dataset}, side train")
    if arguments.streaming:
        sides = {side: hold_in_memory(rows) if side == "validation" else rows for side, rows in sides.items()}
    if arguments.tile_size:
        sides["train"] = cut_into_tiles(sides["train"], arguments.tile_size)
    return dict(sides)


def build_model(arguments: ModelArguments) -> Reg4PruForSemanticSegmentation:
    """
    A model from a checkpoint, on a backbone, or from scratch.

    Raises:
        `ValueError`: for fields that [`Reg4PruConfig`] does not have, values that do not fit, a checkpoint or backbone
            that there is not, and a model of other than two classes.
    """
    overrides = config_fields(arguments.config_overrides)
    if "dtype" in overrides:
        raise ValueError(
            f"config_overrides has dtype={overrides['dtype']}: weights are trained in float32, and computed with in "
            "the format of --mixed_precision, which is --bf16 or --fp16 in reg4pru finetune."
        )
    known = set(Reg4PruConfig().to_dict()) | {"num_labels"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(f"config_overrides has {unknown}, which are no fields of Reg4PruConfig.")
    try:
        model = _build(arguments.model_name_or_path, arguments.backbone_name_or_path, overrides)
    except StrictDataclassError as error:  # it wraps what is wrong with a field
        raise ValueError(f"config_overrides: {error.__cause__ or error}") from error
    except (OSError, SafetensorError, HFValidationError) as error:
        flag = "model_name_or_path" if arguments.model_name_or_path else "backbone_name_or_path"
        raise ValueError(
            f"--{flag} is {getattr(arguments, flag)}, from which no model could be loaded: {error}"
        ) from error
    if model.config.num_labels != 2:
        raise ValueError(
            f"The model has {model.config.num_labels} classes (num_labels, id2label): it must have two, background "
            "and vessel, as the masks have. More classes are trained with transformers' Trainer on label maps."
        )
    if arguments.gradient_checkpointing:
        with warnings.catch_warnings():  # transformers 5.23 warns of the only name that 5.17 has
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable()
    return model


def _build(start: str, backbone: str, overrides: dict) -> Reg4PruForSemanticSegmentation:
    if start:
        saved_as = Reg4PruConfig.get_config_dict(start)[0].get("dtype")
        if saved_as not in (None, "float32"):
            # At usual learning rates most steps are too small for bfloat16 and float16 to change a weight.
            logger.warning("%s is saved in %s; its weights are trained, and saved, in float32.", start, saved_as)
        return Reg4PruForSemanticSegmentation.from_pretrained(start, dtype=torch.float32, **overrides)
    overrides.setdefault("id2label", {0: "background", 1: "vessel"})
    if backbone:
        return Reg4PruForSemanticSegmentation.from_backbone(backbone, **overrides)
    return Reg4PruForSemanticSegmentation(Reg4PruConfig(**overrides))


def make_processor(
    config: Reg4PruConfig, data: DataArguments, start: Reg4PruImageProcessor | None = None
) -> Reg4PruImageProcessor:
    """
    The image processor of the trained model: tiles as large as its input, of images at the scale that it saw.

    Args:
        config ([`Reg4PruConfig`]): Of the model.
        data (`DataArguments`): Whole images are brought to the model's input; crops and tiles are cut from
            images of `working_size`, or as they are.
        start ([`Reg4PruImageProcessor`], *optional*): Of the checkpoint that training begins with, for its colours.
    """
    height, width = config.input_size
    if data.tile_size not in (None, height):
        raise ValueError(
            f"tile_size is {data.tile_size}, but the model's input (image_size) has {height} pixels: tiles are not "
            "resized, so both must be the same. Set working_size to see the images at another scale."
        )
    whole = not (data.random_crop or data.tile_size)
    colours = {} if start is None else {"image_mean": start.image_mean, "image_std": start.image_std}
    return Reg4PruImageProcessor(
        size={"height": height, "width": width},
        working_size=max(height, width) if whole else data.working_size,
        num_labels=config.num_labels,
        **colours,
    )


def collate(items: list[dict]) -> dict[str, torch.Tensor]:
    """Batches of what the model takes; names and conditions stay behind."""
    names = [name for name in ("pixel_values", "labels", "patch_offsets") if name in items[0]]
    return {name: torch.stack([item[name] for item in items]) for name in names}
