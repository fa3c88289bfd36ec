"""The scoring that is measured."""

from __future__ import annotations

import json

from benchmark_runs import COMMON, run_benchmark

from icda.benchmark import metric


def test_pixels_of_a_prediction_are_counted(tmp_path, monkeypatch):
    made = []
    kind = metric.ConfusionMatrix
    monkeypatch.setattr(metric, "ConfusionMatrix", lambda *args: (made.append(kind(*args)), made[-1])[1])
    summary, lines = run_benchmark(tmp_path, "what=metric", "steps=3", "warmup=1", "output=[40,60]")
    assert json.loads(lines[-1]) == summary and set(summary) >= COMMON
    assert set(summary["rows"]) == {"confusion matrix", "mIoU"}
    assert summary["rows"]["confusion matrix"] == summary["seconds"]["median"]
    share = made[0].matrix.sum() / (4 * 40 * 60)  # the rest was ignored
    assert 0.9 < share < 1
    assert summary["gflop"] is None and summary["seconds_times_peak"] is None
