"""Counting the floating point operations of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_gflop(call: Callable[[], object]) -> float:
    """Run a call once, and count the operations of its matrix products, convolutions and attention.

    A multiplication and an addition count as two. All that is executed counts, the backward pass inside the call and
    activations that are computed again as well; whatever is done for each value alone, such as normalisation,
    activation functions and resizing, does not. Compiled modules are to run uncompiled meanwhile
    (``icda.training.compilation.uncompiled``).

    Args:
        call: What is counted; it runs a little slower than by itself.

    Returns:
        Operations in 10^9.
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _conv_backward})
    counter.mod_tracker = _NoModules()
    with counter:
        call()
    return counter.get_total_flops() / 1e9


class _NoModules:
    """In the place of what tells the counter which modules are running, for a count of the whole.

    PyTorch's own keeps activations alive that are to be computed again, and takes a quarter more time.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def _conv_backward(
    grad_out: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    output_mask: Sequence[bool],
    out_shape: object = None,
) -> int:
    """Operations of a convolution's backward pass: those of its forward pass for each of input and weight.

    PyTorch's own formula (2.6 to 2.15) counts the weight's gradient once for each group, which is hundreds of times
    too much for a depthwise convolution.

    Args:
        grad_out, x, weight: Shapes of the output's gradient, the input and the weight.
        transposed: Whether it is a transposed convolution.
        output_mask: Which of the gradients of input, weight and bias are computed; the last is not counted.
        out_shape: Of what is returned.
    """
    batch, _, *cells = x if transposed else grad_out
    return 2 * batch * prod(cells) * prod(weight) * sum(output_mask[:2])
