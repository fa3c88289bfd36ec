"""Timing calls, and telling what was found to people and to programs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import torch

from icda.benchmark.memory import PeakMemory

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Timing:
    """Seconds of every measured call.

    Args:
        wall: Until the call was done.
        cpu: That this process worked for it, on all cores; other programs disturb this less.
        peak_memory_gb: Largest memory used meanwhile, in 10^9 bytes; None where it is not known.
    """

    wall: list[float]
    cpu: list[float]
    peak_memory_gb: float | None = None


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
        peak_memory_gb: Largest memory used, in 10^9 bytes; None for that of ``timing``.
        extra: What else is worth telling, plain values for JSON by name.
        call: What was measured, for a profile of it; None where it cannot be called any more.
    """

    heading: str
    timing: Timing
    images: int
    rows: Mapping[str, Timing]
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gflop: float | None = None
    peak_gflops: float | None = None
    peak_memory_gb: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[[], object] | None = None

    def summary(self, what: str) -> dict[str, Any]:
        """Plain values for JSON: those that all benchmarks have, then ``extra``.

        Args:
            what: Name of the benchmark.

        Returns:
            ``what``; ``seconds`` of a call (median, min, max); ``images_per_second``; ``peak_memory_gb``; ``gflop``
            of a call; ``peak_gflops`` of the device; ``share_of_peak``, from 0 to 1; ``seconds_times_peak``, by
            which machines of different speed can be compared; ``cpu_seconds`` (median, min, max); ``rows``, the
            median seconds of every row; ``extra``. What is not known is None.
        """
        seconds = _spread(self.timing.wall)
        share = product = None
        if self.peak_gflops is not None:
            product = seconds["median"] * self.peak_gflops
            share = None if self.gflop is None else self.gflop / product
        return {
            "what": what,
            "seconds": seconds,
            "images_per_second": self.images / seconds["median"],
            "peak_memory_gb": self.timing.peak_memory_gb if self.peak_memory_gb is None else self.peak_memory_gb,
            "gflop": self.gflop,
            "peak_gflops": self.peak_gflops,
            "share_of_peak": share,
            "seconds_times_peak": product,
            "cpu_seconds": _spread(self.timing.cpu),
            "rows": {name.strip(): statistics.median(timing.wall) for name, timing in self.rows.items()},
            **self.extra,
        }

    def table(self) -> str:
        """Lines of text: the rows in milliseconds, and what follows from them."""
        rows = {
            name: {**_spread(timing.wall, 1e3), "CPU median": statistics.median(timing.cpu) * 1e3}
            for name, timing in self.rows.items()
        }
        tables = _table("ms", rows), _table("CPU ms of which", self.parts)
        return "\n\n".join(filter(None, (self.heading, *tables, self._figures())))

    def _figures(self) -> str:
        """What follows from the times, in a line."""
        found = self.summary("")
        share = found["share_of_peak"]
        texts = (
            ("images_per_second", "{:.3g} images per second"),
            ("peak_memory_gb", "{:.2f} GB of memory"),
            ("gflop", "{:.1f} GFLOP" + ("" if share is None else f", {share:.1%} of the device's peak")),
            ("peak_gflops", "peak {:.0f} GFLOP/s"),
            ("seconds_times_peak", "seconds x peak {:.1f}"),
        )
        return "; ".join(text.format(found[name]) for name, text in texts if found[name] is not None)


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


def synchronizer(device: torch.device) -> Callable[[], None]:
    """A function that waits until a device has done what it was given; on a CPU, which is done at once, nothing."""
    if device.type == "cpu":
        return lambda: None
    return partial(torch.get_device_module(device).synchronize, device)


def measure(call: Callable[[], object], warmup: int, repeats: int, device: torch.device = CPU) -> Timing:
    """Time calls one by one.

    Args:
        call: What is measured.
        warmup: Calls before, which are not measured.
        repeats: Calls that are measured, at least 1.
        device: Where they run; it is waited for before and after each call, and its memory is watched in these and
            in the last one before them.
    """
    assert repeats > 0, repeats
    synchronize, memory = synchronizer(device), PeakMemory(device)
    for _ in range(warmup - 1):
        call()
    synchronize()
    memory.reset()  # before the last of the calls that are not timed, since the next has to fetch memory anew
    if warmup:
        call()
    wall, cpu = [], []
    for _ in range(repeats):
        synchronize()
        start, start_cpu = time.perf_counter(), time.process_time()
        call()
        synchronize()
        stop_cpu, stop = time.process_time(), time.perf_counter()
        wall.append(stop - start)
        cpu.append(stop_cpu - start_cpu)
    return Timing(wall, cpu, memory.read())


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let PyTorch and OpenCV use so many threads meanwhile; None leaves them as they are."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    if count is not None:
        torch.set_num_threads(count)
        cv2.setNumThreads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
