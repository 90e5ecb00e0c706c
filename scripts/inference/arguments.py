"""Flags of the commands that measure a checkpoint on images. Imports no torch: `--help` must not wait for it."""

from dataclasses import dataclass, field

from ..common.arguments import CheckpointArguments, DatasetArguments


@dataclass(kw_only=True)
class EvaluationDataArguments(DatasetArguments, CheckpointArguments):
    """A checkpoint, and the images that it is measured on."""

    _argument_group_name = "data"

    allow_training_images: bool = field(
        default=False, metadata={"help": "Also measure images that the checkpoint was trained on."}
    )
    limit: int | None = field(default=None, metadata={"help": "Measure only this many images, spread evenly."})
    seed: int = field(default=0, metadata={"help": "Seed of synthetic images, splits and random selection."})


@dataclass(kw_only=True)
class AsSeenArguments(EvaluationDataArguments):
    """The same, for commands that measure at the size at which the model sees images."""

    _argument_group_name = "data"

    working_size: int | None = field(
        default=None,
        metadata={"help": "Longer side, in pixels, to which images are scaled; default: that of the checkpoint."},
    )
