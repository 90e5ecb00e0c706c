"""How the benchmark measures: seconds, bytes, and the share of a forward pass that is spent between its layers."""

import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
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


def synchronize(device: torch.device) -> None:
    """Wait for a GPU, so that a clock tells the time of the work and not of its launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Mean wall time of a few calls in a row."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def repeats_for(call: Callable[[], object], device: torch.device, min_seconds: float) -> int:
    """How many calls in a row take so many seconds, at least one."""
    return max(1, math.ceil(min_seconds / seconds_per_call(call, device)))


def interleaved_seconds(
    calls: list[Callable[[], object]], device: torch.device, rounds: int, min_seconds: float
) -> list[list[float]]:
    """
    Mean wall time of every call in every round; each runs once a round, short ones several times.

    Args:
        calls (`list[Callable]`): What is timed, after one call that is not.
        device (`torch.device`): Where they compute.
        rounds (`int`): Rounds.
        min_seconds (`float`): How long one call is repeated within a round.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    with tqdm(total=len(calls) * (rounds + 1), desc="Timing", unit="run") as bar:
        repeats = []
        for call in calls:
            call()
            repeats.append(repeats_for(call, device, min_seconds))
            bar.update()
        for _ in range(rounds):
            for own, call, count in zip(seconds, calls, repeats, strict=True):
                own.append(seconds_per_call(call, device, count))
                bar.update()
    return seconds


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
        events = json.loads(trace.read_text())["traceEvents"]
    records = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return peak_of_allocations([record["args"] for record in records])


def peak_of_allocations(records: list[dict]) -> int:
    """
    Highest rise above the start. A record holds the `Bytes` of one allocation or release and the `Total Allocated`
    after it; the first one tells what was held before, for instance by an earlier call.
    """
    if not records:
        return 0
    before = records[0]["Total Allocated"] - records[0]["Bytes"]
    return max(record["Total Allocated"] for record in records) - before


def share_between_layers(
    model: Reg4PruForSemanticSegmentation, call: Callable[[], object], device: torch.device, repeats: int = 3
) -> float:
    """
    Share of the forward pass that is spent in none of its parts (embeddings, layers, drift corrections, heads):
    selecting, gathering and reactivating, and whatever else lies between (rotary positions, entry of the queries).
    Median over a few calls, without torch.compile, whose graph has no such seams.
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

    hooks = [model.register_forward_pre_hook(mark("begin")), model.register_forward_hook(mark("end"))]
    for part in (model.embeddings, *model.layers, *model.drift_corrections):
        hooks += [part.register_forward_pre_hook(mark("enter")), part.register_forward_hook(mark("leave"))]
    hooks.append(model.layernorm.register_forward_pre_hook(mark("heads")))
    shares = []
    for _ in range(repeats):
        marks.clear()
        call()
        synchronize(device)
        shares.append(_share(marks))
    for hook in hooks:
        hook.remove()
    return statistics.median(shares)


def _share(marks: list) -> float:
    def elapsed(start, end) -> float:
        return start.elapsed_time(end) if isinstance(start, torch.cuda.Event) else end - start

    between = sum(
        elapsed(start, end)
        for (name, start), (_, end) in itertools.pairwise(marks)
        if name == "leave"  # up to the next part
    )
    return between / elapsed(marks[0][1], marks[-1][1])


def save_profile(call: Callable[[], object], device: torch.device, path: Path, rows: int = 40) -> None:
    """Where the time of a call goes, by operator, the most expensive first."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        call()
        synchronize(device)
    table = profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=rows)
    path.write_text(table)


WARMUP_ROUNDS = 2


def time_interleaved(
    contestants: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for count in range(WARMUP_ROUNDS + rounds):
        for name, call in contestants.items():
            elapsed = seconds_per_call(call, device)
            if count >= WARMUP_ROUNDS:
                seconds[name].append(elapsed)
    return seconds
