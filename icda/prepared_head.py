"""The DAFormer head for inference on a CPU: the same sums in an order that needs a fraction of the memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icda.models import DAFormerHead
from icda.models.daformer_head import DepthwiseSeparableConv, from_phases, to_phases, weight_of_phases
from icda.models.linear import linear

_GROUP = 2**21
"""Values of a group of channels that are filtered together: what a core's cache holds, and what the C library hands
out again rather than having the system map and clear it anew, which takes longer than filtering it."""
_STRIP = 2**20
"""Values of the rows of a branch that are convolved together."""


class PreparedHead(DAFormerHead):
    """A ``DAFormerHead`` without batch norm; an existing one becomes one by ``prepare_head``.

    On a CPU no map of all embedded maps or of all branches is made: the embedded maps are filtered some channels at a
    time, each branch is summed up over them, and the bottleneck's convolution over the branches. Only the order of
    the sums differs. A branch of dilation 1 acts on each cell alone, as does the embedding, so that both are one
    matrix, which is applied before a map is brought to the first one's size. Elsewhere it is a ``DAFormerHead``.
    """

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See ``DAFormerHead.forward``."""
        if maps[0].device.type != "cpu" or len(maps) != len(self.embed):
            return super().forward(maps)
        cells = [features.permute(0, 2, 3, 1).contiguous() for features in maps]
        conv = self.bottleneck[0]
        weights = conv.weight.split(conv.out_channels, 1)
        total: Tensor | None = None
        for branch, weight in zip(self.branches, weights, strict=True):
            separable = isinstance(branch, DepthwiseSeparableConv)
            context = self._dilated(branch, cells) if separable else self._plain(branch[0], cells)
            if total is None:
                total = conv.bias.repeat(*context.shape[:3], 1)
            _add_convolved(total, context.relu_(), weight)
            del context  # before the next one is made
        assert total is not None, self.branches
        return self.classifier(self.dropout(total.relu_().permute(0, 3, 1, 2)))

    def _plain(self, conv: nn.Conv2d, cells: Sequence[Tensor]) -> Tensor:
        """What a branch of dilation 1 makes of all maps (B, H_i, W_i, in_channels[i]): (B, H_0, W_0, channels)."""
        total: Tensor | None = None
        for embed, weight, x in zip(self.embed, self._split(conv), cells, strict=True):
            # The product in float32 at least, as layers sum up whose weights have fewer bits.
            wide = torch.promote_types(weight.dtype, torch.float32)
            both = (weight.to(wide) @ embed.weight.to(wide)).to(x.dtype)
            bias = (weight.to(wide) @ embed.bias.to(wide)).to(x.dtype)
            part = _resized(linear(x, both, bias + conv.bias if total is None else bias), cells[0])
            total = part if total is None else total.add_(part)
        assert total is not None, len(cells)
        return total

    def _dilated(self, branch: DepthwiseSeparableConv, cells: Sequence[Tensor]) -> Tensor:
        """What a branch with a dilation makes of all maps, as ``_plain``."""
        depthwise, pointwise = branch[0][0], branch[1][0]
        batch, height, width, _ = cells[0].shape
        channels = pointwise.out_channels
        total = pointwise.bias.repeat(batch, height, width, 1)
        flat = total.view(-1, channels)
        group = max(1, min(channels, _GROUP // (batch * height * width)))
        places = depthwise.weight.split(channels), depthwise.bias.split(channels), self._split(pointwise)
        for embed, x, kernel, bias, weight in zip(self.embed, cells, *places, strict=True):
            for start in range(0, channels, group):
                some = slice(start, start + group)
                embedded = _resized(linear(x, embed.weight[some], embed.bias[some]), cells[0])
                filtered = _filtered(embedded, kernel[some], bias[some], depthwise.dilation[0])
                flat.addmm_(filtered.view(-1, filtered.shape[3]), weight[:, some].t())
        return total

    def _split(self, conv: nn.Conv2d) -> tuple[Tensor, ...]:
        """The matrices (channels, channels) by which a 1 x 1 convolution multiplies each map."""
        return conv.weight[:, :, 0, 0].split(self.embed[0].out_features, 1)


def prepare_head(head: nn.Module) -> None:
    """Make a ``DAFormerHead`` a ``PreparedHead``, if its batch norms are folded; leave any other as it is.

    Args:
        head: Its weights stay what they are.
    """
    if type(head) is DAFormerHead and all(map(_fits, (head.bottleneck, *head.branches))):
        head.__class__ = PreparedHead


def _fits(layer: nn.Module) -> bool:
    """Whether a layer is one of ``DAFormerHead``'s with its batch norms folded."""
    if isinstance(layer, DepthwiseSeparableConv):
        return all(map(_fits, layer))
    if not isinstance(layer, nn.Sequential) or len(layer) != 3:
        return False
    conv, norm, activation = layer
    folded = isinstance(conv, nn.Conv2d) and conv.bias is not None and type(norm) is nn.Identity
    return folded and isinstance(activation, nn.ReLU)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """A map (B, h, w, C) brought bilinearly to the height and width of another (B, H, W, ...)."""
    size = like.shape[1:3]
    if x.shape[1:3] == size:
        return x
    x = F.interpolate(x.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1).contiguous()


def _filtered(x: Tensor, kernel: Tensor, bias: Tensor, d: int) -> Tensor:
    """A map (B, H, W, C), rectified after a depthwise convolution with a dilation.

    As ``DilatedDepthwiseConv`` does it, bias and rectifier going with the convolution.

    Args:
        x: The map.
        kernel: (C, 1, 3, 3).
        bias: (C,).
        d: The dilation.
    """
    x = x.permute(0, 3, 1, 2)
    groups = d * x.shape[1]
    y = F.conv2d(to_phases(x, d), weight_of_phases(kernel, d), bias.repeat(d), padding=1, groups=groups)
    return from_phases(y.relu_(), x.shape, d).permute(0, 2, 3, 1).contiguous()


def _add_convolved(total: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add a 3 x 3 convolution of a map (B, H, W, C) to ``total`` (B, H, W, C'), some rows at a time."""
    batch, height, width, channels = x.shape
    rows = max(1, _STRIP // (batch * width * channels))
    weight = weight.contiguous(memory_format=torch.channels_last)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        strip = x[:, max(start - 1, 0) : stop + 1].permute(0, 3, 1, 2)
        if start == 0 or stop == height:
            strip = F.pad(strip, (0, 0, int(start == 0), int(stop == height)))
        total[:, start:stop] += F.conv2d(strip, weight, padding=(0, 1)).permute(0, 2, 3, 1)
