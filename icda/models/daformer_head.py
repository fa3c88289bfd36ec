"""The DAFormer decode head: embeds four maps, fuses them with context at several dilations, and classifies.

Paper: "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive Semantic
Segmentation", https://arxiv.org/abs/2111.14887, figure 3; method section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation


class DepthwiseSeparableConv(nn.Sequential):
    """3 x 3 depthwise convolution, then 1 x 1 convolution, each with batch norm and ReLU.

    Args:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        dilation: Dilation of the depthwise convolution in cells; the map keeps its size.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__(
            Conv2dNormActivation(in_channels, in_channels, 3, groups=in_channels, dilation=dilation),
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
        size = maps[0].shape[2:]
        embedded = []
        for linear, features in zip(self.embed, maps, strict=True):
            x = F.conv2d(features, linear.weight[:, :, None, None], linear.bias)  # the linear layer, cell by cell
            if x.shape[2:] != size:
                x = F.interpolate(x, size, mode="bilinear", align_corners=False)
            embedded.append(x)
        joined = torch.cat(embedded, 1)
        context = torch.cat([branch(joined) for branch in self.branches], 1)
        return self.classifier(self.dropout(self.bottleneck(context)))
