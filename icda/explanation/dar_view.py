"""What DAR looks at: where its layers sample, and with which weights its cells attend (method section 5).

Hooks take down what the attention layers are given while DAR runs; positions and weights are then computed by the
layers' own methods. DAR itself knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from icda.models.dar import DAR, DeformableAttention, LocalAttention


@dataclass(frozen=True)
class LocalView:
    """Layer 1 of a stage, which attends within windows of the night map.

    Attributes:
        corners: First cell (row, column) of each query's window, (Q, 2) int.
        weights: Of each query to the cells of its window, (Q, heads, window, window) float32; they add up to 1 per
            head, and are 0 for cells beyond the map.
    """

    corners: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class DeformableView:
    """Layer 2 of a stage, in which each cell attends to samples of the joint map of night and day.

    A sample belongs to a cell. Each group of its channels is read at a position of its own, and all of them make its
    key and its value: a head that attends to a sample looks at the positions of all groups.

    Attributes:
        positions: Where each group reads the sample of each cell, (groups, H, W, 2) float32, (row, column) in cells:
            0 is the centre of the first cell, H - 1 or W - 1 that of the last.
        references: The same without offsets, (H, W, 2) float32. The published layer counts cells from edge to edge
            and samples from centre to centre, so that these lie up to half a cell inwards; an aligned one's do not.
        weights: Of each query to the samples, (Q, heads, H, W) float32; they add up to 1 per head.
    """

    positions: np.ndarray
    references: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class StageView:
    """One stage of DAR.

    Attributes:
        size: Height and width (H, W) of the grid that its layers work on.
        queries: The cell (row, column) of each query, (Q, 2) int.
        local: Its first layer.
        deformable: Its second layer.
    """

    size: tuple[int, int]
    queries: np.ndarray
    local: LocalView
    deformable: DeformableView


@torch.no_grad()
def view_dar(
    dar: DAR, night_maps: Sequence[Tensor], day_maps: Sequence[Tensor], points: np.ndarray
) -> tuple[list[Tensor], list[StageView]]:
    """Run DAR on a pair of images, and tell what it looks at.

    Args:
        dar: In evaluation mode.
        night_maps: The encoder's four maps of the night image, (1, widths[i], H_i, W_i) float.
        day_maps: Those of the day image.
        points: Where the queries lie in the image, (Q, 2), (y, x) as shares of height and width, 0 to below 1.

    Returns:
        What ``dar(night_maps, day_maps)`` returns, and a view of each stage.
    """
    assert len(night_maps[0]) == 1, night_maps[0].shape
    layers = [layer.attention for stage in dar.stages for layer in stage.layers]
    with _inputs_of(layers) as inputs:
        fused = dar(night_maps, day_maps)
    views = []
    for stage in dar.stages:
        local, deformable = (layer.attention for layer in stage.layers)
        (night, _), pair = inputs[local], inputs[deformable]
        size = (night.shape[2], night.shape[3])
        queries = cells_of(points, size)
        views.append(StageView(size, queries, _local(local, night, queries), _deformable(deformable, *pair, queries)))
    return fused, views


def cells_of(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The cell (row, column) of a grid in which each point lies.

    Args:
        points: (Q, 2), (y, x) as shares of height and width, 0 to below 1.
        size: Height and width of the grid.

    Returns:
        (Q, 2) int64.
    """
    return np.minimum(np.floor(points * size), np.array(size) - 1).astype(np.int64)


@contextmanager
def _inputs_of(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, ...]]]:
    """What modules are given when they are called next, by module."""
    inputs: dict[nn.Module, tuple[Tensor, ...]] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[module] = args

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> np.ndarray:
    """Softmax of scaled products: queries (..., Q, d) and keys (..., K, d) -> (..., Q, K) float32."""
    scores = q.float() @ k.float().transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    return scores.softmax(-1).cpu().numpy()


def _local(layer: LocalAttention, night: Tensor, queries: np.ndarray) -> LocalView:
    (q, k, _), mask = layer.in_windows(night)
    side = layer.window
    columns = -(-night.shape[3] // side)
    window = torch.as_tensor(queries[:, 0] // side * columns + queries[:, 1] // side, device=night.device)
    cell = torch.as_tensor(queries[:, 0] % side * side + queries[:, 1] % side, device=night.device)
    # Advanced indices on both sides of a slice: (Q, heads, d), for each query its own window.
    chosen = q[window, :, cell][:, :, None]
    if mask is not None:
        mask = mask.expand(len(q), -1, side**2, -1)[window, :, cell][:, :, None]
    weights = _weights(chosen, k[window], mask)
    return LocalView(queries // side * side, weights.reshape(len(queries), layer.heads, side, side))


def _deformable(layer: DeformableAttention, night: Tensor, day: Tensor, queries: np.ndarray) -> DeformableView:
    positions, sampled = layer.sample(night, day)
    q, k, _ = layer.queries_keys_values(night, sampled)
    height, width = night.shape[2:]
    index = torch.as_tensor(queries[:, 0] * width + queries[:, 1], device=night.device)
    weights = _weights(q[0, :, index], k[0]).transpose(1, 0, 2)
    last = np.array([height - 1, width - 1], np.float32)
    cells = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    references = cells if layer.aligned else (cells + 0.5) / (height, width) * last
    return DeformableView(
        positions=(positions.float().cpu().numpy() + 1) / 2 * last,
        references=references.astype(np.float32),
        weights=np.ascontiguousarray(weights).reshape(len(queries), layer.heads, height, width),
    )
