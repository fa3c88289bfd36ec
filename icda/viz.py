"""Pictures of what goes into training and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from torch import Tensor

HEADING = 22  # height of the line above a column, in pixels
GAP = 3  # pixels between pictures


def to_image(normalized: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
    """A normalised image (3, H, W) float as RGB (H, W, 3) uint8."""
    image = normalized.detach().float().cpu() * std.cpu()[:, None, None] + mean.cpu()[:, None, None]
    return (image.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def contact_sheet(columns: Mapping[str, Sequence[np.ndarray]], tile: tuple[int, int] | None = None) -> np.ndarray:
    """Pictures in named columns, one row a sample.

    Args:
        columns: Name of a column -> its RGB pictures (H, W, 3) uint8, top to bottom; as many in every column.
        tile: Height and width that every picture is resized to; None takes the first picture's, doubled until it is
            at least 160 wide, so that its heading fits.

    Returns:
        RGB (rows, columns, 3) uint8 on white.
    """
    if tile is None:
        height, width = next(iter(columns.values()))[0].shape[:2]
        factor = -(-160 // width)
        tile = height * factor, width * factor
    rows = len(next(iter(columns.values())))
    sheet = np.full((HEADING + rows * (tile[0] + GAP), len(columns) * (tile[1] + GAP) - GAP, 3), 255, dtype=np.uint8)
    for j, (name, pictures) in enumerate(columns.items()):
        left = j * (tile[1] + GAP)
        cv2.putText(sheet, name, (left + 2, HEADING - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        for i, picture in enumerate(pictures):
            top = HEADING + i * (tile[0] + GAP)
            shrinks = picture.shape[0] > tile[0]
            resized = cv2.resize(picture, tile[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
            sheet[top : top + tile[0], left : left + tile[1]] = resized
    return sheet
