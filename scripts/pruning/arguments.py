"""Flags of `reg4pru prune`. Imports no torch: `--help` must not wait for it."""

from dataclasses import dataclass, field
from typing import Literal

from ..common.arguments import DatasetArguments

# In the output folder: what an interrupted run has finished so far.
UNFINISHED = "unfinished"


@dataclass(kw_only=True)
class PruneArguments(DatasetArguments):
    """What is pruned, on which images, and where the result goes."""

    _argument_group_name = "pruning"

    model_name_or_path: str = field(metadata={"help": "EoMT or Reg4Pru checkpoint: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder for the pruned checkpoint, its adapter and the report."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub checkpoint."})
    images: list[str] = field(
        default_factory=list, metadata={"help": "Files, folders or patterns of images; no labels are needed."}
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Instead of files: a folder, Hub id or saved data set, whose labels only the report reads."},
    )
    side: str = field(default="train", metadata={"help": "The side to fit on: train, validation or test."})
    report_side: str | None = field(
        default=None, metadata={"help": "The side to report on; default: a fifth of the images, kept back."}
    )
    report_limit: int | None = field(
        default=None, metadata={"help": "Report on the first so many images of --report_side; default: all."}
    )
    level: Literal["calibrate", "distill", "labels"] = field(
        default="calibrate",
        metadata={
            "help": "'calibrate': all weights stay as they are. 'distill': they then learn to predict the same with "
            "fewer tokens. 'labels': they then learn from the labels of --dataset, by the default recipe."
        },
    )
    max_steps: int = field(default=40, metadata={"help": "Steps of 4 tiles of levels 'distill' and 'labels'."})
    pruning_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Layers after which tokens are pruned; default: a quarter, half, three quarters."},
    )
    reactivation_layer: int | None = field(
        default=None, metadata={"help": "Layer after which tokens come back; default: the last but one."}
    )
    context_grid: int = field(
        default=0,
        metadata={
            "help": "Tokens that the first stage drops go on as means over so many cells squared; 0: they do not."
        },
    )
    keep_rates: list[float] = field(
        default_factory=lambda: [0.7, 0.5, 0.3], metadata={"help": "Keep rates of the report; the first is saved."}
    )
    num_tiles: int = field(default=400, metadata={"help": "Tiles to fit on, drawn from all images."})
    working_size: int | None = field(
        default=None,
        metadata={"help": "Longer side to which images are scaled; default: as the checkpoint sees them."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
