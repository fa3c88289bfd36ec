"""What a device can do at most: the yardstick for how well a network uses it."""

from __future__ import annotations

import time

import torch

from icda.benchmark.timing import synchronizer

SIDE = 2048
"""Rows and columns of the matrices that are multiplied."""
SECONDS = 1.0
"""How long products are repeated."""


def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of matrix products of 2048 x 2048, the best of those that a second has room for.

    Args:
        device: Where; on a CPU with the threads that PyTorch is set to use.
        dtype: Of the matrices. TF32 is left as PyTorch has it: off for products of float32.

    Returns:
        Floating point operations per second in 10^9, a multiplication and an addition counting as two.
    """
    synchronize = synchronizer(device)
    left, right = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    product = torch.mm(left, right)  # the first call sets libraries up
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        synchronize()
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best / 1e9
