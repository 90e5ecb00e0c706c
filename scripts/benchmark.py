"""
Measure what pruning saves: latency, throughput, operations and memory, compared with the dense model of transformers;
with --engines, what low precision, torch.compile and ONNX Runtime save and what they cost in accuracy.

With --tile_size an image is cut into tiles, as for predictions, and a forward pass is that of all its tiles.

Rounds are interleaved: every model, including the dense one with the same weights, runs once per round, and ratios are
computed within rounds. Writes benchmark.json (after every round, so that nothing is lost when it is interrupted),
table.md and benchmark.png, and with --profile the time spent in each operator; with --engines, engines.json and
table.md.

Example:
    reg4pru benchmark --model_size small --image_size 1024 --output_dir outputs/benchmark
    reg4pru benchmark --model_name_or_path path/to/checkpoint --tile_size 252 --allocation image --keep_rates 0.5 \\
        --output_dir outputs/benchmark-tiles
    reg4pru benchmark --model_name_or_path path/to/checkpoint --device cuda --dtype bfloat16 \\
        --compile_mode reduce-overhead --batch_sizes 1 8 --train --profile --output_dir outputs/benchmark-gpu
    reg4pru benchmark --engines all --model_name_or_path path/to/checkpoint --dataset user/fives \\
        --output_dir outputs/engines
"""

import logging
from pathlib import Path

from .benchmarking.arguments import BenchmarkArguments, check_benchmark
from .common.cli import CommandParser, set_up_logging
from .common.output_checks import check_writable

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit status 130 after an interruption."""
    parser = CommandParser(BenchmarkArguments, __doc__)
    (arguments,) = parser.read_flags(argv)
    set_up_logging()
    import torch
    from huggingface_hub.errors import StrictDataclassClassValidationError

    from .benchmarking.engine_comparison import prepare_comparison
    from .benchmarking.suite import Benchmark

    try:
        check_benchmark(arguments)
        check_writable(Path(arguments.output_dir), "--output_dir")
        if arguments.num_threads:
            torch.set_num_threads(arguments.num_threads)
        benchmark = prepare_comparison(arguments) if arguments.engines else Benchmark(arguments)
    except (ValueError, StrictDataclassClassValidationError) as error:
        parser.error(str(error))
    # Every configuration is a graph of its own, and all of them stay alive through the rounds.
    torch._dynamo.config.recompile_limit = 256
    if arguments.engines:
        print(benchmark.run())
        return 0
    try:
        benchmark.run()
    except KeyboardInterrupt:
        logger.warning("Interrupted: benchmark.json contains the rounds measured so far.")
    print(benchmark.report())
    return 0 if benchmark.results["complete"] else 130
