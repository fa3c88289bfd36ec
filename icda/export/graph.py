"""The network as it is deployed: pictures in, train ids out, without what only training needs."""

from __future__ import annotations

import copy

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from icda.models import SegmentationModel

INPUT = "images"
LEVELS = torch.iinfo(torch.uint8).max  # what the brightest value of a picture is divided by
EXAMPLE_SIZE = (96, 160)
"""Height and width of the picture that a graph is traced with; it takes others as well."""


class InferenceGraph(nn.Module):
    """A ``SegmentationModel`` without DAR, in evaluation mode, from a picture to train ids at the picture's size.

    It does what ``icda.inference`` does with ``SegmentationModel.forward``; pictures below ``SMALLEST_SIDE`` (32
    pixels), which the model pads, are not for it.

    Args:
        model: Its weights are copied.
        normalize: Whether pictures come as RGB uint8, 0..255, and are normalised here with the model's own mean and
            deviation; else they come normalised.
        argmax: Whether train ids are given; else logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: SegmentationModel, *, normalize: bool = True, argmax: bool = True) -> None:
        super().__init__()
        self.encoder = _with_traceable_padding(copy.deepcopy(model.encoder))
        self.head = copy.deepcopy(model.head)
        self.normalize = normalize
        self.argmax = argmax
        self.register_buffer("mean", model.mean.detach().clone().reshape(3, 1, 1))
        self.register_buffer("std", model.std.detach().clone().reshape(3, 1, 1))
        self.eval().requires_grad_(False)

    @property
    def output(self) -> str:
        """Name of the output: ``labels`` or ``logits``."""
        return "labels" if self.argmax else "logits"

    def example(self) -> Tensor:
        """A batch of two pictures of the type that it takes, to trace it with."""
        shape = (2, 3, *EXAMPLE_SIZE)
        return torch.zeros(shape, dtype=torch.uint8 if self.normalize else torch.float32)

    def forward(self, images: Tensor) -> Tensor:
        """Train ids or logits of pictures.

        Args:
            images: (B, 3, H, W), RGB; uint8 from 0 to 255 with ``normalize``, else float32, scaled to 0..1 and
                normalised with the model's mean and deviation. H and W: 32 pixels or more, odd ones as well. Files
                of ONNX and torch.export refuse other types; with ``normalize``, TorchScript takes floats of 0..255.

        Returns:
            With ``argmax`` train ids (B, H, W) uint8, of equal logits the first class; else logits (B, C, H, W)
            float32.
        """
        if self.normalize:
            images = (images.float() / LEVELS - self.mean) / self.std
        logits = SegmentationModel.upsample(self.head(self.encoder(images)), images.shape[2:])
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits


class SamePadding(nn.Module):
    """Pads a map with zeros so that a convolution with stride s turns n cells into ceil(n / s), as TensorFlow does.

    Args:
        kernel: The convolution's kernel, (height, width).
        stride: Its stride, (height, width), at most the extent of the dilated kernel.
        dilation: Its dilation, (height, width).
    """

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> None:
        super().__init__()
        self.extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """A map (B, C, H, W) with zeros around it."""
        height, width = x.shape[2:]
        top, bottom = self._amounts(height, 0)
        left, right = self._amounts(width, 1)
        return F.pad(x, (left, right, top, bottom))

    def _amounts(self, side: int, axis: int) -> tuple[int, int]:
        total = (side - 1) // self.stride[axis] * self.stride[axis] + self.extent[axis] - side
        return total // 2, total - total // 2


def _with_traceable_padding(module: nn.Module) -> nn.Module:
    """Puts a ``SamePadding`` and a plain convolution in the place of timm's ``Conv2dSame``, in a module of one's own.

    timm computes the amount of padding with ``ceil`` and ``max``. In terms of an unknown picture size that cannot be
    simplified, it doubles with every layer, and exporting tf_efficientnet_lite0 takes minutes and dozens of pages of
    conditions instead of seconds.
    """
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            module.add_module(name, _plain(child))
        else:
            _with_traceable_padding(child)
    return module


def _plain(conv: Conv2dSame) -> nn.Module:
    padding = SamePadding(conv.kernel_size, conv.stride, conv.dilation)
    if any(extent < stride for extent, stride in zip(padding.extent, conv.stride, strict=True)):
        return conv  # its padding could come out negative
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    plain.weight, plain.bias = conv.weight, conv.bias
    return nn.Sequential(padding, plain)
