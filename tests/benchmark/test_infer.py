"""The prediction that is measured, and its count of operations."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from benchmark_runs import COMMON, run_benchmark

from icda.benchmark import infer
from icda.errors import UserError


def test_labels_of_a_picture(tmp_path, monkeypatch):
    found = []
    segment = infer.segment
    monkeypatch.setattr(
        infer, "segment", lambda *args, **options: (found.append(segment(*args, **options)), found[-1])[1]
    )
    summary, lines = run_benchmark(tmp_path, "what=infer", "steps=3", "warmup=2", "seed=3")
    assert json.loads(lines[-1]) == summary and set(summary) >= COMMON and summary["what"] == "infer"
    assert all(summary[name] > 0 for name in ("peak_memory_gb", "gflop", "peak_gflops", "share_of_peak"))
    assert summary["images_per_second"] == pytest.approx(1 / summary["seconds"]["median"])
    assert len(found) == 5  # counted once, which stands for one of two calls before
    labels, confidence = found[-1]
    assert labels.shape == (128, 192) and labels.dtype == np.uint8 and confidence is None


def test_operations_follow_the_size_and_not_the_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "peak_gflops", lambda device, dtype: {torch.float32: 1.0, torch.bfloat16: 2.0}[dtype])
    found = {
        (size, precision): run_benchmark(tmp_path, "what=infer", "steps=1", f"size={size}", f"precision={precision}")[
            0
        ]
        for size, precision in (("[64,64]", "fp32"), ("[64,64]", "bf16"), ("[64,128]", "fp32"))
    }
    gflop = {key: summary["gflop"] for key, summary in found.items()}
    assert gflop["[64,64]", "fp32"] == gflop["[64,64]", "bf16"]
    # Twice the picture: twice the convolutions and matrix products, but four times the attention among cells.
    assert 2 * gflop["[64,64]", "fp32"] < gflop["[64,128]", "fp32"] < 2.05 * gflop["[64,64]", "fp32"]
    assert found["[64,64]", "bf16"]["peak_gflops"] == 2.0


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="precision=fp16 needs a GPU"):
        run_benchmark(tmp_path, "what=infer", "precision=fp16")
