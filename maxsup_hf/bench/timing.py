"""Measuring seconds and bytes, and describing the machine.

All candidates are timed in one process in interleaved rounds, and a ratio is the median of the rounds' ratios, so that a
machine whose speed varies slows down both sides alike.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

ENOUGH = 2e-3  # seconds; a shorter run is repeated until a measurement lasts this long


def stopwatch(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """The seconds that a function took, including its work on a GPU, and what it returned."""
    _wait(device)
    start = time.perf_counter()
    found = function()
    _wait(device)
    return time.perf_counter() - start, found


def interleaved(runs: Mapping[str, Callable[[], tuple[float, Any]]], rounds: int) -> dict[str, list[float]]:
    """Time several functions in turn.

    Args:
        runs: name -> function that does the work once, and returns the seconds that it took and any result.
        rounds: the number of rounds, in each of which every function is timed.

    Returns:
        name -> seconds in each round.
    """
    repeats = {}
    for name, run in runs.items():
        once = min(run()[0] for _ in range(3))
        repeats[name] = max(1, min(100, int(ENOUGH / once)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(sum(run()[0] for _ in range(repeats[name])) / repeats[name])
    return seconds


def ratio(seconds: list[float], other: list[float]) -> float:
    """The median of the rounds' ratios."""
    return median(a / b for a, b in zip(seconds, other, strict=True))


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """The peak of the bytes that a function allocates, as counted by the allocator."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def machine(device: torch.device) -> dict[str, Any]:
    """The machine that measurements were made on."""
    cpuinfo = Path("/proc/cpuinfo")  # only on Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "processor": models[0] if models else platform.processor(),
        "cores": len(models) or None,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
