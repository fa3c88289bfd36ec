"""Checkpoints of every format that was ever written open, and are the same network.

``reference/checkpoint_v<N>.pt.gz`` was written by the code of that format (2 steps of ``loss=dacs`` on the demo data
with timm's ``test_efficientnet``); its weights were then replaced by ``pattern``, so that the file is small. The
figures below are those of the code of format 1. From format 3 on it is a ``last.pt``: with the state of the run, of
whose optimiser only every third parameter's averages are kept, and made-up values of the loss scaler.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REFERENCE

import icda
from icda.data.classes import CITYSCAPES
from icda.training.checkpoint import FORMAT, load_trained, read_file
from icda.training.start import read_start

STUDENT = ([-0.03137664124369621, 0.15022408962249756, 0.00275688199326396], 0.11832007009092069, {1: 781, 9: 2099})
TEACHER = (
    [-0.16741615533828735, 0.08349092304706573, -0.06467074900865555],
    0.1086932541659382,
    {3: 2825, 6: 47, 17: 8},
)


@pytest.fixture(params=range(1, FORMAT + 1))
def frozen(request, tmp_path) -> Path:
    path = tmp_path / f"v{request.param}.pt"
    path.write_bytes(gzip.decompress((REFERENCE / f"checkpoint_v{request.param}.pt.gz").read_bytes()))
    return path


def pattern(name: str, like: torch.Tensor) -> torch.Tensor:
    """A tensor that is a function of name and shape: eleven values in turn, around 1 for the scales of norms."""
    if not like.is_floating_point():
        return torch.zeros_like(like)
    i = torch.arange(like.numel(), dtype=torch.float64)
    value = ((i * 7 + zlib.crc32(name.encode()) % 11) % 11 - 5) / 32
    if name.endswith("running_var") or (like.ndim == 1 and name.endswith("weight")):
        value = 1 + value
    return value.float().reshape(like.shape)


@pytest.mark.parametrize(("teacher", "expected"), [(False, STUDENT), (True, TEACHER)])
def test_a_file_of_every_format_is_the_same_network(frozen, teacher, expected):
    trained = load_trained(frozen, teacher=teacher)
    assert trained.step == 2 and trained.classes == CITYSCAPES
    assert trained.config.model.encoder.name == "test_efficientnet"
    assert list(trained.trained_frames) == ["Dark Zurich train"]
    part = "teacher" if teacher else "student"
    for name, value in trained.model.state_dict().items():
        if name not in ("mean", "std"):
            assert torch.equal(value, pattern(f"{part}.{name}", value)), name
    y, x = np.arange(40)[:, None], np.arange(72)[None]
    image = np.stack([np.sin(y * (k + 1) / 7) + np.cos(x * (k + 2) / 9) for k in range(3)])
    with torch.no_grad():
        logits = trained.model(torch.from_numpy(image).float()[None])
    first, deviation, counts = expected
    assert logits[0, :3, 0, 0].tolist() == pytest.approx(first, abs=1e-5)
    assert logits.double().std().item() == pytest.approx(deviation, abs=1e-6)
    found = torch.bincount(logits.argmax(1).flatten()).tolist()
    assert {k: n for k, n in enumerate(found) if n} == pytest.approx(counts, abs=3)


def test_a_file_of_every_format_predicts(frozen):
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    assert icda.load(frozen, device="cpu").predict(image).shape == (50, 90)


def test_there_is_a_file_of_every_format():
    assert len(list(REFERENCE.glob("checkpoint_v*.pt.gz"))) == FORMAT


def test_the_state_of_a_run_of_format_3(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(gzip.decompress((REFERENCE / "checkpoint_v3.pt.gz").read_bytes()))
    start = read_start(path, resumes=True)
    training = start.training
    assert start.known_step() == 2 and start.metrics["step"] == 2 and training["skipped"] == 1
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(training["scaler"])
    assert scaler.get_scale() == 512
    assert len(training["optimizer"]["param_groups"]) > 1 and training["frozen"] is training["pca"] is None
    assert {n: float(t.max()) for n, t in training["optimizer"]["state"][0].items()} == {
        "step": 2.0,
        "exp_avg": 0.0,
        "exp_avg_sq": 2.0**-20,
    }
    assert read_file(path)["format"] == 3
