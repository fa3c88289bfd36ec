"""The most memory that was in use since a moment of one's choice."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

from icda.allocator import return_freed_memory

try:
    import resource
except ImportError:  # Windows
    resource = None

GB = 1e9  # bytes
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


class PeakMemory:
    """The most memory in use since ``reset``.

    On a CPU it is the resident memory of this process, the libraries included; where the system does not let the
    peak be reset (all but Linux), it is the largest since the process started. On a GPU it is what tensors took.

    Args:
        device: Whose memory is meant.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._since_reset = False

    def reset(self) -> None:
        """Forget what was before; memory that is free, but kept for later, is given back to the system."""
        gc.collect()
        if self.device.type != "cpu":
            module = torch.get_device_module(self.device)
            module.empty_cache()
            module.reset_peak_memory_stats(self.device)
            return
        return_freed_memory()
        try:
            _CLEAR.write_text(_RESET_PEAK)
            self._since_reset = True
        except OSError:  # another system, or not permitted
            self._since_reset = False

    def read(self) -> float | None:
        """The most since ``reset`` in GB of 10^9 bytes; None where the system does not tell."""
        if self.device.type != "cpu":
            return torch.get_device_module(self.device).max_memory_allocated(self.device) / GB
        if self._since_reset and (match := _field("VmHWM")) is not None:
            return match
        return process_memory_gb()


def process_memory_gb() -> float | None:
    """Largest memory of this process since it started, in 10^9 bytes; None where the system does not tell.

    On Linux it is that since the last ``PeakMemory.reset``.
    """
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GB


def _field(name: str) -> float | None:
    """A line of Linux's description of this process, in GB; None if there is no such line."""
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024 / GB
    return None
