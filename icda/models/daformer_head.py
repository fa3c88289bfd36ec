"""The DAFormer decode head: embeds four maps, fuses them with context at several dilations, and classifies.

Paper: "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive Semantic
Segmentation", https://arxiv.org/abs/2111.14887, figure 3; method section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


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
        return self.convolve(x, self.weight, self.bias, self.groups)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, channels: int) -> Tensor:
        """``forward`` for some channels: a map (B, channels, H, W), their (channels, 1, 3, 3) and (channels,)."""
        d = self.dilation[0]
        if d == 1 or not _by_phases(x):
            return F.conv2d(x, weight, bias, padding=d, dilation=d, groups=channels)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        y = _ByPhases.apply(x, weight, d)
        return y if bias is None else y + bias[:, None, None]


class _ByPhases(torch.autograd.Function):
    """The convolution of ``DilatedDepthwiseConv``, keeping the map alone for the backward pass, not its phases.

    The map is that of all branches, so that they share it. Phases are there for some channels at a time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, d: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.d = d
        y = torch.empty_like(x)
        for out, part, own in zip(*(t.split(_CHANNELS, k) for t, k in ((y, 1), (x, 1), (weight, 0))), strict=True):
            phases = F.conv2d(to_phases(part, d), weight_of_phases(own, d), padding=1, groups=d * len(own))
            out.copy_(from_phases(phases, part.shape, d))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), d = ctx.saved_tensors, ctx.d
        wanted = [*ctx.needs_input_grad[:2], False]
        of_x, of_weight = (torch.empty_like(t) if wanted[i] else None for i, t in enumerate((x, weight)))
        for i in range(0, x.shape[1], _CHANNELS):
            part = slice(i, i + _CHANNELS)
            operands = to_phases(gradient[:, part], d), to_phases(x[:, part], d), weight_of_phases(weight[part], d)
            # stride, padding, dilation, transposed, output_padding, groups, output_mask
            settings = [1, 1], [1, 1], [1, 1], False, [0, 0], len(operands[2]), wanted
            phases, weights, _ = torch.ops.aten.convolution_backward(*operands, None, *settings)
            if of_x is not None:
                of_x[:, part] = from_phases(phases, x[:, part].shape, d)
            if of_weight is not None:
                of_weight[part] = weights.unflatten(0, (d, -1)).sum(0)
        return of_x, of_weight, None


_CHANNELS = 256
"""Channels whose phases are there at a time; all 1024 of a head take no less time and four times the memory."""


def to_phases(x: Tensor, d: int) -> Tensor:
    """A channels-last map (B, C, H, W) as one whose cells are beside every d-th one: (B, d C, H / d, d (W / d + 1)).

    The phases of rows lie side by side, with an empty column after each; those of columns are channels of their own.
    In channels-last format that is the map itself with empty rows and columns at its ends, which is all that is
    copied.
    """
    height, width = x.shape[2:]
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, d + -width % d, 0, -height % d))
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // d, width, d * channels).permute(0, 3, 1, 2)


def weight_of_phases(weight: Tensor, d: int) -> Tensor:
    """The weight (C, 1, 3, 3) of the map as that (d C, 1, 3, 3) of its phases."""
    return weight.repeat(d, 1, 1, 1)


def from_phases(phases: Tensor, shape: torch.Size, d: int) -> Tensor:
    """The map of a shape (B, C, H, W) whose phases are given as ``to_phases`` lays them out; shares their memory."""
    batch, channels, height, width = shape
    x = phases.permute(0, 2, 3, 1).reshape(batch, height + -height % d, -1, channels)
    return x[:, :height, :width].permute(0, 3, 1, 2)


def _by_phases(x: Tensor) -> bool:
    """Whether a map is convolved phase by phase; not in a graph that is traced to be run elsewhere."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last) and not traced


class PointwiseConv(nn.Conv2d):
    """1 x 1 convolution without bias, whose result is laid out for the 3 x 3 convolution that comes next but two.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """A map (B, out_channels, H, W) of a map (B, in_channels, H, W), or of equal parts of its channels."""
        if isinstance(x, Tensor):
            return self.laid_out(super().forward(x))
        weights = self.weight.chunk(len(x), 1)
        return self.laid_out(_sum(F.conv2d(*pair) for pair in zip(x, weights, strict=True)))

    @staticmethod
    def laid_out(y: Tensor) -> Tensor:
        """The map in the format in which it is to be kept."""
        # oneDNN's float32 kernels for 3 x 3 convolutions take 1.3 times as long for channels-last maps. Turned here,
        # before batch norm and ReLU keep it, the map is kept once.
        return y.contiguous() if y.dtype == torch.float32 else y


class ConvOfParts(nn.Conv2d):
    """3 x 3 convolution without bias of several maps as if they were one, joined along channels.

    Each map is convolved with its part of the weight, and the results are added: neither the joined map nor its
    gradient, nor the copies that a convolution makes of both, are ever there as a whole.

    Args:
        parts: Number of maps.
        in_channels: Channels of each.
        out_channels: Channels of the output map.
    """

    def __init__(self, parts: int, in_channels: int, out_channels: int) -> None:
        super().__init__(parts * in_channels, out_channels, 3, padding=1, bias=False)
        self.parts = parts

    def forward(self, maps: Iterable[Tensor]) -> Tensor:
        """A map (B, out_channels, H, W) of ``parts`` maps (B, in_channels, H, W), each read once, in their order."""
        weights = self.weight.split(self.in_channels // self.parts, 1)
        # A bias is there where batch norm was folded in.
        parts = (
            F.conv2d(x, weight, self.bias if i == 0 else None, padding=1)
            for i, (x, weight) in enumerate(zip(maps, weights, strict=True))
        )
        return _sum(parts)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """The sum of maps that convolutions gave, in at least float32, and then in their precision.

    Convolutions do not keep what they give for the backward pass, so that the first map may become the sum.
    """
    total, dtype = None, None
    for part in parts:
        if total is None:
            total, dtype = part.to(torch.promote_types(part.dtype, torch.float32)), part.dtype
        else:
            total = total.add_(part)
    assert total is not None and dtype is not None, parts
    return total.to(dtype)


def _normalized(conv: nn.Conv2d, channels: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class DepthwiseSeparableConv(nn.Sequential):
    """3 x 3 depthwise convolution, then 1 x 1 convolution, each with batch norm and ReLU.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        dilation: Dilation of the depthwise convolution in cells; the map keeps its size.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__(
            _normalized(DilatedDepthwiseConv(in_channels, dilation), in_channels),
            _normalized(PointwiseConv(in_channels, out_channels), out_channels),
        )

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """A map (B, out_channels, H, W) of a map (B, in_channels, H, W), or of equal parts of its channels.

        Of parts, what lies between the two convolutions is there for one at a time, and is computed again in the
        backward pass rather than kept, which is then to run inside ``icda.training.recompute.statistics_kept``.
        """
        if isinstance(x, Tensor):
            return super().forward(x)
        (depthwise, norm, _), (pointwise, *rest) = self
        # Parameters are those of this call, which are others than the modules' own inside ``functional_call``.
        parameters = depthwise.weight, norm.weight, norm.bias, pointwise.weight.transpose(0, 1)
        own = list(zip(*(p.chunk(len(x)) for p in parameters), strict=True))
        channels = [slice(i * part.shape[1], (i + 1) * part.shape[1]) for i, part in enumerate(x)]
        y = _sum(
            checkpoint(partial(self._part, some), part, *these, use_reentrant=False, preserve_rng_state=False)
            for some, part, these in zip(channels, x, own, strict=True)
        )
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        return nn.Sequential(*rest)(pointwise.laid_out(y))

    def _part(self, channels: slice, x: Tensor, *parameters: Tensor) -> Tensor:
        """What some channels of the map contribute to the result of the second convolution.

        That convolution is inside, since it keeps its input; it is not itself computed again.
        """
        (depthwise, norm, _), (filters, scale, shift, matrix) = self[0], parameters
        x = depthwise.convolve(x, filters, None, x.shape[1])
        # Batch norm, of one process or of several, of these channels alone. Slices share the statistics' memory;
        # batches are counted once for all parts.
        state = {name: buffer[channels] if buffer.ndim else buffer.clone() for name, buffer in norm.named_buffers()}
        x = functional_call(norm, {"weight": scale, "bias": shift, **state}, (x,))
        return F.conv2d(F.relu(x, inplace=True), matrix.transpose(0, 1))


class DAFormerHead(nn.Module):
    """Logits from four encoder maps (method section 4).

    Attributes:
        recompute: Where most of what lies within the branches is computed again in the backward pass rather than
            kept, for each dilation two maps of all embedded channels: on a type of device, ``"everywhere"``, or
            nowhere if None. See ``DepthwiseSeparableConv``.

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
            _normalized(PointwiseConv(joined, channels), channels)
            if dilation == 1
            else DepthwiseSeparableConv(joined, channels, dilation)
            for dilation in dilations
        )
        self.bottleneck = _normalized(ConvOfParts(len(dilations), channels, channels), channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.recompute: str | None = None

    def forward(self, maps: Sequence[Tensor], with_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits at the first map's size.

        Args:
            maps: Float maps (B, in_channels[i], H_i, W_i).
            with_features: Whether the map that the logits are made of is wanted as well.

        Returns:
            Logits (B, C, H_0, W_0) float; if ``with_features``, with the map (B, channels, H_0, W_0) before dropout.

        Raises:
            ValueError: If the number of maps is not that of ``in_channels``.
        """
        if len(maps) != len(self.embed):
            raise ValueError(f"got {len(maps)} maps, expected {len(self.embed)}, one for each of in_channels")
        embedded = self._embedded(maps)
        in_parts = torch.is_grad_enabled() and self.recompute in ("everywhere", embedded[0].device.type)
        x = embedded if in_parts else torch.cat(embedded, 1)
        x = self.bottleneck(branch(x) for branch in self.branches)
        logits = self.classifier(self.dropout(x))
        return (logits, x) if with_features else logits

    def _embedded(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps, embedded and brought to the first one's size."""
        size = maps[0].shape[2:]
        embedded = []
        for linear, features in zip(self.embed, maps, strict=True):
            x = F.conv2d(features, linear.weight[:, :, None, None], linear.bias)  # the linear layer, cell by cell
            if x.device.type == "cpu":  # see DilatedDepthwiseConv
                x = x.contiguous(memory_format=torch.channels_last)
            if x.shape[2:] != size:
                x = F.interpolate(x, size, mode="bilinear", align_corners=False)
            embedded.append(x)
        return embedded
