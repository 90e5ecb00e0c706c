"""
Measure on a GPU what pruning saves there, in one table: the dense EoMT of transformers, ours unpruned and pruned, on
whole images and on tiles with a budget for each or for their image, not compiled and compiled, in bfloat16; and
training steps.

Needs no network, no data and no checkpoint: weights are random. What is measured is kept, so that the same command
continues where the time ran out. Writes a folder per benchmark, gpu.json with all of them, and table.md.

Example:
    make gpu
    python -m scripts.benchmarking.gpu --output_dir results/gpu --model_sizes small --batch_sizes 1
"""

import json
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..common.atomic_files import replace_text
from ..common.cli import CommandParser, check_at_least_1, set_up_logging
from ..common.output_checks import check_writable
from .arguments import BenchmarkArguments, check_benchmark

logger = logging.getLogger(__name__)
RATES = [1.0, 0.7, 0.5, 0.3]
OUT_OF_TIME = "the time ran out; the same command measures it"


@dataclass(kw_only=True)
class GpuArguments:
    """What is measured, and for how long."""

    _argument_group_name = "gpu"

    output_dir: str = field(metadata={"help": "Folder of the results."})
    device: str = field(default="cuda", metadata={"help": "Device to measure on."})
    model_sizes: list[str] = field(default_factory=lambda: ["small", "base"], metadata={"help": "Shapes of models."})
    image_size: int = field(default=1024, metadata={"help": "Side of the square images."})
    tile_size: int = field(default=256, metadata={"help": "Side of the tiles."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "Images per forward pass."})
    rounds: int = field(default=7, metadata={"help": "Interleaved rounds."})
    max_seconds: int = field(default=450, metadata={"help": "After this time no further benchmark begins."})


def plan(arguments: GpuArguments) -> dict[str, BenchmarkArguments]:
    """The benchmarks by name, what matters most first; compiling takes longest, and comes last."""
    cases = {
        "": {"train": True, "train_batch_size": 2, "train_rounds": min(3, arguments.rounds)},
        "-tiles": {"tile_size": arguments.tile_size, "allocation": "tile"},
        "-image": {"tile_size": arguments.tile_size, "allocation": "image"},
        "-compiled": {"compile_mode": "default"},
    }
    return {
        f"{size}{case}": BenchmarkArguments(
            output_dir=str(Path(arguments.output_dir) / f"{size}{case}"),
            overwrite_output_dir=True,  # what is complete is not measured again
            model_size=size,
            image_size=arguments.image_size,
            batch_sizes=arguments.batch_sizes,
            keep_rates=RATES,
            reactivation_layers=[-2],
            rounds=arguments.rounds,
            device=arguments.device,
            dtype="bfloat16",
            **settings,
        )
        for case, settings in cases.items()
        for size in arguments.model_sizes
    }


def measure(benchmarks: dict[str, BenchmarkArguments], max_seconds: float) -> tuple[dict[str, dict], dict[str, str]]:
    """
    Args:
        benchmarks (`dict[str, BenchmarkArguments]`): From [`plan`].
        max_seconds (`float`): After this time no further one begins.

    Returns:
        `tuple`: By name, the results of those that are complete, measured now or before, and why others are not.
    """
    import torch

    from .suite import Benchmark

    torch._dynamo.config.recompile_limit = 256  # every configuration is a graph of its own
    begin, results, skipped = time.monotonic(), {}, {}
    for name, arguments in benchmarks.items():
        path = Path(arguments.output_dir) / "benchmark.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"complete": False}
        if known["complete"] and known["arguments"] == asdict(arguments):
            results[name] = known
            continue
        if time.monotonic() - begin > max_seconds:
            skipped[name] = OUT_OF_TIME
            continue
        logger.info("%s, after %.0f s", name, time.monotonic() - begin)
        try:
            benchmark = Benchmark(arguments)
            benchmark.run()
            results[name] = benchmark.results
        except torch.OutOfMemoryError as error:
            skipped[name] = f"out of memory: {str(error).splitlines()[0]}"
        torch.compiler.reset()
        torch.accelerator.empty_cache() if torch.accelerator.is_available() else None
    return results, skipped


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the table; exit status 1 if something is left, 2 for a wrong call."""
    parser = CommandParser(GpuArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    set_up_logging()
    from ..common.devices import usable_device
    from .gpu_report import gpu_tables

    output_dir = Path(arguments.output_dir)
    try:
        usable_device(arguments.device)
        check_at_least_1(arguments, "image_size", "tile_size", "rounds", "max_seconds")
        check_writable(output_dir, "--output_dir")
        benchmarks = plan(arguments)
        for benchmark in benchmarks.values():
            check_benchmark(benchmark)
    except ValueError as error:
        parser.error(str(error))
    results, skipped = measure(benchmarks, arguments.max_seconds)
    content = {"benchmarks": results, "skipped": skipped}
    replace_text(output_dir / "gpu.json", json.dumps(content, indent=1) + "\n")
    table = gpu_tables(results, skipped)
    replace_text(output_dir / "table.md", table)
    print(table)
    return 1 if skipped else 0


if __name__ == "__main__":
    raise SystemExit(main())
