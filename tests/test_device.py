from __future__ import annotations

import pytest
import torch

from icda.device import pick_device
from icda.errors import UserError


def test_names():
    assert pick_device("cpu") == torch.device("cpu") == pick_device("cpu", several=True)
    for name in ("gpu", "cuda:x", "cpu:0"):
        with pytest.raises(UserError, match=f"device={name} is not known"):
            pick_device(name)
    assert pick_device("auto").type in ("cpu", "cuda")


def test_gpus_by_number_and_for_several(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"device=cuda:2, but PyTorch .* sees 2 GPUs"):
        pick_device("cuda:2")
    assert pick_device("auto", several=True).type == "cuda"
    with pytest.raises(UserError, match="device=cuda:0 is one GPU, but this run has several processes"):
        pick_device("cuda:0", several=True)


def test_a_gpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(UserError, match="sees 0 GPUs"):
        pick_device("cuda")
