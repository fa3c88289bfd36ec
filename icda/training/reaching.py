"""A loss whose backward pass visits parameters that it does not depend on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Reaching(torch.autograd.Function):
    """A loss, and parameters that its backward pass visits as well and leaves as they are.

    ``DistributedDataParallel`` waits for all of them, also for those whose gradients were taken before.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        """The loss, a scalar, as it is."""
        ctx.count = len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The loss's gradient, and none for the parameters."""
        return gradient, *[None] * ctx.count
