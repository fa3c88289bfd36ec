"""The decode head beyond the published figures: sizes, batch norm, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from icda.models import DAFormerHead

WIDTHS = (8, 16, 32, 64)


def maps(batch: int = 2, size: int = 16) -> list[torch.Tensor]:
    return [torch.randn(batch, w, size >> i, size >> i) for i, w in enumerate(WIDTHS)]


def test_logits_at_the_first_maps_size():
    assert DAFormerHead(WIDTHS, 5, channels=12)(maps()).shape == (2, 5, 16, 16)


def test_every_parameter_gets_a_gradient():
    head = DAFormerHead(WIDTHS, 5, channels=12)
    head(maps()).square().sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None] == []


def test_embedding_is_linear_in_each_cell():
    head, features = DAFormerHead(WIDTHS, 5, channels=12), maps()
    seen = {}
    head.branches[0].register_forward_pre_hook(lambda _module, inputs: seen.update(joined=inputs[0]))
    head(features)
    expected = head.embed[0](features[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen["joined"][:, :12], expected)


def test_convolutions_before_a_norm_have_no_bias_and_norms_are_the_methods():
    head = DAFormerHead(WIDTHS, 5)
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
    convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}
    assert [m.bias is None for m in convolutions] == [True] * len(norms) + [False]
    assert [m.dilation[0] for m in convolutions if m.groups > 1] == [6, 12, 18]
    assert all(m.padding == m.dilation for m in convolutions if m.kernel_size == (3, 3))


def test_wrong_number_of_maps():
    with pytest.raises(ValueError, match="got 3 maps, expected 4"):
        DAFormerHead(WIDTHS, 5)(maps()[:3])
