"""Gradient norms, distances of prototypes and memory, against numpy and values by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from icda.allocator import return_freed_memory
from icda.models import PCA, build_model
from icda.training.diagnostics import gradient_norms, memory_scalars, peak_memory, prototype_distances

CPU = torch.device("cpu")


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 3)
        self.head = nn.Linear(2, 2, bias=False)
        self.dar = nn.Linear(2, 1)


def test_norms_by_hand():
    student = Student()
    student.encoder.weight.grad = torch.zeros(3, 4)
    student.encoder.weight.grad[0, 0] = 3
    student.encoder.bias.grad = torch.tensor([0.0, -4.0, 0.0])
    student.head.weight.grad = torch.full((2, 2), 6.0)
    assert gradient_norms(student) == {"encoder": 5.0, "head": 12.0, "total": 13.0}  # dar has no gradient


def test_norms_of_random_gradients_and_of_none():
    student, generator = Student(), np.random.default_rng(0)
    assert gradient_norms(student) == {}
    for p in student.parameters():
        p.grad = torch.from_numpy(generator.normal(size=p.shape)).float()
    found = gradient_norms(student)
    for name, part in (*student.named_children(), ("total", student)):
        values = np.concatenate([p.grad.numpy().ravel() for p in part.parameters()]).astype(np.float64)
        assert found.pop(name) == pytest.approx(np.sqrt((values**2).sum()), rel=1e-6)
    assert found == {}


def test_each_gradient_is_read_once(monkeypatch):
    student, seen = Student(), []
    for p in student.parameters():
        p.grad = torch.ones_like(p)
    norm = nn.utils.get_total_norm
    monkeypatch.setattr(nn.utils, "get_total_norm", lambda tensors: seen.extend(map(id, tensors)) or norm(tensors))
    gradient_norms(student)
    assert sorted(seen) == sorted(id(p.grad) for p in student.parameters())


def test_the_total_is_that_of_clipping_and_does_not_overflow():
    student = Student()
    for scale in (1.0, 1e-15, 1e18):
        generator = torch.Generator().manual_seed(0)
        for p in student.parameters():
            p.grad = torch.randn(p.shape, generator=generator) * scale
        expected = nn.utils.clip_grad_norm_(student.parameters(), torch.inf).item()
        assert gradient_norms(student)["total"] == pytest.approx(expected, rel=1e-6)


def test_the_parts_of_a_student_hold_each_parameter_once():
    student = build_model("mit_b0", 3, weights="none", with_dar=True)
    held = [id(p) for part in student.children() for p in part.parameters()]
    assert sorted(held) == sorted(map(id, student.parameters()))


def test_a_gradient_that_is_not_finite_shows():
    student = Student()
    student.head.weight.grad = torch.full((2, 2), float("nan"))
    student.dar.bias.grad = torch.tensor([float("inf")])
    assert gradient_norms(student) == pytest.approx({"head": np.nan, "dar": np.inf, "total": np.nan}, nan_ok=True)


def test_norms_take_one_synchronisation(monkeypatch):
    student, calls = Student(), []
    for p in student.parameters():
        p.grad = torch.ones_like(p)
    for name in ("item", "tolist", "__bool__", "cpu"):  # all that waits for a device
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _o=original, _n=name: calls.append(_n) or _o(self, *a)
        )
    gradient_norms(student)
    assert calls == ["tolist"]


def test_distances_by_hand():
    pca = PCA(4)
    pca.prototypes[0, 0] = 2.0
    pca.prototypes[2, :2] = torch.tensor([3.0, 3.0])  # 45 degrees from the first
    pca.prototypes[3, 0] = -1.0  # opposite of the first, 135 degrees from the second
    near, far = 1 - np.sqrt(0.5), 1 + np.sqrt(0.5)
    assert prototype_distances(pca, ("road", "sky", "car", "bus")) == pytest.approx(
        {
            "prototypes/seen": 3,
            "prototypes/mean_distance": (near + 2 + far) / 3,
            "prototypes/min_distance": near,
            "prototype_nearest/road": near,
            "prototype_nearest/car": near,
            "prototype_nearest/bus": far,
        }
    )


def test_distances_of_random_prototypes():
    pca = PCA(7)
    pca.prototypes.copy_(torch.from_numpy(np.random.default_rng(0).normal(size=(7, 7))))
    found = prototype_distances(pca, "abcdefg")
    rows = pca.prototypes.numpy().astype(np.float64)
    pairs = {
        (i, j): 1 - rows[i] @ rows[j] / np.sqrt((rows[i] @ rows[i]) * (rows[j] @ rows[j]))
        for i in range(7)
        for j in range(7)
        if i != j
    }
    assert found["prototypes/seen"] == 7
    assert found["prototypes/mean_distance"] == pytest.approx(np.mean(list(pairs.values())))
    assert found["prototypes/min_distance"] == pytest.approx(min(pairs.values()))
    for i, name in enumerate("abcdefg"):
        assert found[f"prototype_nearest/{name}"] == pytest.approx(min(v for (k, _), v in pairs.items() if k == i))


@pytest.mark.parametrize("seen", [0, 1])
def test_fewer_than_two_classes_have_no_distance(seen):
    pca = PCA(3)
    pca.prototypes[:seen] = 1.0
    assert prototype_distances(pca, "abc") == {"prototypes/seen": seen}


def test_classes_that_fell_together_have_distance_zero():
    pca = PCA(3)
    pca.prototypes[:] = torch.tensor([0.1, 0.2, 0.7])
    found = prototype_distances(pca, "abc")
    assert 0 <= found["prototypes/min_distance"] <= found["prototypes/mean_distance"] < 1e-12


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell the memory in use")
def test_memory_of_the_process_follows_what_is_taken():
    return_freed_memory()  # a training in this process may have let it be kept
    before = memory_scalars(CPU)
    assert set(before) == {"memory/resident_gb", "memory/peak_gb"}
    taken = np.ones(25_000_000)  # 0.2 GB
    during = memory_scalars(CPU)
    assert during["memory/resident_gb"] - before["memory/resident_gb"] == pytest.approx(0.2, abs=0.01)
    assert during["memory/peak_gb"] >= during["memory/resident_gb"] - 0.01  # the kernel counts by batches of pages
    del taken
    return_freed_memory()
    after = memory_scalars(CPU)
    assert after["memory/resident_gb"] == pytest.approx(before["memory/resident_gb"], abs=0.01)
    assert after["memory/peak_gb"] >= during["memory/peak_gb"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's own figure")
def test_the_peak_is_the_kernels():
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM")]
    peak = peak_memory(CPU)
    assert set(peak) == {"process", "largest_child"}
    assert peak["process"] >= int(line.split()[1]) * 1024 / 1e9 - 0.01  # of whatever this process was before as well


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu():
    device = torch.device("cuda", 0)
    before = memory_scalars(device)
    taken = torch.ones(50_000_000, device=device)
    during, peak = memory_scalars(device), peak_memory(device)
    assert during["memory/allocated_gb"] - before["memory/allocated_gb"] == pytest.approx(0.2, abs=0.003)
    assert during["memory/reserved_gb"] >= during["memory/allocated_gb"]
    assert peak["gpu_allocated"] == during["memory/peak_gb"] >= during["memory/allocated_gb"]
    assert peak["gpu_reserved"] >= peak["gpu_allocated"]
    del taken
