"""Drawing what DAR looks at (``icda.explanation.dar_view``), as RGB arrays (H, W, 3) uint8.

A cell of a grid of n cells covers the share 1 / n of the picture, as where logits are resized (method section 4):
position u, in cells from the centre of the first, lies at (u + 0.5) / n of the picture's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from icda.explanation.dar_view import DeformableView, LocalView, StageView
from icda.viz import contact_sheet, false_colors

QUERY, EDGE = (255, 45, 45), (255, 255, 255)
"""Colours of the mark of a query, and of its edge."""
_ARROW = (255, 214, 10)
_ACROSS = 5  # panels beside each other
_DIM = 60  # mean level to which brighter pictures are darkened below dots, of 0 to 255
_SHIFT = 4  # binary digits of a pixel's fraction in OpenCV's coordinates
_AROUND = 1  # windows shown on each side of a query's own
_MOST = 0.45  # radius of the largest dot, as a share of a cell's side
_LEAST = 2.5  # the least that this may be, in pixels


def to_pixels(positions: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Positions on a grid as positions in a picture.

    Args:
        positions: (..., 2), (row, column) in cells from the centre of the first.
        grid: Height and width of the grid.
        size: Height and width of the picture.

    Returns:
        (..., 2) float64, (row, column) in pixels from the centre of the first.

    >>> to_pixels(np.array([0, 0]), (4, 8), (64, 128)).tolist()  # the middle of a cell of 16 x 16 pixels
    [7.5, 7.5]
    """
    return (np.asarray(positions, np.float64) + 0.5) / grid * size - 0.5


def effective(weights: np.ndarray) -> float:
    """Over how many samples weights spread: the exponential of their entropy, 1 to their number.

    Args:
        weights: Any shape, adding up to 1.

    >>> effective(np.full((2, 2), 0.25)), effective(np.array([1.0, 0.0]))
    (4.0, 1.0)
    """
    some = weights[weights > 0].astype(np.float64)
    return float(np.exp(-(some * np.log(some)).sum()))


def attention_figure(night: np.ndarray, day: np.ndarray, stage: StageView, query: int) -> np.ndarray:
    """What a query of a deformable layer looks at: the mean of the heads, then each head; night above, day below.

    A dot lies where a group of a sample is read. Its area and its brightness tell the sample's weight, compared with
    the largest of the panel.

    Args:
        night: The night picture, (H, W, 3) uint8.
        day: The day picture, of the same size.
        stage: What DAR looked at.
        query: Number of the query.
    """
    view = stage.deformable
    panels = _heads(view.weights[query])
    columns = {}
    for name, weights in panels.items():
        columns[name] = [
            marked(dots(picture, view, weights), stage.queries[query], stage.size) for picture in (night, day)
        ]
    return wrapped(columns)


def local_figure(night: np.ndarray, stage: StageView, query: int) -> np.ndarray:
    """What a query of a local layer looks at: weights as colours over its window of the night picture, by head.

    Args:
        night: The night picture, (H, W, 3) uint8.
        stage: What DAR looked at.
        query: Number of the query.
    """
    view = stage.local
    columns = {
        name: [_window(night, view, weights, stage, query)] for name, weights in _heads(view.weights[query]).items()
    }
    return wrapped(columns)


def offset_figure(night: np.ndarray, day: np.ndarray, stage: StageView) -> np.ndarray:
    """Where each group of a deformable layer reads: a line from the reference point of each cell to its position.

    Args:
        night: The night picture, (H, W, 3) uint8.
        day: The day picture, of the same size.
        stage: What DAR looked at.
    """
    view = stage.deformable
    return wrapped(
        {
            f"group {i + 1}": [_arrows(picture, view.references, positions, stage.size) for picture in (night, day)]
            for i, positions in enumerate(view.positions)
        }
    )


def dots(picture: np.ndarray, view: DeformableView, weights: np.ndarray) -> np.ndarray:
    """A darkened picture with a dot wherever the samples are read, the strongest on top.

    Args:
        picture: (H, W, 3) uint8.
        view: Tells the positions.
        weights: Of the samples, (h, w) float.
    """
    picture, grid = dimmed(picture), weights.shape
    share = (weights / weights.max()).ravel()
    colors = false_colors(share[None], 0, 1)[0].tolist()
    most = max(_LEAST, _MOST * min(side / cells for side, cells in zip(picture.shape[:2], grid, strict=True)))
    places = to_pixels(view.positions, grid, picture.shape[:2]).reshape(len(view.positions), -1, 2)
    for sample in np.argsort(share, kind="stable"):
        radius = round(most * float(share[sample]) ** 0.5 * 2**_SHIFT)
        for place in places[:, sample]:
            cv2.circle(picture, _fixed(place), radius, colors[sample], cv2.FILLED, cv2.LINE_AA, _SHIFT)
    return picture


def marked(picture: np.ndarray, cell: Sequence[int], grid: tuple[int, int], text: str = "") -> np.ndarray:
    """A copy of a picture with the outline of a cell, and text beside it.

    Args:
        picture: (H, W, 3) uint8.
        cell: (row, column).
        grid: Height and width of the grid.
        text: Such as the query's number.
    """
    picture = picture.copy()
    corners = [_fixed(to_pixels(np.add(cell, step), grid, picture.shape[:2])) for step in (-0.5, 0.5)]
    cv2.rectangle(picture, *corners, EDGE, 3, cv2.LINE_AA, _SHIFT)
    cv2.rectangle(picture, *corners, QUERY, 1, cv2.LINE_AA, _SHIFT)
    if text:
        height, width = picture.shape[:2]
        (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 2)
        (left, _), (right, bottom) = ((x >> _SHIFT, y >> _SHIFT) for x, y in corners)
        beside = right + 4 if right + wide + 6 < width else max(0, left - wide - 6)
        place = (beside, min(max(bottom, high + 4), height - 4))
        for color, thickness in ((EDGE, 4), (QUERY, 2)):
            cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, color, thickness, cv2.LINE_AA)
    return picture


def dimmed(picture: np.ndarray) -> np.ndarray:
    """A copy on which dots can be seen: darker if it was bright; a night picture may be dark enough as it is."""
    return cv2.convertScaleAbs(picture, alpha=min(1, _DIM / max(1, picture.mean())))


def wrapped(columns: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """A contact sheet of no more than five columns beside each other, further ones below.

    Args:
        columns: As for ``icda.viz.contact_sheet``; all pictures of one size.
    """
    names = list(columns)
    across = -(-len(names) // -(-len(names) // _ACROSS))
    tile = next(iter(columns.values()))[0].shape[:2]
    sheets = [
        contact_sheet({name: columns[name] for name in names[start : start + across]}, tile)
        for start in range(0, len(names), across)
    ]
    widest = max(sheet.shape[1] for sheet in sheets)
    return np.vstack([np.pad(s, ((0, 0), (0, widest - s.shape[1]), (0, 0)), constant_values=255) for s in sheets])


def _heads(weights: np.ndarray) -> dict[str, np.ndarray]:
    """The mean over the heads, then each, by name, of weights (heads, ...)."""
    return {"mean of the heads": weights.mean(0), **{f"head {i + 1}": part for i, part in enumerate(weights)}}


def _fixed(place: np.ndarray) -> tuple[int, int]:
    """A (row, column) in pixels as OpenCV's (x, y) with binary fractions."""
    y, x = np.rint(np.asarray(place) * 2**_SHIFT).astype(int).tolist()
    return x, y


def _arrows(picture: np.ndarray, references: np.ndarray, positions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A darkened picture with a line from each reference to its position, both (h, w, 2), and a dot at its end."""
    picture = dimmed(picture)
    size = picture.shape[:2]
    starts, ends = (to_pixels(places, grid, size).reshape(-1, 2) for places in (references, positions))
    for start, end in zip(starts, ends, strict=True):
        cv2.line(picture, _fixed(start), _fixed(end), _ARROW, 1, cv2.LINE_AA, _SHIFT)
        cv2.circle(picture, _fixed(end), round(1.5 * 2**_SHIFT), _ARROW, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    return picture


def _window(night: np.ndarray, view: LocalView, weights: np.ndarray, stage: StageView, query: int) -> np.ndarray:
    """The surroundings of a query's window, enlarged, the cells of the window coloured by weight."""
    side, grid = len(weights), np.array(stage.size)
    corner = view.corners[query]
    first, last = np.maximum(corner - _AROUND * side, 0), np.minimum(corner + (1 + _AROUND) * side, grid)
    top, left = np.floor(first / grid * night.shape[:2]).astype(int)
    bottom, right = np.ceil(last / grid * night.shape[:2]).astype(int)
    shown = last - first
    pixels = max(1, min(night.shape[:2]) // int(shown.max()))  # of a cell
    part = cv2.resize(night[top:bottom, left:right], (shown * pixels)[::-1].tolist(), interpolation=cv2.INTER_LINEAR)
    inside = np.minimum(side, grid - corner)
    colors = false_colors(weights[: inside[0], : inside[1]], 0, float(weights.max()))
    y, x = (corner - first) * pixels
    area = part[y : y + inside[0] * pixels, x : x + inside[1] * pixels]
    tint = np.kron(colors, np.ones((pixels, pixels, 1), np.uint8))
    area[:] = cv2.addWeighted(tint, 0.65, area, 0.35, 0)
    return marked(part, stage.queries[query] - first, tuple(shown.tolist()))
