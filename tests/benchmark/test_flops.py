"""Counts of operations against sums by hand and published ones."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from icda.benchmark.flops import count_gflop
from icda.data.classes import CITYSCAPES
from icda.inference import segment
from icda.models import DAFormerHead, build_model, create_encoder


def flop(call) -> int:
    return round(count_gflop(call) * 1e9)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_convolution_by_hand(kind, groups):
    layer = kind(8, 16, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(2, 8, 10, 12, requires_grad=True)
    result = []
    forward = flop(lambda: result.append(layer(x)))
    # For each image: each cell of the output (of the input, where transposed), 8 x 16 / groups pairs of channels,
    # 3 x 3 weights, a multiplication and an addition.
    cells = 5 * 6 if kind is nn.Conv2d else 10 * 12
    assert forward == 2 * cells * (8 * 16 // groups) * 9 * 2
    assert flop(result[0].sum().backward) == 2 * forward  # as much for the input's gradient as for the weight's


def test_backward_counts_only_the_gradients_that_are_computed():
    layer = nn.Conv2d(4, 4, 3, groups=4)
    result = []
    forward = flop(lambda: result.append(layer(torch.randn(1, 4, 8, 8))))
    assert flop(result[0].sum().backward) == forward  # the picture takes no gradient


def test_linear_layer_by_hand():
    layer, x = nn.Linear(6, 10), torch.randn(7, 6, requires_grad=True)
    assert flop(lambda: layer(x).sum().backward()) == 3 * 2 * 7 * 6 * 10


def test_attention_by_hand():
    q, k, v = (torch.randn(2, 3, n, 16, requires_grad=True) for n in (20, 12, 12))
    result = []
    forward = flop(lambda: result.append(F.scaled_dot_product_attention(q, k, v)))
    product = 2 * (2 * 3) * 20 * 12 * 16
    assert forward == 2 * product  # scores, and the sum of values
    # Scores once more, and gradients of weights, values, queries and keys.
    assert flop(result[0].sum().backward) == 5 * product


def test_what_is_computed_again_counts_again():
    layer, x = nn.Sequential(nn.Linear(6, 10), nn.ReLU()), torch.randn(7, 6, requires_grad=True)
    assert flop(lambda: checkpoint(layer, x, use_reentrant=False).sum().backward()) == 4 * 2 * 7 * 6 * 10


def mit_flop(widths, depths, ratios, height, width) -> int:
    """Operations of a MiT by the paper's description, layer by layer (SegFormer, sections 3.1 and A)."""
    total, channels = 0, 3
    for stage, (c, depth, ratio) in enumerate(zip(widths, depths, ratios, strict=True)):
        side, stride = (7, 4) if stage == 0 else (3, 2)
        height, width = -(-height // stride), -(-width // stride)
        n, reduced = height * width, (height // ratio) * (width // ratio)
        total += n * channels * c * side * side  # overlapping patches
        block = n * c * c + reduced * c * 2 * c + n * c * c  # queries, keys and values, projection
        block += reduced * c * c * ratio * ratio if ratio > 1 else 0  # spatial reduction
        block += 2 * n * reduced * c  # scores, and the sum of values
        block += 2 * n * c * 4 * c + n * 4 * c * 9  # MLP with its depthwise convolution
        total, channels = total + depth * block, c
    return 2 * total


def test_mit_by_hand():
    encoder = create_encoder("mit_b0").eval()
    expected = mit_flop((32, 64, 160, 256), (2, 2, 2, 2), (8, 4, 2, 1), 64, 96)
    assert flop(lambda: encoder(torch.randn(1, 3, 64, 96))) == expected


def on_meta(model: nn.Module) -> float:
    """10^9 multiplications with addition for a picture of 224 x 224, with nothing computed."""
    model = model.eval().to("meta")
    return count_gflop(lambda: model(torch.empty(1, 3, 224, 224, device="meta"))) / 2


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "swin_t"])
def test_networks_against_the_numbers_that_torchvision_publishes(name):
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["_ops"]
    assert round(on_meta(torchvision.models.get_model(name)), 3) == published


@pytest.mark.parametrize(("name", "published"), [("pvt_v2_b0", 0.6), ("pvt_v2_b1", 2.1), ("pvt_v2_b2", 4.0)])
def test_transformers_against_the_numbers_of_their_paper(name, published):
    """PVT v2 (https://arxiv.org/abs/2106.13797, table of ImageNet), whose blocks are MiT's."""
    assert round(on_meta(timm.create_model(name)), 1) == published


def test_head_by_hand():
    head = DAFormerHead((8, 16, 24, 32), 5, channels=12, dilations=(1, 6)).eval()
    sides = (24, 12, 6, 3)  # which the dilation divides, or the depthwise convolution's phases would have more rows
    maps = [torch.randn(1, c, s, s) for c, s in zip((8, 16, 24, 32), sides, strict=True)]
    cells, joined = 24 * 24, 4 * 12
    expected = sum(s * s * c * 12 for c, s in zip((8, 16, 24, 32), sides, strict=True))  # embedding
    expected += cells * joined * 12  # branch of dilation 1
    # Branch of dilation 6: depthwise, with an empty column beside each of 6 phases, then 1 x 1.
    expected += 24 * (24 + 6) * joined * 9 + cells * joined * 12
    expected += cells * 2 * 12 * 12 * 9 + cells * 12 * 5  # bottleneck and classifier
    assert flop(lambda: head(maps)) == 2 * expected


def test_inference_mode_and_autocast_change_no_count():
    model, picture = build_model("mit_b0", len(CITYSCAPES), with_dar=False).eval(), torch.randn(1, 3, 64, 64)
    plain = flop(lambda: model(picture))

    def mixed() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            segment(model, picture, (64, 64), confidence=False)

    assert plain > 0 and flop(mixed) == plain
