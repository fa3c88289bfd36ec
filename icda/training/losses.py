"""The loss terms that are functions: cross entropy as the method averages it, and the feature distance.

The alignment loss of section 6 is ``icda.models.PCA``, which holds its prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from icda.distributed import sum_over_ranks, world_size
from icda.training.precision import at_least_float32


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, weight: Tensor | None = None) -> Tensor:
    """Cross entropy averaged over ALL pixels, ignored ones counting as zero (method section 7.2).

    Args:
        logits: (B, C, H, W) float.
        labels: (B, H, W) int64 class ids or ``ignore_index``.
        ignore_index: Label of pixels that cost nothing.
        weight: (B, H, W) float that multiplies a pixel's cost before the mean; None is 1 everywhere.

    Returns:
        Scalar float32 (float64 for float64 logits).
    """
    cost = F.cross_entropy(at_least_float32(logits), labels, ignore_index=ignore_index, reduction="none")
    return (cost if weight is None else cost * weight).mean()


def thing_cells(
    labels: Tensor, size: Sequence[int], things: Sequence[int], num_classes: int, min_share: float
) -> Tensor:
    """Cells that are filled by one thing (method section 7.3).

    Args:
        labels: (B, H, W) int64 class ids; any other id counts as one further class.
        size: Cells (h, w).
        things: Class ids of things.
        num_classes: Classes C.
        min_share: Share of a cell's pixels, 0..1, that its most frequent class needs.

    Returns:
        (B, h, w) bool.
    """
    known = torch.where(labels < num_classes, labels, num_classes)
    one_hot = F.one_hot(known, num_classes + 1).permute(0, 3, 1, 2).float()
    share, most_frequent = F.adaptive_avg_pool2d(one_hot, tuple(size)).max(1)
    is_thing = torch.isin(most_frequent, torch.as_tensor(list(things), device=labels.device))
    return is_thing & (share >= min_share)


def feature_distance(features: Tensor, frozen: Tensor, cells: Tensor) -> Tensor:
    """Mean Euclidean distance over channels between two maps, at the chosen cells (method section 7.3).

    With several processes the mean is over the cells of all of them, and this is the process's share of it, times
    the number of processes: the average over processes is the mean.

    Args:
        features: The student's last map (B, C, h, w) float.
        frozen: The frozen ImageNet encoder's last map, of the same shape.
        cells: (B, h, w) bool.

    Returns:
        Scalar float32 (float64 for float64 maps); 0 where no cell is chosen.
    """
    distance = torch.linalg.vector_norm(at_least_float32(features) - at_least_float32(frozen), dim=1)
    return (distance * cells).sum() * world_size() / sum_over_ranks(cells.sum()).clamp(min=1)
