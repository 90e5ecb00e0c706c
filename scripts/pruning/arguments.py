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
        metadata={
            "help": "Instead of files: a folder, Hub id or saved data set; labels serve the report and --level labels."
        },
    )
    side: str = field(default="train", metadata={"help": "Part of the data set to fit on: train, validation or test."})
    report_side: str | None = field(
        default=None,
        metadata={"help": "Part of the data set to report on; default: a fifth of the images to fit on, held out."},
    )
    report_limit: int | None = field(
        default=None, metadata={"help": "Report on so many images of --report_side, spread evenly; default: all."}
    )
    level: Literal["calibrate", "distill", "labels"] = field(
        default="calibrate",
        metadata={
            "help": "'calibrate': all weights stay as they are. 'distill': they then learn to predict the same with "
            "fewer tokens. 'labels': they then learn from the labels of --dataset, by the default recipe."
        },
    )
    max_steps: int = field(
        default=40, metadata={"help": "Training steps (of 4 tiles each) with --level distill or labels."}
    )
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
            "help": "Side of the grid over whose cells the tokens dropped first are averaged into "
            "context tokens; 0 for none."
        },
    )
    keep_rates: list[float] = field(
        default_factory=lambda: [0.7, 0.5, 0.3], metadata={"help": "Keep rates of the report; the first is saved."}
    )
    num_tiles: int = field(default=400, metadata={"help": "Tiles to fit on, drawn from all images."})
    working_size: int | None = field(
        default=None,
        metadata={"help": "Longer side, in pixels, to which images are scaled; default: that of the checkpoint."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of all random draws."})
    device: str | None = field(default=None, metadata={"help": "Device; default: the GPU, if there is one."})
