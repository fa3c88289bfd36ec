"""Pictures of what goes into a network and what comes out: NumPy arrays in, RGB arrays (H, W, 3) uint8 out.

Importing this module loads no PyTorch. ``icda.report.html.png`` makes PNG files of the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from icda.data.classes import ClassSet

if TYPE_CHECKING:
    from torch import Tensor

HEADING = 22  # height of the line above a column, in pixels
GAP = 3  # pixels between pictures
RIGHT, WRONG = (0, 114, 178), (230, 159, 0)
"""Blue and orange of ``error_map``, which people who see few colours can tell apart."""
MISSING = (127, 127, 127)
"""Grey of ``false_colors`` for what is no number."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DIVERGING = ((33, 102, 172), (247, 247, 247), (178, 24, 43))  # blue, white, red
_LEVELS = 256
_CELL = 38  # side of a cell of a heat map, in pixels
_LEGIBLE = 160  # width in pixels from which a name fits above a picture
_BAR = 14  # width of the bar of colours beside a heat map, in pixels


def to_image(normalized: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
    """A normalised image as a picture.

    Args:
        normalized: (3, H, W) float, on any device.
        mean: (3,) of the normalisation.
        std: (3,) of the normalisation.

    Returns:
        RGB (H, W, 3) uint8; what lies outside black and white is clipped.

    >>> import torch
    >>> to_image(torch.zeros(3, 1, 1), torch.full((3,), 0.2), torch.ones(3)).tolist()
    [[[51, 51, 51]]]
    """
    image = normalized.detach().float().cpu() * std.cpu()[:, None, None] + mean.cpu()[:, None, None]
    return (image.clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def contact_sheet(columns: Mapping[str, Sequence[np.ndarray]], tile: tuple[int, int] | None = None) -> np.ndarray:
    """Pictures in named columns, one row a sample.

    Args:
        columns: Name of a column -> its RGB pictures (H, W, 3) uint8, top to bottom; as many in every column.
        tile: Height and width that every picture is resized to; None takes the first picture's, doubled until it is
            at least 160 wide, so that its heading fits.

    Returns:
        RGB (H, W, 3) uint8 on white.

    >>> picture = np.zeros((90, 160, 3), np.uint8)
    >>> contact_sheet({"image": [picture] * 2, "label": [picture] * 2}).shape == (22 + 2 * 93, 2 * 163 - 3, 3)
    True
    """
    if tile is None:
        height, width = next(iter(columns.values()))[0].shape[:2]
        factor = -(-_LEGIBLE // width)
        tile = height * factor, width * factor
    rows = len(next(iter(columns.values())))
    sheet = np.full((HEADING + rows * (tile[0] + GAP), len(columns) * (tile[1] + GAP) - GAP, 3), 255, dtype=np.uint8)
    for j, (name, pictures) in enumerate(columns.items()):
        left = j * (tile[1] + GAP)
        size = 0.5 * min(1, (tile[1] - 4) / max(1, _widest([name], 0.5)))  # no longer than the picture is wide
        _write(sheet, name, (left + 2, HEADING - 7), size)
        for i, picture in enumerate(pictures):
            top = HEADING + i * (tile[0] + GAP)
            shrinks = picture.shape[0] > tile[0]
            fitted = cv2.resize(picture, tile[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
            sheet[top : top + tile[0], left : left + tile[1]] = fitted
    return sheet


def side_by_side(pictures: Mapping[str, np.ndarray], width: int | None = None) -> np.ndarray:
    """Pictures of one shape in a row, each below its name.

    Args:
        pictures: Name -> RGB (H, W, 3) uint8.
        width: The most pixels that the whole may be wide (but for one, see below); pictures are made smaller where
            they need more. None leaves them as they are, but for small ones, which grow as in ``contact_sheet``.

    Returns:
        RGB uint8 on white. Of even height and width, as codecs of videos want them.

    >>> picture = np.zeros((100, 200, 3), np.uint8)
    >>> side_by_side({"night": picture, "overlay": picture}).shape
    (122, 404, 3)
    >>> side_by_side({"night": picture, "overlay": picture}, width=203).shape
    (72, 204, 3)
    """
    height, own = next(iter(pictures.values())).shape[:2]
    each = own * -(-_LEGIBLE // own)
    if width is not None:
        each = max(1, min(each, (width - GAP * (len(pictures) - 1)) // len(pictures)))
    tile = (max(1, round(height * each / own)), each)
    sheet = contact_sheet({name: [picture] for name, picture in pictures.items()}, tile)[:-GAP]
    odd = [(0, side % 2) for side in sheet.shape[:2]]
    return np.pad(sheet, (*odd, (0, 0)), constant_values=_LEVELS - 1)


def caption(picture: np.ndarray, text: str) -> np.ndarray:
    """A copy of a picture with a line in its lower left corner, white on black.

    Args:
        picture: RGB (H, W, 3) uint8.
        text: The line; what does not fit is cut off.

    >>> written = caption(np.full((40, 90, 3), 200, np.uint8), "seed 7")
    >>> written.shape, bool((written[:15] == 200).all()), bool((written[-2:, :20] < 100).all())
    ((40, 90, 3), True, True)
    """
    picture = picture.copy()
    (width, height), base = cv2.getTextSize(text, _FONT, 0.42, 1)
    top = max(0, len(picture) - height - base - 4)
    picture[top:, : width + 6] = 0
    _write(picture, text, (3, len(picture) - base - 1), 0.42, (255, 255, 255))
    return picture


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A photograph at another size: smooth where it grows, the mean of what falls together where it shrinks.

    Args:
        picture: RGB (H, W, 3) uint8.
        size: Height and width wanted.

    Returns:
        RGB uint8 of that height and width.

    >>> resized(np.array([[[0, 0, 0], [100, 100, 100]]], np.uint8), (1, 1)).tolist()
    [[[50, 50, 50]]]
    """
    smaller = picture.shape[0] * picture.shape[1] > size[0] * size[1]
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def overlay(image: np.ndarray, labels: np.ndarray, classes: ClassSet, opacity: float = 0.5) -> np.ndarray:
    """A prediction's colours over its picture.

    Args:
        image: RGB (H, W, 3) uint8.
        labels: Train ids (H, W) uint8; where one is no class, the picture shows through as it is.
        classes: Gives the colours.
        opacity: Of the colours, from 0 (the picture alone) to 1 (the colours alone).

    Returns:
        RGB (H, W, 3) uint8.

    >>> from icda.data.classes import CITYSCAPES
    >>> image = np.full((1, 2, 3), 100, np.uint8)
    >>> overlay(image, np.array([[0, 255]], np.uint8), CITYSCAPES).tolist()  # road is (128, 64, 128)
    [[[114, 82, 114], [100, 100, 100]]]
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

    >>> from icda.data.classes import CITYSCAPES
    >>> legend(CITYSCAPES, row=26)[13, 20].tolist()  # the first line is that of road
    [128, 64, 128]
    """
    scale, border = row / 44, row // 6
    widest = _widest(classes.names, scale)
    picture = np.full((len(classes) * row, 2 * row + widest + 2 * border, 3), 255, np.uint8)
    for i, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        picture[i * row + border : (i + 1) * row - border, border : 2 * row - border] = color
        _write(picture, name, (2 * row, i * row + round(0.68 * row)), scale)
    return picture


def error_map(labels: np.ndarray, truth: np.ndarray, classes: ClassSet) -> np.ndarray:
    """Where a prediction is right (blue), wrong (orange), or cannot be judged for want of a label (black).

    Args:
        labels: Predicted train ids (H, W) uint8.
        truth: True train ids (H, W) uint8.
        classes: The label space.

    Returns:
        RGB (H, W, 3) uint8.

    >>> from icda.data.classes import CITYSCAPES
    >>> error_map(np.array([[0, 1, 2]]), np.array([[0, 2, 255]]), CITYSCAPES).tolist()
    [[[0, 114, 178], [230, 159, 0], [0, 0, 0]]]
    """
    assert labels.shape == truth.shape, (labels.shape, truth.shape)
    right = (labels == truth)[..., None]
    return np.where(right, RIGHT, WRONG).astype(np.uint8) * (truth < len(classes))[..., None]


def confidence_map(confidence: np.ndarray) -> np.ndarray:
    """Probabilities as colours from dark violet (0) over green to yellow (1), as ``false_colors`` gives them.

    Args:
        confidence: (H, W) float, 0..1.

    Returns:
        RGB (H, W, 3) uint8.

    >>> confidence_map(np.array([[0.0, 1.0]])).tolist()
    [[[68, 1, 84], [253, 231, 37]]]
    """
    return false_colors(confidence, 0, 1)


def false_colors(values: np.ndarray, low: float, high: float, diverging: bool = False) -> np.ndarray:
    """Numbers as colours that people who see few colours can order, too.

    Args:
        values: (H, W) float; what lies outside ``low`` and ``high`` is clipped.
        low: Gets the first colour.
        high: Gets the last colour, above ``low``.
        diverging: False for viridis, dark violet to yellow, brighter for more; True for blue over white to red, whose
            middle is white.

    Returns:
        RGB (H, W, 3) uint8; ``MISSING`` for what is not a number.

    >>> false_colors(np.array([[-1.0, 0.0, 1.0, np.nan]]), -1, 1, diverging=True).tolist()
    [[[33, 102, 172], [247, 247, 247], [178, 24, 43], [127, 127, 127]]]
    """
    assert low < high, (low, high)
    missing = np.isnan(values)
    # An odd number of levels, of which one is the middle.
    span = _LEVELS - 2 if diverging else _LEVELS - 1
    share = np.clip((np.where(missing, low, values) - low) / (high - low), 0, 1)
    levels = np.rint(share * span).astype(np.uint8)
    if diverging:
        places, stops = np.linspace(0, 1, span + 1), np.linspace(0, 1, len(_DIVERGING))
        table = np.stack([np.interp(places, stops, channel) for channel in zip(*_DIVERGING, strict=True)], -1)
        colors = np.rint(table).astype(np.uint8)[levels]
    else:
        colors = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    colors[missing] = MISSING
    return colors


def heat_map(
    matrix: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    low: float = 0.0,
    high: float = 1.0,
    diverging: bool = False,
) -> np.ndarray:
    """A matrix as coloured cells with their numbers, the names of its rows and columns, and a bar of the colours.

    Args:
        matrix: (R, C) float; cells that are not a number are grey.
        rows: R names.
        columns: C names.
        low: See ``false_colors``.
        high: See ``false_colors``.
        diverging: See ``false_colors``.

    Returns:
        RGB (H, W, 3) uint8 on white.

    >>> picture = heat_map(np.eye(2), ["sky", "road"], ["sky", "road"])
    >>> [bool((picture == color).all(-1).any()) for color in ((68, 1, 84), (253, 231, 37))]
    [True, True]
    """
    assert matrix.shape == (len(rows), len(columns)), (matrix.shape, len(rows), len(columns))
    size, border = 0.45, 10
    left, top = _widest(rows, size) + 2 * border, _widest(columns, size) + 2 * border
    height, width = (count * _CELL for count in matrix.shape)
    sheet = np.full((top + height + border, left + width + _BAR + 7 * border, 3), 255, np.uint8)
    cells = np.kron(false_colors(matrix, low, high, diverging), np.ones((_CELL, _CELL, 1), np.uint8))
    sheet[top : top + height, left : left + width] = cells
    for i, name in enumerate(rows):
        wide = cv2.getTextSize(name, _FONT, size, 1)[0][0]
        _write(sheet, name, (left - border // 2 - wide, top + i * _CELL + round(0.62 * _CELL)), size)
    strip = np.full((width, top, 3), 255, np.uint8)  # the columns' names, on their side
    for i, name in enumerate(columns):
        _write(strip, name, (border // 2, i * _CELL + round(0.62 * _CELL)), size)
    sheet[:top, left : left + width] = cv2.rotate(strip, cv2.ROTATE_90_COUNTERCLOCKWISE)
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            _write_number(sheet, value, left + j * _CELL, top + i * _CELL)
    _draw_bar(sheet[top : top + height, left + width + 2 * border :], low, high, diverging)
    return sheet


def _draw_bar(place: np.ndarray, low: float, high: float, diverging: bool) -> None:
    """The colours from high (at the top) to low, with both numbers, into a part of a picture."""
    bar = false_colors(np.linspace(high, low, len(place))[:, None], low, high, diverging)
    place[:, :_BAR] = bar
    for value, bottom in ((high, 12), (low, len(place) - 2)):
        _write(place, f"{value:g}", (_BAR + 5, bottom), 0.42)


def _write_number(sheet: np.ndarray, value: float, left: int, top: int) -> None:
    """A number in a cell, black on bright and white on dark."""
    text, size = f"{value:.2f}", 0.34
    (width, height), _ = cv2.getTextSize(text, _FONT, size, 1)
    bright = sheet[top + 2, left + 2] @ np.array((0.299, 0.587, 0.114)) > _LEVELS / 2
    place = (left + (_CELL - width) // 2, top + (_CELL + height) // 2)
    _write(sheet, text, place, size, (0, 0, 0) if bright else (255, 255, 255))


def _write(
    sheet: np.ndarray, text: str, place: tuple[int, int], size: float, color: tuple[int, int, int] = (0, 0, 0)
) -> None:
    """A line of text whose lower left corner is ``place`` (x, y)."""
    # OpenCV draws into contiguous arrays alone.
    area = sheet if sheet.flags.c_contiguous else np.ascontiguousarray(sheet)
    cv2.putText(area, text, place, _FONT, size, color, 1, cv2.LINE_AA)
    if area is not sheet:
        sheet[:] = area


def _widest(names: Sequence[str], size: float) -> int:
    """Pixels that the longest of some lines takes."""
    return max(cv2.getTextSize(name, _FONT, size, 1)[0][0] for name in names)
