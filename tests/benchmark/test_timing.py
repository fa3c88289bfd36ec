"""Times of calls, and what is told of them."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import cv2
import pytest
import torch

from icda.benchmark import Result, Timing, measure
from icda.benchmark.timing import threads

TIMING = Timing(wall=[0.5, 0.1, 0.2], cpu=[0.2, 0.05, 0.1], peak_memory_gb=1.5)


def test_measure_counts_calls_and_tells_work_from_waiting():
    calls = []
    timing = measure(lambda: (calls.append(0), time.sleep(0.02)), warmup=2, repeats=3)
    assert len(calls) == 5 and len(timing.wall) == len(timing.cpu) == 3
    assert min(timing.wall) >= 0.02 and min(timing.cpu) < 0.01
    assert 0.05 < timing.peak_memory_gb < 50


def test_a_device_that_goes_on_by_itself_is_waited_for(monkeypatch):
    device, events = torch.device("meta"), []

    def note(name, result=None):
        return lambda *args: (events.append(name), result)[1]

    module = SimpleNamespace(
        synchronize=note("wait"),
        empty_cache=note("empty"),
        reset_peak_memory_stats=note("reset"),
        max_memory_allocated=note("read", 2_000_000_000),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda of: module)
    timing = measure(note("call"), warmup=2, repeats=2, device=device)
    measured = ["wait", "call", "wait"]
    assert events == ["call", "wait", "empty", "reset", "call", *measured, *measured, "read"]
    assert timing.peak_memory_gb == 2.0


def test_summary_by_hand():
    result = Result("h", TIMING, images=4, rows={"  a": TIMING}, extra={"own": 7})
    assert result.summary("data") == {
        "what": "data",
        "seconds": {"median": 0.2, "min": 0.1, "max": 0.5},
        "images_per_second": 20.0,
        "peak_memory_gb": 1.5,
        "gflop": None,
        "peak_gflops": None,
        "share_of_peak": None,
        "seconds_times_peak": None,
        "cpu_seconds": {"median": 0.1, "min": 0.05, "max": 0.2},
        "rows": {"a": 0.2},
        "own": 7,
    }
    of_peak = replace(result, gflop=30.0, peak_gflops=600.0).summary("train")
    assert of_peak["share_of_peak"] == pytest.approx(30 / 0.2 / 600)
    assert of_peak["seconds_times_peak"] == pytest.approx(0.2 * 600)
    assert replace(result, gflop=30.0).summary("train")["share_of_peak"] is None
    assert replace(result, peak_gflops=30.0).summary("train")["share_of_peak"] is None
    assert replace(result, peak_memory_gb=9.0).summary("train")["peak_memory_gb"] == 9.0


def test_table_by_hand():
    result = Result("what", TIMING, 1, {"a": TIMING}, {"part": {"a": 3.0}}, gflop=30.0, peak_gflops=600.0)
    assert result.table().splitlines() == [
        "what",
        "",
        "ms      median         min         max  CPU median",
        "a       200.00      100.00      500.00      100.00",
        "",
        "CPU ms of which           a",
        "part                   3.00",
        "",
        "5 images per second; 1.50 GB of memory; 30.0 GFLOP, 25.0% of the device's peak; peak 600 GFLOP/s; "
        "seconds x peak 120.0",
    ]


def test_threads_are_put_back():
    before = torch.get_num_threads(), cv2.getNumThreads()
    with threads(1):
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before
    with threads(None):
        assert (torch.get_num_threads(), cv2.getNumThreads()) == before
