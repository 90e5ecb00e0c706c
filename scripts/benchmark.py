"""
Measure what pruning saves: latency, throughput, operations and memory against the dense model of transformers.

    reg4pru benchmark --model_size small --image_size 1024 --output_dir outputs/benchmark
    reg4pru benchmark --model_name_or_path path/to/checkpoint --device cuda --dtype bfloat16 \
        --compile_mode reduce-overhead --batch_sizes 1 8 --train --profile --output_dir outputs/benchmark-gpu

Rounds are interleaved: every contestant runs once a round, the dense model with the same weights among them, and
ratios are taken within a round. Writes benchmark.json (rewritten after every round, so that an interruption leaves
what was measured), table.md and benchmark.png, and with --profile where the time goes.
"""

import logging
import os

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import HfArgumentParser

from .benchmarking.suite import Benchmark, BenchmarkArguments, check_arguments
from .common.cli import read_flags, set_up_logging

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes into the progress bar; read on import of torch

logger = logging.getLogger("benchmark")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit status 130 after an interruption."""
    set_up_logging()
    parser = HfArgumentParser(BenchmarkArguments)
    (arguments,) = read_flags(parser, argv)
    try:
        check_arguments(arguments)
        if arguments.num_threads:
            torch.set_num_threads(arguments.num_threads)
        benchmark = Benchmark(arguments)
    except (ValueError, StrictDataclassClassValidationError) as error:
        parser.error(str(error))
    # Every configuration is a graph of its own, and all of them stay alive through the rounds.
    torch._dynamo.config.recompile_limit = 256
    try:
        benchmark.run()
    except KeyboardInterrupt:
        logger.warning("Interrupted: benchmark.json holds the rounds that were measured.")
    print(benchmark.report())
    return 0 if benchmark.results["complete"] else 130
