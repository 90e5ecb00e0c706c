"""Measuring seconds, bytes, and which parts of a forward pass take how much of its time."""

import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from modeling_reg4pru import Reg4PruForSemanticSegmentation

MEMORY_METHOD = {
    "cpu": "Peak of the bytes that torch's CPU allocator holds at once during the call, beyond what was there before "
    "(weights, inputs, optimiser); from the allocation records of torch.profiler.",
    "cuda": "torch.cuda.max_memory_allocated during the call, less torch.cuda.memory_allocated before it.",
}

# Of a forward pass: what [`time_shares`] tells apart, and how tables call it.
PARTS = {
    "embeddings": "embeddings",
    "full_layers": "layers of all tokens",
    "pruned_layers": "layers between pruning and reactivation",
    "selectors": "selectors",
    "corrections": "drift corrections",
    "heads": "heads",
    "rest": "rest",
}


def synchronize(device: torch.device) -> None:
    """Wait for a GPU, so that a clock measures the work and not its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(
    call: Callable[[], object], device: torch.device, repeats: int = 1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Mean time of a few calls in a row, by default wall time."""
    synchronize(device)
    start = clock()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (clock() - start) / repeats


def interleaved_rounds(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    rounds: int,
    min_seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[list[float]]:
    """
    Time calls side by side: in every round each runs once, short ones several times in a row. A machine that is busy
    for a while slows down all of them, so that ratios within a round can be trusted.

    Args:
        calls (`Sequence[Callable]`): What is timed, after two calls each that do not count.
        device (`torch.device`): Where they compute.
        rounds (`int`): Number of rounds.
        min_seconds (`float`, *optional*, defaults to 0.0): How long a call is repeated within a round.
        clock (`Callable`, *optional*, defaults to `time.perf_counter`): Tells the seconds; `time.process_time`, what
            the process computed, does not grow where other programs take the cores.

    Yields:
        `list[float]`: mean time of every call in one round.
    """
    repeats = []
    for call in calls:
        call()
        repeats.append(max(1, math.ceil(min_seconds / seconds_per_call(call, device))))
    for _ in range(rounds):
        yield [seconds_per_call(call, device, count, clock) for call, count in zip(calls, repeats, strict=True)]


def interleaved_seconds(
    calls: Mapping[Hashable, Callable[[], object]],
    device: torch.device,
    rounds: int,
    min_seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Hashable, list[float]]:
    """The seconds of every call, by its key, in the rounds of [`interleaved_rounds`]; with a progress bar."""
    timed = interleaved_rounds(list(calls.values()), device, rounds, min_seconds, clock)
    of_calls = zip(*tqdm(timed, total=rounds, desc="Timing", unit="round"), strict=True)
    return {key: list(seconds) for key, seconds in zip(calls, of_calls, strict=True)}


def summary(seconds: list[float], reference: list[float], batch_size: int = 1) -> dict:
    """
    Median and quartiles over the rounds. A ratio is taken within its round, against what ran beside it, before the
    median.

    Args:
        seconds (`list[float]`): Seconds of every round.
        reference (`list[float]`): Those of the reference in the same rounds.
        batch_size (`int`, *optional*, defaults to 1): Images per call.

    Returns:
        `dict`: `latency` (seconds), `throughput` (images per second), `ratio` (how many times as fast as the
        reference), and `latency_quartiles` and `ratio_quartiles`.
    """
    ratios = [other / own for own, other in zip(seconds, reference, strict=True)]
    return {
        "latency": statistics.median(seconds),
        "latency_quartiles": quartiles(seconds),
        "throughput": batch_size / statistics.median(seconds),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": quartiles(ratios),
    }


def quartiles(values: list[float]) -> list[float]:
    """First and third quartile; both are the value itself if there is only one."""
    if len(values) == 1:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call needs at its peak, beyond those held before; see [`MEMORY_METHOD`]."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    records = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return peak_of_allocations([record["args"] for record in records])


def peak_of_allocations(records: list[dict]) -> int:
    """
    Highest rise above the start. A record holds the `Bytes` of one allocation or release and the `Total Allocated`
    after it; from the first one follows what was held before, for instance by an earlier call.
    """
    if not records:
        return 0
    before = records[0]["Total Allocated"] - records[0]["Bytes"]
    return max(record["Total Allocated"] for record in records) - before


def time_shares(
    model: Reg4PruForSemanticSegmentation, call: Callable[[], object], device: torch.device, repeats: int = 3
) -> dict[str, float]:
    """
    Shares of a forward pass by [`PARTS`], of the call of median time among a few, without torch.compile, whose graph
    has no such boundaries. `rest` is what belongs to no module: gathering and reactivating, rotary positions,
    insertion of the queries.
    """
    marks: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(name: str) -> Callable:
        def hook(*_) -> None:
            if device.type == "cuda":
                event = torch.cuda.Event(enable_timing=True)
                event.record()
                marks.append((name, event))
            else:
                marks.append((name, time.perf_counter()))

        return hook

    config = model.config
    modules = [("embeddings", model.embeddings)]
    for index, layer in enumerate(model.layers):
        prunes = min(config.pruning_layers, default=index) < index <= config.reactivation_layer
        modules.append(("pruned_layers" if prunes else "full_layers", layer))
    modules += [("selectors", selector) for selector in model.selectors]
    modules += [("corrections", correction) for correction in model.drift_corrections]
    hooks = [model.register_forward_pre_hook(mark("rest")), model.register_forward_hook(mark("end"))]
    for name, module in modules:
        hooks += [module.register_forward_pre_hook(mark(name)), module.register_forward_hook(mark("rest"))]
    hooks.append(model.layernorm.register_forward_pre_hook(mark("heads")))
    shares = []
    for _ in range(repeats):
        marks.clear()
        call()
        synchronize(device)
        shares.append(_shares(marks))
    for hook in hooks:
        hook.remove()
    return sorted(shares, key=lambda share: share[0])[repeats // 2][1]


def _shares(marks: list) -> tuple[float, dict[str, float]]:
    def elapsed(start, end) -> float:
        return start.elapsed_time(end) if isinstance(start, torch.cuda.Event) else end - start

    spent = dict.fromkeys(PARTS, 0.0)
    for (name, start), (_, end) in itertools.pairwise(marks):
        spent[name] += elapsed(start, end)
    whole = elapsed(marks[0][1], marks[-1][1])
    return whole, {name: seconds / whole for name, seconds in spent.items()}


def save_profile(call: Callable[[], object], device: torch.device, path: Path, rows: int = 40) -> None:
    """Where the time of a call goes, by operator, the most expensive first."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        call()
        synchronize(device)
    table = profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=rows)
    path.write_text(table, encoding="utf-8")
