"""The decode head beyond the published figures: sizes, batch norm, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from icda.models import DAFormerHead
from icda.models.daformer_head import DilatedDepthwiseConv

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


@pytest.mark.parametrize("dilation", [1, 2, 6, 18])
@pytest.mark.parametrize("size", [(36, 18), (17, 23), (5, 40)])
@pytest.mark.parametrize("bias", [False, True])  # one comes where batch norm is folded in
def test_phases_are_the_dilated_convolution(dilation, size, bias):
    torch.manual_seed(0)
    conv = DilatedDepthwiseConv(6, dilation).double()
    if bias:
        conv.bias = nn.Parameter(torch.randn(6, dtype=torch.float64))
    plain = torch.randn(2, 6, *size, dtype=torch.float64)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        conv.zero_grad()
        x = plain.clone(memory_format=memory_format).requires_grad_()
        y = conv(x)
        assert y.is_contiguous(memory_format=memory_format)
        y.square().sum().backward()
        results.append((y, x.grad, conv.weight.grad))
    expected = nn.functional.conv2d(plain, conv.weight, conv.bias, 1, dilation, dilation, 6)
    torch.testing.assert_close(results[1][0], expected, rtol=1e-13, atol=1e-13)
    for ours, others in zip(*results, strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-12, atol=1e-12)


def test_wrong_number_of_maps():
    with pytest.raises(ValueError, match="got 3 maps, expected 4"):
        DAFormerHead(WIDTHS, 5)(maps()[:3])
