"""Flags of `reg4pru benchmark` and `tune`. Imports no torch: `--help` must not wait for it."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from ..common.arguments import DatasetArguments
from ..common.cli import check_at_least_1
from ..common.keep_rates import check_keep_rates
from ..inference.arguments import AsSeenArguments

# Name → description.
ENGINES = {
    "float32": "PyTorch, float32",
    "bfloat16": "PyTorch, bfloat16",
    "compile": "torch.compile, float32",
    "onnx": "ONNX Runtime, float32",
    "onnx_int8": "ONNX Runtime, weights and activations of linear layers in 8 bits (dynamic)",
}


@dataclass(kw_only=True)
class BenchmarkArguments(AsSeenArguments):
    """What is measured, and where the results go."""

    _argument_group_name = "benchmark"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint: a folder or a Hub id; default: random weights."}
    )
    output_dir: str = field(metadata={"help": "Folder of the results."})
    model_size: Literal["debug", "tiny", "small", "base", "large"] = field(
        default="small", metadata={"help": "Size of the model with random weights."}
    )
    image_size: int = field(default=1024, metadata={"help": "Side of the square images."})
    tile_size: int | None = field(
        default=None,
        metadata={"help": "Side of the tiles into which images are cut, as for predictions; default: whole images."},
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1], metadata={"help": "Images per forward pass."})
    keep_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": "Keep rates of every stage; default: 1.0 0.9 0.8 0.7 0.6 0.5 0.3, with --engines 1.0 0.7 0.5 0.3."
        },
    )
    rounds: int = field(default=5, metadata={"help": "Number of interleaved rounds."})
    min_seconds: float = field(
        default=0.2, metadata={"help": "Seconds for which short forward passes are repeated within a round."}
    )
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads; default: chosen by torch."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the results in output_dir."})
    reactivation_layers: list[int] = field(
        default_factory=lambda: [-2, -1],
        metadata={"help": "Layers after which tokens are put back; negative ones count from the end."},
    )
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = field(
        default=None, metadata={"help": "Mode of torch.compile; default: not compiled."}
    )
    inference: bool = field(default=True, metadata={"help": "Measure inference."})
    train: bool = field(default=False, metadata={"help": "Also measure the training step."})
    train_batch_size: int = field(default=1, metadata={"help": "Images per training step."})
    train_rounds: int = field(default=5, metadata={"help": "Interleaved rounds of training steps."})
    profile: bool = field(default=False, metadata={"help": "Also write the time spent in each operator."})
    engines: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Compare engines and precisions instead; with a checkpoint, also their accuracy on the images of "
            f"--dataset: all, or some of {', '.join(ENGINES)}."
        },
    )
    allocation: Literal["tile", "image"] | None = field(
        default=None,
        metadata={
            "help": "With --tile_size: whether a keep rate holds for each tile or for the image; "
            "--engines takes 'tile' "
            "only; default: that of the checkpoint."
        },
    )
    side: str = field(default="test", metadata={"help": "With --engines: the part of the split to measure on."})


# Flags that apply with or without --engines only.
_WITH_ENGINES = (
    *(entry.name for entry in fields(DatasetArguments)), "limit", "allow_training_images", "side",
)  # fmt: skip
_WITHOUT_ENGINES = (
    "dtype", "reactivation_layers", "compile_mode", "inference", "train", "train_batch_size", "train_rounds",
    "profile", "tile_size",
)  # fmt: skip


def check_benchmark(arguments: BenchmarkArguments) -> None:
    """
    Check what is to be measured, and fill in what depends on it, before anything is loaded.

    Raises:
        `ValueError`: naming the flag, its value and what is allowed.
    """
    default = BenchmarkArguments(output_dir="")
    for name in _WITHOUT_ENGINES if arguments.engines else _WITH_ENGINES:
        if vars(arguments)[name] != vars(default)[name]:
            how = "is not for --engines" if arguments.engines else "needs --engines"
            raise ValueError(f"--{name} is {vars(arguments)[name]}: it {how}.")
    if arguments.allocation and not (arguments.engines or arguments.tile_size):
        raise ValueError(f"--allocation is {arguments.allocation}: it needs --tile_size or --engines.")
    if arguments.engines == ["all"]:
        arguments.engines = list(ENGINES)
    if unknown := set(arguments.engines or ()) - set(ENGINES):
        raise ValueError(f"--engines has {', '.join(sorted(unknown))}: give all, or some of {', '.join(ENGINES)}.")
    if arguments.engines and len(arguments.batch_sizes) > 1:
        raise ValueError(f"--batch_sizes is {arguments.batch_sizes}: engines are compared at one batch size.")
    if arguments.keep_rates is None:
        arguments.keep_rates = [1.0, 0.7, 0.5, 0.3] if arguments.engines else [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3]
    check_keep_rates(arguments.keep_rates)
    check_at_least_1(arguments, "image_size", "rounds", "train_rounds", "train_batch_size", "limit", "num_threads")
    check_at_least_1(arguments, "tile_size")
    if min(arguments.batch_sizes) < 1:
        raise ValueError(f"--batch_sizes is {arguments.batch_sizes}: every batch size must be at least 1.")
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and any(output_dir.iterdir()) and not arguments.overwrite_output_dir:
        raise ValueError(
            f"--output_dir {output_dir} is not empty: choose another folder, or replace its results with "
            "--overwrite_output_dir."
        )


@dataclass(kw_only=True)
class TuneArguments(AsSeenArguments):
    """What is measured, and the budget to choose for."""

    _argument_group_name = "tuning"

    keep_rates: list[float] = field(
        default_factory=lambda: [1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
        metadata={"help": "Keep rates to try for every stage; 1.0 must be among them."},
    )
    reactivation_layers: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Layers after which tokens are put back; negative ones count from the end. The "
            "checkpoint's own is always included."
        },
    )
    selection_pools: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What stages may choose among, 'active' or 'all' tokens; the checkpoint's own is always included."
        },
    )
    allocations: list[str] = field(
        default_factory=lambda: ["tile", "image"],
        metadata={
            "help": "Whether a keep rate holds for each tile or for the image; the checkpoint's own "
            "is always included."
        },
    )
    tile_overlaps: list[float] = field(
        default_factory=lambda: [0.0, 0.25],
        metadata={
            "help": "Parts of a tile that neighbours share at least; the checkpoint's own is always included, and "
            "what gives the same tiles is measured once."
        },
    )
    engines: list[str] | None = field(
        default=None,
        metadata={
            "help": f"What else to measure beside PyTorch in --dtype, some of {', '.join(ENGINES)}; default: bfloat16 "
            "where the machine has instructions for it."
        },
    )
    batch_size: int = field(default=4, metadata={"help": "Tiles per forward pass, also while timing."})
    rounds: int = field(default=5, metadata={"help": "Number of interleaved rounds of timing."})
    min_seconds: float = field(
        default=0.2, metadata={"help": "Seconds for which short forward passes are repeated within a round."}
    )
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads; default: chosen by torch."})
    budget_ms: float | None = field(
        default=None,
        metadata={
            "help": "Budget in milliseconds per image: write the most accurate setting within it to config.json."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Measure again and replace earlier results."})
