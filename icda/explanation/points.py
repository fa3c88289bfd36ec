"""Which cells of a night image ask: given pixels, or some chosen by what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from icda.errors import UserError


def given_points(points: Sequence[Sequence[int]], size: tuple[int, int]) -> np.ndarray:
    """Pixels that a person names.

    Args:
        points: Each (row, column), from 0, in pixels of the night picture.
        size: Height and width of the night picture.

    Returns:
        (Q, 2) int64.

    Raises:
        UserError: If there are none, or one is no pixel of the picture.
    """
    if not points:
        raise UserError("points=[] names no point; give points=[[row,column],...], or null to have some chosen")
    for point in points:
        if len(point) != 2:
            raise UserError(f"points: {list(point)} is no point; give each as [row,column] of the night picture")
        if not all(0 <= value < side for value, side in zip(point, size, strict=True)):
            raise UserError(
                f"points: {list(point)} lies outside of the night picture, which is {size[0]} x {size[1]} (height x "
                f"width); rows are 0 to {size[0] - 1}, columns 0 to {size[1] - 1}"
            )
    return np.array(points, np.int64)


def chosen_points(labels: np.ndarray, count: int) -> np.ndarray:
    """Pixels of different predicted classes, spread over the picture; the same for the same prediction.

    Each class offers the pixel that lies deepest inside one of its regions. The first is that of the largest class,
    then always the one that is farthest from those before it. Where there are fewer classes than points, the rest are
    the pixels farthest from all before.

    Args:
        labels: Predicted train ids, (H, W) integer.
        count: How many points.

    Returns:
        (count, 2) int64, (row, column); fewer only if the picture has fewer pixels.
    """
    ids, areas = np.unique(labels, return_counts=True)
    offered = [_deepest(labels == i) for i in ids]
    chosen = [offered.pop(int(np.argmax(areas)))]
    while offered and len(chosen) < count:
        chosen.append(offered.pop(_farthest(np.array(offered), chosen)))
    if len(chosen) < count:
        pixels = np.stack(np.unravel_index(np.arange(labels.size), labels.shape), -1)
        while len(chosen) < min(count, labels.size):
            chosen.append(tuple(pixels[_farthest(pixels, chosen)].tolist()))
    return np.array(chosen[:count], np.int64)


def _deepest(mask: np.ndarray) -> tuple[int, int]:
    """The pixel of a mask (H, W) bool that is farthest from what is outside of it, and from the picture's border."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return int(row), int(column)


def _farthest(candidates: np.ndarray, chosen: list[tuple[int, int]]) -> int:
    """Which of candidates (N, 2) has the largest distance to the nearest of those chosen; of equal ones the first."""
    nearest = np.min([np.square(candidates - place).sum(1) for place in chosen], axis=0)
    return int(np.argmax(nearest))
