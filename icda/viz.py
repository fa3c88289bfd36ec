"""Pictures of what goes into training and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from torch import Tensor

from icda.data.classes import ClassSet

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


def overlay(image: np.ndarray, labels: np.ndarray, classes: ClassSet, opacity: float = 0.5) -> np.ndarray:
    """A prediction's colours over its picture.

    Args:
        image: RGB (H, W, 3) uint8.
        labels: Train ids (H, W) uint8; where one is no class, the picture shows through as it is.
        classes: Gives the colours.
        opacity: Of the colours, from 0 (the picture alone) to 1 (the colours alone).

    Returns:
        RGB (H, W, 3) uint8.
    """
    assert image.shape[:2] == labels.shape, (image.shape, labels.shape)
    blended = cv2.addWeighted(classes.colorize(labels), opacity, image, 1 - opacity, 0)
    unknown = labels >= len(classes)
    if unknown.any():
        blended[unknown] = image[unknown]
    return blended


def legend(classes: ClassSet, row: int = 26) -> np.ndarray:
    """The colour of every class beside its name.

    Args:
        classes: The classes.
        row: Height of a line, in pixels.

    Returns:
        RGB (len(classes) * row, W, 3) uint8 on white.
    """
    font, scale, border = cv2.FONT_HERSHEY_SIMPLEX, row / 44, row // 6
    widest = max(cv2.getTextSize(name, font, scale, 1)[0][0] for name in classes.names)
    picture = np.full((len(classes) * row, 2 * row + widest + 2 * border, 3), 255, np.uint8)
    for i, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        picture[i * row + border : (i + 1) * row - border, border : 2 * row - border] = color
        bottom = i * row + round(0.68 * row)
        cv2.putText(picture, name, (2 * row, bottom), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return picture
