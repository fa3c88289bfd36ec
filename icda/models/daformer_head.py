"""The DAFormer decode head: embeds four maps, fuses them with context at several dilations, and classifies.

Paper: "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive Semantic
Segmentation", https://arxiv.org/abs/2111.14887, figure 3; method section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation


class DilatedDepthwiseConv(nn.Conv2d):
    """3 x 3 depthwise convolution with a dilation, phase by phase where that is faster.

    On a CPU, a channels-last map is split into the ``dilation ** 2`` maps of every so many cells, which are convolved
    without dilation: oneDNN has fast kernels for that, but none for the gradients of dilated depthwise convolutions,
    which take it 5 to 20 times as long. The sums are the same, term by term.

    Args:
        channels: Channels of the map.
        dilation: In cells; the map keeps its size.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (B, channels, H, W) float.

        Returns:
            A tensor of the same shape and memory format.
        """
        d = self.dilation[0]
        if d == 1 or not _by_phases(x):
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        y = _ByPhases.apply(x, weight, d)
        return y if bias is None else y + bias[:, None, None]


class _ByPhases(torch.autograd.Function):
    """The convolution of ``DilatedDepthwiseConv``, keeping the map alone for the backward pass, not its phases.

    The map is that of all branches, so that they share it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, d: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.d = d
        return _joined(F.conv2d(_phases(x, d), _of_phases(weight, d), padding=1, groups=d * x.shape[1]), x.shape, d)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), d = ctx.saved_tensors, ctx.d
        wanted = [*ctx.needs_input_grad[:2], False]
        settings = [1, 1], [1, 1], [1, 1], False, [0, 0], d * x.shape[1], wanted  # stride, padding, dilation, ...
        operands = _phases(gradient, d), _phases(x, d), _of_phases(weight, d)
        of_phases, of_weight, _ = torch.ops.aten.convolution_backward(*operands, None, *settings)
        return (
            None if of_phases is None else _joined(of_phases, x.shape, d),
            None if of_weight is None else of_weight.unflatten(0, (d, -1)).sum(0),
            None,
        )


def _phases(x: Tensor, d: int) -> Tensor:
    """A map (B, C, H, W) as one in which neighbours are those of every d-th cell: (B, d C, H / d, d (W / d + 1)).

    The phases of rows lie side by side, with an empty column after each; those of columns are channels of their own.
    In channels-last format that is the map itself with empty rows and columns at its ends, which is all that is
    copied.
    """
    height, width = x.shape[2:]
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, d + -width % d, 0, -height % d))
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // d, width, d * channels).permute(0, 3, 1, 2)


def _of_phases(weight: Tensor, d: int) -> Tensor:
    """The weight (C, 1, 3, 3) of the map as that (d C, 1, 3, 3) of its phases."""
    return weight.repeat(d, 1, 1, 1)


def _joined(phases: Tensor, shape: torch.Size, d: int) -> Tensor:
    """The map of a shape (B, C, H, W) that phases come from, in channels-last format."""
    batch, channels, height, width = shape
    x = phases.permute(0, 2, 3, 1).reshape(batch, height + -height % d, -1, channels)[:, :height, :width]
    return x.contiguous().permute(0, 3, 1, 2)


def _by_phases(x: Tensor) -> bool:
    """Whether a map is convolved phase by phase; not in a graph that is traced to be run elsewhere."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last) and not traced


class DepthwiseSeparableConv(nn.Sequential):
    """3 x 3 depthwise convolution, then 1 x 1 convolution, each with batch norm and ReLU.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        dilation: Dilation of the depthwise convolution in cells; the map keeps its size.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__(
            nn.Sequential(
                DilatedDepthwiseConv(in_channels, dilation), nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)
            ),
            Conv2dNormActivation(in_channels, out_channels, 1),
        )


class DAFormerHead(nn.Module):
    """Logits from four encoder maps (method section 4).

    Args:
        in_channels: Widths of the maps, in the encoder's order (finest first).
        num_classes: Classes C.
        channels: Width of each embedded map and of each context branch.
        dilations: One context branch each; 1 means a plain 1 x 1 convolution.
        dropout: Probability with which a channel is dropped before the classifier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        dilations: Sequence[int] = (1, 6, 12, 18),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Linear(width, channels) for width in in_channels)
        joined = channels * len(in_channels)
        self.branches = nn.ModuleList(
            Conv2dNormActivation(joined, channels, 1)
            if dilation == 1
            else DepthwiseSeparableConv(joined, channels, dilation)
            for dilation in dilations
        )
        self.bottleneck = Conv2dNormActivation(channels * len(dilations), channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits at the first map's size.

        Args:
            maps: Float maps (B, in_channels[i], H_i, W_i).

        Returns:
            Logits (B, C, H_0, W_0) float.

        Raises:
            ValueError: If the number of maps is not that of ``in_channels``.
        """
        if len(maps) != len(self.embed):
            raise ValueError(f"got {len(maps)} maps, expected {len(self.embed)}, one for each of in_channels")
        # One after the other, so that each frees what it read, where nothing is kept for a backward pass.
        x = self._context(self._embedded(maps))
        return self.classifier(self.dropout(self.bottleneck(x)))

    def _embedded(self, maps: Sequence[Tensor]) -> Tensor:
        """All maps, embedded and brought to the first one's size, as one map."""
        size = maps[0].shape[2:]
        embedded = []
        for linear, features in zip(self.embed, maps, strict=True):
            x = F.conv2d(features, linear.weight[:, :, None, None], linear.bias)  # the linear layer, cell by cell
            if x.device.type == "cpu":  # see DilatedDepthwiseConv
                x = x.contiguous(memory_format=torch.channels_last)
            if x.shape[2:] != size:
                x = F.interpolate(x, size, mode="bilinear", align_corners=False)
            embedded.append(x)
        return torch.cat(embedded, 1)

    def _context(self, joined: Tensor) -> Tensor:
        """What the branches make of the joined map, as one map."""
        context = torch.cat([branch(joined) for branch in self.branches], 1)
        # oneDNN's float32 kernels for the 3 x 3 convolution that follows take 1.3 times as long for channels-last
        # maps.
        return context.contiguous() if context.dtype == torch.float32 else context
