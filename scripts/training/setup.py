"""What a training works with: its processes, images, model and image processor."""

import logging
import os
import warnings
from collections.abc import Sequence

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError

from datasets_fives import class_names
from datasets_fives.masks import check_foreground
from datasets_fives.training_samples import cut_into_tiles, hold_in_memory
from datasets_fives.transforms import Augmentation
from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation, Reg4PruImageProcessor
from modeling_reg4pru.input_checks import check_selectors

from ..common.dataset_loading import load_sides
from .arguments import DataArguments, ModelArguments
from .command_line import config_fields

logger = logging.getLogger(__name__)

# The classes of masks that name none.
BINARY = ("background", "vessel")
# Queries of a new model of more than two classes, as EoMT's semantic models have, unless the flags say how many.
NUM_QUERIES = 100


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
    if not arguments.streaming and len(class_names(sides["train"])) == 2:  # of a stream nothing is known ahead
        check_foreground((np.asarray(mask) for mask in sides["train"]["mask"]), f"{arguments.dataset}, side train")
    if arguments.streaming:
        sides = {side: hold_in_memory(rows) if side == "validation" else rows for side, rows in sides.items()}
    if arguments.tile_size:
        sides["train"] = cut_into_tiles(sides["train"], arguments.tile_size)
    return dict(sides)


def read_overrides(arguments: ModelArguments) -> dict:
    """
    Fields of the configuration that the flags set, by name.

    Raises:
        `ValueError`: for fields that [`Reg4PruConfig`] does not have.
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
        raise ValueError(f"config_overrides has {unknown}, which are not fields of Reg4PruConfig.")
    return overrides


def build_model(arguments: ModelArguments, names: Sequence[str] | None = None) -> Reg4PruForSemanticSegmentation:
    """
    A model from a checkpoint, on a backbone, or from scratch, of the classes of a data set: one query for two classes,
    else 100, as many as EoMT's semantic models have, unless the checkpoint or the flags say otherwise.

    Args:
        arguments (`ModelArguments`): Where it comes from, and fields of its configuration.
        names (`Sequence[str]`, *optional*): Names of the classes; by default those of the checkpoint or of the flags,
            else background and vessel.

    Raises:
        `ValueError`: for fields that [`Reg4PruConfig`] does not have, values that do not fit, a checkpoint or backbone
            that there is not, another number of classes than the data have, unless `ignore_mismatched_sizes` makes
            the class head of a checkpoint anew, and a selector that could not learn.
    """
    overrides = read_overrides(arguments)
    if names is not None and overrides.get("num_labels") == len(names):
        del overrides["num_labels"]  # says nothing new, and the names would be lost
    start, backbone = arguments.model_name_or_path, arguments.backbone_name_or_path
    try:
        if start:
            model = _start_from(start, names, overrides, arguments.ignore_mismatched_sizes)
        else:
            if not {"num_labels", "id2label"} & set(overrides):
                overrides = {**_class_fields(names or BINARY), **overrides}
            if backbone:
                model = Reg4PruForSemanticSegmentation.from_backbone(backbone, **overrides)
            else:
                model = Reg4PruForSemanticSegmentation(Reg4PruConfig(**overrides))
    except StrictDataclassError as error:  # it wraps what is wrong with a field
        raise ValueError(f"config_overrides: {error.__cause__ or error}") from error
    except (OSError, SafetensorError, HFValidationError) as error:
        flag = "model_name_or_path" if start else "backbone_name_or_path"
        raise ValueError(
            f"--{flag} is {getattr(arguments, flag)}, from which no model could be loaded: {error}"
        ) from error
    if names is not None:
        check_num_labels(model.config, names)
    check_selectors(model.config, model.selectors_learn)
    if arguments.gradient_checkpointing:
        with warnings.catch_warnings():  # transformers 5.23 warns of the only name that 5.17 has
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable()
    return model


def check_num_labels(config: Reg4PruConfig, names: Sequence[str]) -> None:
    """
    Args:
        config ([`Reg4PruConfig`]): Of a model.
        names (`Sequence[str]`): Classes of a data set.

    Raises:
        `ValueError`: if the model has another number of classes; with both lists.
    """
    if config.num_labels != len(names):
        raise ValueError(
            f"The model has {config.num_labels} classes ({', '.join(names_of(config))}), the data set {len(names)} "
            f"({', '.join(names)}). Leave num_labels and id2label out, which follow from the data; to start from a "
            "checkpoint of other classes pass --ignore_mismatched_sizes, which reinitialises its class head."
        )


def names_of(config: Reg4PruConfig) -> list[str]:
    """Names of the classes of a model, by index."""
    return [config.id2label[label] for label in range(config.num_labels)]


def _class_fields(names: Sequence[str]) -> dict:
    """Fields of the configuration that follow from the classes."""
    return {"id2label": dict(enumerate(names)), "num_queries": 1 if len(names) == 2 else NUM_QUERIES}


def _start_from(
    start: str, names: Sequence[str] | None, overrides: dict, ignore_mismatched_sizes: bool
) -> Reg4PruForSemanticSegmentation:
    """The model of a checkpoint, with the names of the data's classes; see [`build_model`]."""
    saved_as = Reg4PruConfig.get_config_dict(start)[0].get("dtype")
    if saved_as not in (None, "float32"):
        # At usual learning rates most steps are too small for bfloat16 and float16 to change a weight.
        logger.warning("%s is saved in %s; its weights are trained, and saved, in float32.", start, saved_as)
    fields = {} if names is None else _fields_for(start, names, ignore_mismatched_sizes)
    return Reg4PruForSemanticSegmentation.from_pretrained(
        start, dtype=torch.float32, ignore_mismatched_sizes=ignore_mismatched_sizes, **{**fields, **overrides}
    )


def _fields_for(start: str, names: Sequence[str], ignore_mismatched_sizes: bool) -> dict:
    """What changes in the configuration of a checkpoint that goes on with these classes."""
    saved = Reg4PruConfig.from_pretrained(start)
    if saved.num_labels == len(names):
        if tuple(names) == BINARY or names_of(saved) == list(names):  # masks without names say nothing of theirs
            return {}
        logger.warning("The classes of %s, %s, are now %s.", start, ", ".join(names_of(saved)), ", ".join(names))
        return {"id2label": dict(enumerate(names))}
    if not ignore_mismatched_sizes:
        check_num_labels(saved, names)
    logger.warning(
        "%s has %d classes, the data set %d: weights that depend on that number are reinitialised.",
        *(start, saved.num_labels, len(names)),
    )
    fields = _class_fields(names)
    if 2 not in (saved.num_labels, len(names)):  # where two classes have a single query, queries differ in number, too
        del fields["num_queries"]
    return fields


def make_augmentation(data: DataArguments) -> Augmentation:
    """How training samples vary, as the flags say."""
    return Augmentation(data.augment_flips, data.augment_turns, data.augment_colours, tuple(data.augment_scales))


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
