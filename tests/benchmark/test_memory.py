"""The largest memory since a moment: of this process, and of a stand-in for a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from icda.benchmark import memory
from icda.benchmark.memory import PeakMemory, process_memory_gb

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux alone")


def peak_while(call) -> float:
    peak = PeakMemory(CPU)
    peak.reset()
    call()
    return peak.read()


def test_memory_of_the_process_is_in_gigabytes():
    assert 0.05 < process_memory_gb() < 50  # PyTorch alone takes more than the first


@linux
def test_peak_is_that_since_the_reset():
    nothing = peak_while(lambda: None)
    with_array = peak_while(lambda: torch.ones(100_000_000))  # 0.4 GB, freed at once
    assert with_array - nothing == pytest.approx(0.4, abs=0.05)
    assert peak_while(lambda: None) - nothing == pytest.approx(0, abs=0.05)


@linux
def test_memory_that_is_kept_for_later_does_not_count():
    nothing = peak_while(lambda: None)
    pieces = [torch.ones(10_000) for _ in range(5000)]  # 0.2 GB, which the C library does not give back by itself
    del pieces[:-1]
    assert peak_while(lambda: None) - nothing < 0.1


@pytest.mark.parametrize("place", ["missing/clear_refs", "."])
def test_where_the_peak_cannot_be_reset_it_is_that_of_the_process(monkeypatch, tmp_path, place):
    monkeypatch.setattr(memory, "_CLEAR", Path(tmp_path, place))
    assert peak_while(lambda: None) == process_memory_gb()


def test_where_the_system_does_not_tell_it_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR", tmp_path)
    monkeypatch.setattr(memory, "resource", None)
    assert process_memory_gb() is None and peak_while(lambda: None) is None


def test_of_a_gpu_it_is_that_of_tensors(monkeypatch):
    device, calls = torch.device("meta"), []

    def note(name, result=None):
        return lambda *args: (calls.append((name, *args)), result)[1]

    module = SimpleNamespace(
        empty_cache=note("empty"),
        reset_peak_memory_stats=note("reset"),
        max_memory_allocated=note("read", 3_000_000_000),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda of: module)
    peak = PeakMemory(device)
    peak.reset()
    assert peak.read() == 3.0
    assert calls == [("empty",), ("reset", device), ("read", device)]
