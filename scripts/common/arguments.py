"""Flags that several commands share. Imports no torch: `--help` must not wait for it."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class CheckpointArguments:
    """The checkpoint that a command loads, and how."""

    _argument_group_name = "model"

    model_name_or_path: str = field(metadata={"help": "Checkpoint: a folder or a Hub id."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Data type of the weights."}
    )


@dataclass(kw_only=True)
class DatasetArguments:
    """The images that a command trains or measures on, with their masks or label maps."""

    _argument_group_name = "data"

    dataset: str = field(default="synthetic", metadata={"help": "Folder, Hub id, saved DatasetDict or 'synthetic'."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub data set."})
    split: str = field(
        default="official",
        metadata={"help": "'official', 'resplit', 'sample', or a YAML or JSON file of names by side."},
    )
    condition_pattern: str | None = field(
        default=None,
        metadata={"help": "Regular expression whose one group captures the condition from an image's name."},
    )
    group_pattern: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression with one group: images whose names share what it captures "
            "stay together in a drawn split."
        },
    )
    classes: list[str] | None = field(
        default=None,
        metadata={"help": "Class names of label maps, or a file that lists them; default: those of the data set."},
    )
    ignore_value: list[int] | None = field(
        default=None, metadata={"help": "Label values to ignore, or one colour as red green blue; default: 255."}
    )
    reduce_labels: bool = field(
        default=False, metadata={"help": "Label maps number classes from 1, and 0 is ignored."}
    )
    vessel_labels: list[int] | None = field(
        default=None, metadata={"help": "Label values that are vessels, such as 1 2; everything else is background."}
    )
    working_size: int | None = field(
        default=None, metadata={"help": "Longer side, in pixels, to which images are scaled; default: their own size."}
    )
    synthetic_counts: list[int] = field(
        default_factory=lambda: [64, 8, 16],
        metadata={
            "help": "How many synthetic images to draw for train, validation and test; give all commands the same."
        },
    )


@dataclass(kw_only=True)
class RepositoryArguments:
    """How a repository of the Hub is treated."""

    _argument_group_name = "Hub"

    hub_private_repo: bool = field(default=False, metadata={"help": "Create a private repository."})
    overwrite_repo: bool = field(
        default=False,
        metadata={"help": "Replace the content of the repository even if it was not written by this command."},
    )


@dataclass(kw_only=True)
class ModelUploadArguments(RepositoryArguments):
    """Where a trained model goes."""

    _argument_group_name = "Hub"

    push_to_hub: bool = field(default=False, metadata={"help": "Push the best checkpoint when training ends."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository to push to, user/name."})


@dataclass(kw_only=True)
class DatasetUploadArguments(RepositoryArguments):
    """Where a data set goes that a command writes."""

    _argument_group_name = "Hub"

    push_to_hub: bool = field(default=False, metadata={"help": "Upload the data set in one commit."})
    hub_dataset_id: str | None = field(default=None, metadata={"help": "Repository to push to, user/name."})
