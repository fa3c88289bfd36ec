"""MiT's and PVT v2's layers for inference give what timm's give."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from icda import prepared_encoder
from icda.models import create_encoder
from icda.prepared_encoder import PreparedAttention, PreparedMlp, prepare_encoder


@pytest.mark.parametrize("name", ["mit_b0", "pvt_v2_b0", "pvt_v2_b2_li"])
@pytest.mark.parametrize("values", [2**22, 2**10])  # of a map at a time: all rows of one, and one or a few
@torch.inference_mode()
def test_maps_are_those_of_timm(name, values, monkeypatch):
    monkeypatch.setattr(prepared_encoder, "_PART", values)
    torch.manual_seed(0)
    plain = create_encoder(name).eval().double()
    ready = copy.deepcopy(plain)
    prepare_encoder(ready)
    kinds = {type(module) for module in ready.modules()}
    assert {PreparedAttention, PreparedMlp} <= kinds and not {PreparedAttention, PreparedMlp} & set(
        map(type, plain.modules())
    )
    for batch, size in ((1, (64, 96)), (2, (43, 37))):
        images = torch.randn(batch, 3, *size, dtype=torch.float64)
        for own, expected in zip(ready(images), plain(images), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("values", [2**22, 2**10])
@torch.inference_mode()
def test_halved_scores_are_as_near_as_those_of_fused_attention(values, monkeypatch):
    monkeypatch.setattr(prepared_encoder, "_PART", values)
    torch.manual_seed(0)
    exact = timm.models.pvt_v2.Attention(64, num_heads=2, sr_ratio=2).eval()
    tokens = torch.randn(2, 12 * 16, 64)
    expected = exact(tokens, (12, 16))
    fused = copy.deepcopy(exact).bfloat16()
    ready = copy.deepcopy(fused)
    prepare_encoder(ready)
    error, of_fused = ((m(tokens.bfloat16(), (12, 16)).float() - expected).norm() for m in (ready, fused))
    assert 0 < error < 1.5 * of_fused
