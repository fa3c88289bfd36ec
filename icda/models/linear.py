"""Linear layers whose float32 products on a CPU are oneDNN's 1 x 1 convolutions.

PyTorch hands float32 matrix products to MKL, which on AMD's processors uses half of what AVX-512 offers, and
convolutions to oneDNN, which uses it all where the processor has it: a layer takes half the time there, and about the
same elsewhere. The sums are the same but for their order.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS = 128
"""Rows from which a convolution is not slower than the product: what it costs to begin with is more."""
_IMAGES = range(16, 65)
"""Images that rows are taken for: from 16 on, PyTorch gives oneDNN 1 x 1 convolutions even on one thread."""
_VALUES = 20480
"""Values of a single image above which PyTorch gives it to oneDNN, on several threads."""


class Linear(nn.Linear):
    """``nn.Linear`` that takes its product from ``linear``; an existing layer becomes one by ``through_onednn``."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result (..., out_features) for an input (..., in_features) float."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, by oneDNN where that is faster.

    Args:
        x: (..., K) float.
        weight: (N, K) of the same type.
        bias: (N,), or None.

    Returns:
        (..., N).
    """
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    y = F.conv2d(_image(x), weight[:, :, None, None], bias).permute(0, 2, 3, 1).contiguous()
    # Not a view, which could not be changed in place where it comes from a function of one's own.
    return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], len(weight)])


def linear_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``linear``'s input, weight and bias.

    Args:
        gradient: Of the result, (..., N) float.
        x: The input, (..., K).
        weight: (N, K).
        wanted: Which of the three are computed; the others are None.
    """
    of_x, of_weight, of_bias = wanted
    if _by_onednn(x, weight):
        operands = _image(gradient), _image(x), weight[:, :, None, None]
        # bias_sizes, stride, padding, dilation, transposed, output_padding, groups, output_mask
        settings = [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, list(wanted)
        found = torch.ops.aten.convolution_backward(*operands, *settings)
        return (
            found[0].permute(0, 2, 3, 1).reshape(x.shape) if of_x else None,
            found[1].reshape(weight.shape) if of_weight else None,
            found[2] if of_bias else None,
        )
    rows = gradient.flatten(0, -2)
    return (
        gradient @ weight if of_x else None,
        rows.t() @ x.flatten(0, -2) if of_weight else None,
        rows.sum(0) if of_bias else None,
    )


def through_onednn(model: nn.Module) -> None:
    """Make every plain ``nn.Linear`` of a model a ``Linear``; its parameters stay what they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is oneDNN's; not in a graph that is traced to be compiled or run elsewhere."""
    # What the compiler cannot follow comes after this line.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32 or not len(weight):
        return False
    rows = x.numel() // max(x.shape[-1], 1)
    if rows < _ROWS or (_images(rows) == 1 and (torch.get_num_threads() == 1 or x.numel() <= _VALUES)):
        return False
    # x86 alone has MKL.
    return (
        torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    )


@lru_cache(maxsize=1024)
def _images(rows: int) -> int:
    """Images of equal size that rows are taken for."""
    return next((n for n in _IMAGES if rows % n == 0), 1)


def _image(x: Tensor) -> Tensor:
    """Rows (..., K) as cells of channels-last images (B, K, 1, n); they share memory if the rows lie in turn."""
    x = x.reshape(-1, x.shape[-1])
    return x.view(_images(len(x)), 1, -1, x.shape[1]).permute(0, 3, 1, 2)
