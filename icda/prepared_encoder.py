"""MiT's and PVT v2's layers for inference on a CPU: maps stay channels-last, and large ones go in strips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.pvt_v2 import Attention, MlpWithDepthwiseConv
from torch import Tensor, nn
from torch.nn import functional as F

_PART = 2**22
"""Values of the largest map that is made at a time, where a layer can go part by part."""


class PreparedMlp(MlpWithDepthwiseConv):
    """An MLP whose tokens are a channels-last map, as they lie in memory.

    timm's views of a single picture's tokens have strides that PyTorch does not take for channels-last, so that it
    copies every map before its depthwise convolution and uses slower kernels.
    """

    def forward(self, x: Tensor, feat_size: Sequence[int]) -> Tensor:
        """See timm's class: tokens (B, H W, C) float, and (H, W)."""
        if x.device.type != "cpu":
            return super().forward(x, feat_size)
        (batch, count, _), (height, width) = x.shape, feat_size
        x = x.reshape(batch, height, width, -1)
        rows = max(1, _PART // (batch * width * self.fc1.out_features))
        if rows >= height:
            return self._rows(x, 0, height).reshape(batch, count, -1)
        result = x.new_empty(batch, height, width, self.fc2.out_features)
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            result[:, start:stop] = self._rows(x, start, stop)
        return result.view(batch, count, -1)

    def _rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """What becomes of some rows of a map (B, H, W, C): (B, stop - start, W, C)."""
        above, below = min(start, 1), min(x.shape[1] - stop, 1)  # rows beside them that the convolution sees
        x = self.relu(self.fc1(x[:, start - above : stop + below]))
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x[:, above : x.shape[1] - below]))


class PreparedAttention(Attention):
    """Attention whose keys and values come from a channels-last map, and halved scores from matrix products.

    PyTorch's fused attention takes half as long again as these products on a CPU for bfloat16 with few keys.
    """

    def forward(self, x: Tensor, feat_size: Sequence[int]) -> Tensor:
        """See timm's class: tokens (B, H W, C) float, and (H, W)."""
        if x.device.type != "cpu":
            return super().forward(x, feat_size)
        batch, count, channels = x.shape
        q = self.q(x).view(batch, count, self.num_heads, -1).transpose(1, 2)
        if self.sr is not None:
            x = x.reshape(batch, *feat_size, channels).permute(0, 3, 1, 2)
            x = self.sr(x if self.pool is None else self.pool(x)).permute(0, 2, 3, 1).flatten(1, 2)
            x = self.norm(x) if self.act is None else self.act(self.norm(x))
        k, v = self.kv(x).view(batch, -1, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if x.dtype in (torch.bfloat16, torch.float16):
            x = self._products(q, k, v)
        else:
            x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(batch, count, channels))

    def _products(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of queries (B, heads, N, D) on keys and values (B, heads, M, D): (B, N, heads, D)."""
        batch, heads, count, size = q.shape
        result = q.new_empty(batch, count, heads, size)
        k = (k * self.scale).transpose(2, 3)
        step = max(1, _PART // (batch * heads * k.shape[3]))
        for start in range(0, count, step):
            part = slice(start, start + step)
            result[:, part] = ((q[:, :, part] @ k).softmax(-1) @ v).transpose(1, 2)
        return result


def prepare_encoder(encoder: nn.Module) -> None:
    """Make the layers of MiT and PVT v2 in an encoder prepared ones; others stay as they are.

    Args:
        encoder: In evaluation mode; its weights stay what they are.
    """
    classes = {MlpWithDepthwiseConv: PreparedMlp, Attention: PreparedAttention}
    for module in encoder.modules():
        module.__class__ = classes.get(type(module), type(module))
