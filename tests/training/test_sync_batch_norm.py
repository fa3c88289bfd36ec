"""Batch norm over processes against PyTorch's own on the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import on_ranks
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from icda.distributed import rank, world_size
from icda.training.mean_teacher import use_batch_statistics
from icda.training.recompute import statistics_kept
from icda.training.sync_batch_norm import SyncBatchNorm, SyncBatchNormAct, synchronise

CPU = torch.device("cpu")
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no running statistics": {"track_running_stats": False},
    "cumulative": {"momentum": None},
    "no weights": {"affine": False},
    "activation": {"kind": BatchNormAct2d},
    "float32": {"dtype": torch.float32},
    "batches of two sizes": {"sizes": (1, 3)},
}


def norm(kind: type = nn.BatchNorm2d, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    module = kind(5, **options).to(dtype)
    for p in module.parameters():
        nn.init.normal_(p)
    return module


def run(case: dict[str, Any]) -> dict[str, Tensor]:
    """Three passes in training mode, one that keeps statistics, one in evaluation mode; on this process's share."""
    case = dict(case)
    sizes = case.pop("sizes", (2, 2))
    module = norm(**case)
    names = list(module.state_dict())
    weights = list(module.parameters())
    module = synchronise(module, CPU)
    assert list(module.state_dict()) == names
    assert all(ours is given for ours, given in zip(module.parameters(), weights, strict=True))
    dtype = case.get("dtype", torch.float64)
    result = {}
    own = slice(None)
    if world_size() == 2:
        own = slice(0, sizes[0]) if rank() == 0 else slice(sizes[0], None)
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        x, direction = torch.randn(2, 4, 5, 7, 6, generator=generator, dtype=torch.float64) * 3 + number
        x = x[own].to(dtype).requires_grad_()
        out = module(x)
        (out * direction[own]).sum().backward()
        result |= {f"out {number}": out.detach(), f"gradient {number}": x.grad}
    with statistics_kept(module):
        result["kept"] = module(x).detach()
    if module.track_running_stats:  # evaluation joins nothing, as with PyTorch's
        result["evaluated"] = module.eval()(x).detach()
    weight_gradients = {f"weight gradient {i}": p.grad for i, p in enumerate(weights)}
    return {**result, **weight_gradients, **{f"state {name}": t for name, t in module.state_dict().items()}}


@pytest.mark.slow
def test_two_processes_are_one_with_the_joined_batch(tmp_path):
    parts = on_ranks(run_all, 2, tmp_path)
    for name, case in CASES.items():
        whole, (first, second) = run(case), [part[name] for part in parts]
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if name == "float32" else {"rtol": 1e-9, "atol": 1e-10}
        assert set(whole) == set(first) == set(second)
        for key, expected in whole.items():
            if key.startswith("state"):
                ours = first[key]
                assert torch.equal(first[key], second[key])
            elif key.startswith("weight"):
                ours = first[key] + second[key]
            else:
                ours = torch.cat([first[key], second[key]])
            torch.testing.assert_close(ours, expected, **tolerance, msg=lambda m, n=name, k=key: f"{n}: {k}: {m}")


def run_all() -> dict[str, dict[str, Tensor]]:
    modules = nn.Sequential(norm(), nn.Sequential(norm(BatchNormAct2d))).train()
    converted = synchronise(modules, CPU)
    assert converted is modules
    assert type(converted[0]) is SyncBatchNorm and type(converted[1][0]) is SyncBatchNormAct
    assert all(isinstance(m, _BatchNorm) for m in (converted[0], converted[1][0]))
    use_batch_statistics(converted)
    assert converted[0].training and converted[1][0].training and not converted[1][0].act.training
    half = converted(torch.randn(2, 5, 4, 4, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    return {name: run(case) for name, case in CASES.items()}


def test_one_process_is_left_alone():
    modules = nn.Sequential(norm(), norm(BatchNormAct2d))
    kinds = [type(m) for m in modules.modules()]
    assert synchronise(modules, CPU) is modules
    assert [type(m) for m in modules.modules()] == kinds
