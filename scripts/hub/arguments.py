"""Flags of `reg4pru push`, which other commands use, too. Imports no torch: `--help` must not wait for it."""

from dataclasses import dataclass, field

from ..common.arguments import RepositoryArguments


@dataclass(kw_only=True)
class PushArguments(RepositoryArguments):
    """What is pushed, and where."""

    _argument_group_name = "checkpoint"

    model_name_or_path: str = field(metadata={"help": "Checkpoint: a folder with config.json and model.safetensors."})
    hub_model_id: str = field(metadata={"help": "Repository to push to, user/name."})
    train_results: str | None = field(
        default=None, metadata={"help": "train_results.json; default: the one in the checkpoint's folder or above."}
    )
    metrics: str | None = field(default=None, metadata={"help": "metrics.json of reg4pru evaluate."})
    benchmark: str | None = field(default=None, metadata={"help": "benchmark.json of reg4pru benchmark."})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "Hub id of the data set; default: that of the training, if it was on the Hub."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id of the model that training started from; default: as recorded."}
    )
    license: str | None = field(
        default=None,
        metadata={
            "help": "Licence of the weights; default: that of the base model, apache-2.0 for weights "
            "from scratch, else 'other'."
        },
    )
    space: str | None = field(
        default=None, metadata={"help": "Also push a Space, user/name, that demonstrates the checkpoint."}
    )
    allow_training_images: bool = field(
        default=False, metadata={"help": "Also publish metrics of images that the checkpoint was trained on."}
    )
    commit_message: str = field(default="Upload checkpoint", metadata={"help": "Title of the commit."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Only write the files, to this folder; push nothing."}
    )
