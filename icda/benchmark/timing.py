"""Timing calls, and telling what was found to people and to programs."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import torch

try:
    import resource
except ImportError:  # Windows
    resource = None


@dataclass(frozen=True)
class Timing:
    """Seconds of every measured call.

    Args:
        wall: Until the call was done.
        cpu: That this process worked for it, on all cores; other programs disturb this less.
    """

    wall: list[float]
    cpu: list[float]


@dataclass(frozen=True)
class Result:
    """What was measured.

    Args:
        heading: One line: what was measured, and how.
        timing: Of the calls that the result is about.
        images: Images in a call.
        rows: All timings by name, for the table.
        parts: CPU milliseconds that the parts of a call take: by the part's name, then by the column's. May be empty.
        gflop: Floating point operations of a call, in 10^9; None where they make no sense.
        peak_gflops: What the device can do in a second, in 10^9; None where it makes no sense.
        peak_memory_gb: Largest memory used, in 10^9 bytes; None where it is not known.
    """

    heading: str
    timing: Timing
    images: int
    rows: Mapping[str, Timing]
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gflop: float | None = None
    peak_gflops: float | None = None
    peak_memory_gb: float | None = field(default_factory=lambda: process_memory_gb())

    def summary(self, what: str) -> dict[str, Any]:
        """Plain values for JSON: those that all benchmarks have, then CPU seconds and the median of every row.

        Args:
            what: Name of the benchmark.
        """
        seconds = _spread(self.timing.wall)
        share = None
        if self.gflop is not None and self.peak_gflops is not None:
            share = self.gflop / seconds["median"] / self.peak_gflops
        return {
            "what": what,
            "seconds": seconds,
            "images_per_second": self.images / seconds["median"],
            "peak_memory_gb": self.peak_memory_gb,
            "gflop": self.gflop,
            "peak_gflops": self.peak_gflops,
            "share_of_peak": share,
            "cpu_seconds": _spread(self.timing.cpu),
            "rows": {name.strip(): statistics.median(timing.wall) for name, timing in self.rows.items()},
        }

    def table(self) -> str:
        """Lines of text; all times in milliseconds."""
        rows = {
            name: {**_spread(timing.wall, 1e3), "CPU median": statistics.median(timing.cpu) * 1e3}
            for name, timing in self.rows.items()
        }
        return "\n\n".join(filter(None, (self.heading, _table("ms", rows), _table("CPU ms of which", self.parts))))


def _spread(values: list[float], scale: float = 1.0) -> dict[str, float]:
    return {name: scale * of(values) for name, of in (("median", statistics.median), ("min", min), ("max", max))}


def _table(corner: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Numbers under headings, as lines of text; empty if there are no rows."""
    if not rows:
        return ""
    columns = next(iter(rows.values()))
    width = max(map(len, (corner, *rows)))
    lines = [f"{corner:<{width}}" + "".join(f"{column:>12}" for column in columns)]
    lines += [f"{name:<{width}}" + "".join(f"{value:12.2f}" for value in row.values()) for name, row in rows.items()]
    return "\n".join(lines)


def measure(
    call: Callable[[], object], warmup: int, repeats: int, synchronize: Callable[[], object] = lambda: None
) -> Timing:
    """Time calls one by one.

    Args:
        call: What is measured.
        warmup: Calls before, which are not measured.
        repeats: Calls that are measured, at least 1.
        synchronize: Waits until a device that goes on by itself has done what it was given.
    """
    assert repeats > 0, repeats
    wall, cpu = [], []
    for number in range(warmup + repeats):
        synchronize()
        start, start_cpu = time.perf_counter(), time.process_time()
        call()
        synchronize()
        stop_cpu, stop = time.process_time(), time.perf_counter()
        if number >= warmup:
            wall.append(stop - start)
            cpu.append(stop_cpu - start_cpu)
    return Timing(wall, cpu)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch and OpenCV use so many threads meanwhile."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def process_memory_gb() -> float | None:
    """Largest memory of this process so far, in 10^9 bytes; None where the system does not tell."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
