"""What a device can do at most: the arithmetic, and what is multiplied."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from icda.benchmark import peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_best_of_the_products_of_a_second(monkeypatch, dtype):
    # The moment from which a second counts; then for each product whether there is time, start, and stop.
    times = iter([0.0, *(0.0, 0.1, 0.4), *(0.4, 0.5, 0.7), *(0.75, 0.8, 0.9), 1.1])
    monkeypatch.setattr(peak, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    monkeypatch.setattr(peak, "SIDE", 64)
    seen = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **options: (seen.append(args), mm(*args, **options))[1])
    assert peak.peak_gflops(torch.device("cpu"), dtype) == pytest.approx(2 * 64**3 / 0.1 / 1e9)
    assert len(seen) == 4  # one before the measurement, and three of 0.3, 0.2 and 0.1 s
    assert {(m.dtype, tuple(m.shape)) for pair in seen for m in pair} == {(dtype, (64, 64))}


def test_of_a_device_in_earnest(monkeypatch):
    monkeypatch.setattr(peak, "SECONDS", 0.05)
    monkeypatch.setattr(peak, "SIDE", 256)
    assert 0.1 < peak.peak_gflops(torch.device("cpu"), torch.float32) < 1e5
