"""Where the time of a call goes, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import profile

from icda.benchmark.timing import synchronizer

ROWS = 15
"""Operators in the table."""


def profile_call(call: Callable[[], object], device: torch.device, path: Path) -> str:
    """Run a call once under PyTorch's profiler and write a trace.

    Args:
        call: What is looked at.
        device: Where it runs.
        path: Of the trace, a JSON file for ``chrome://tracing`` and https://ui.perfetto.dev; its folder is made.

    Returns:
        A table of the operators that take most time themselves, without those that they call.

    Raises:
        OSError: If the trace cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # the profiler itself says nothing where it cannot write
    with profile() as profiler:  # of all that the device offers
        call()
        synchronizer(device)()
    profiler.export_chrome_trace(str(path))
    by = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=48)


def free_path(folder: Path, name: str) -> Path:
    """``name.json`` in a folder, or ``name_2.json`` and so on, such that there is no such file yet."""
    path, number = folder / f"{name}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{name}_{number}.json"
    return path
