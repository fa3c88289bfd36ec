"""The three random warps of CEM's spatial part, as pure functions from uniform draws to sampling positions.

Every function returns an array of positions (H, W, 2) float32, last axis (x, y): for each output pixel the
place in the input it is read from. Coordinates are normalised, -1 and 1 being the centres of the outermost
pixels (the `align_corners=True` convention of `torch.nn.functional.grid_sample`). Source: method section 2.
"""

from __future__ import annotations

import cv2
import numpy as np

OUTSIDE = -1e10
"""Both coordinates of a position that reads nothing."""

# (x, y), in the order in which the draws move them.
CORNERS = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)], np.float64)
CONTROL_POINTS = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)], np.float64)

HOMOGRAPHY_DRAWS = 2 * len(CORNERS)
TPS_DRAWS = 2 * len(CONTROL_POINTS)
AFFINE_DRAWS = 5
AFFINE_TPS_DRAWS = AFFINE_DRAWS + TPS_DRAWS


def _check_draws(uniform: np.ndarray, count: int) -> np.ndarray:
    uniform = np.asarray(uniform, np.float64)
    assert uniform.shape == (count,), (uniform.shape, (count,))
    return uniform


def _axes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised coordinates of the pixel centres: x (1, W) and y (H, 1), float32."""
    assert height > 0 and width > 0, (height, width)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return x, y


def spread(uniform: np.ndarray, amount: float) -> np.ndarray:
    """Draws from 0..1 mapped to -amount..amount, first all x then all y: (2n,) -> (n, 2) float64."""
    return (2 * np.asarray(uniform, np.float64) - 1).reshape(2, -1).T * amount


def solve_homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The homography that takes four points to four others.

    Args:
        source: Four points (x, y), (4, 2), no three on a line.
        target: Where they go, (4, 2).

    Returns:
        Matrix (3, 3) float64 with element (3, 3) equal to 1.
    """
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append((x, y, 1, 0, 0, 0, -u * x, -u * y))
        rows.append((0, 0, 0, x, y, 1, -v * x, -v * y))
    entries = np.linalg.solve(np.array(rows, np.float64), np.asarray(target, np.float64).reshape(-1))
    return np.append(entries, 1.0).reshape(3, 3)


def homography_grid(uniform: np.ndarray, height: int, width: int, scale: float = 0.333) -> np.ndarray:
    """Sampling positions of the random homography (method section 2).

    Args:
        uniform: Eight draws in 0..1: x of the four corners, then y; corners in the order of `CORNERS`.
        height: Output height in pixels.
        width: Output width in pixels.
        scale: Furthest a corner moves along one axis, normalised (2 is the whole image).

    Returns:
        Positions (H, W, 2) float32, last axis (x, y), normalised.
    """
    moved = CORNERS + spread(_check_draws(uniform, HOMOGRAPHY_DRAWS), scale)
    # The numerators and the denominator are sums of a row term and a column term.
    matrix = solve_homography(CORNERS, moved).astype(np.float32)
    x, y = _axes(height, width)
    denominator = matrix[2, 0] * x + (matrix[2, 1] * y + matrix[2, 2])
    return _interleave([(a * x + (b * y + c)) / denominator for a, b, c in matrix[:2]])


def _tps_kernel(squared: np.ndarray) -> np.ndarray:
    """r^2 log r^2 of squared distances; 0 at distance 0, its limit."""
    return squared * np.log(np.where(squared > 0, squared, 1))


def tps_basis(height: int, width: int) -> np.ndarray:
    """Influence of each control point of the thin-plate spline on each pixel.

    The spline through the control points is linear in their moves: position = pixel + sum_k basis_k move_k.
    This part does not depend on the draws, and is worth keeping for images of one size.

    Returns:
        (9, H, W) float32; at the pixel of control point k the k-th map is 1 and the others are 0.
    """
    count = len(CONTROL_POINTS)
    system = np.zeros((count + 3, count + 3))
    squared = ((CONTROL_POINTS[:, None] - CONTROL_POINTS[None]) ** 2).sum(-1)
    system[:count, :count] = _tps_kernel(squared)
    system[:count, count] = system[count, :count] = 1
    system[:count, count + 1 :] = CONTROL_POINTS
    system[count + 1 :, :count] = CONTROL_POINTS.T
    weights = np.linalg.inv(system)[:, :count]

    x = np.linspace(-1, 1, width)[None, :]
    y = np.linspace(-1, 1, height)[:, None]
    features = [_tps_kernel((x - px) ** 2 + (y - py) ** 2) for px, py in CONTROL_POINTS]
    features += [np.broadcast_to(f, (height, width)) for f in (np.ones((1, 1)), x, y)]
    basis = weights.T @ np.stack(features).reshape(count + 3, -1)
    return np.ascontiguousarray(basis.reshape(count, height, width), np.float32)


def tps_grid(
    uniform: np.ndarray, height: int, width: int, scale: float = 0.333, basis: np.ndarray | None = None
) -> np.ndarray:
    """Sampling positions of the random thin-plate spline (method section 2).

    Args:
        uniform: Eighteen draws in 0..1: x of the nine control points, then y, in the order of
            `CONTROL_POINTS` (x-major).
        height: Output height in pixels.
        width: Output width in pixels.
        scale: Furthest a control point moves along one axis, normalised.
        basis: `tps_basis(height, width)` where it is at hand; computed otherwise.

    Returns:
        Positions (H, W, 2) float32, last axis (x, y), normalised.
    """
    return _interleave(_tps_planes(_check_draws(uniform, TPS_DRAWS), height, width, scale, basis))


def _tps_planes(uniform: np.ndarray, height: int, width: int, scale: float, basis: np.ndarray | None) -> np.ndarray:
    """`tps_grid` with x and y as two planes, (2, H, W) float32: faster to compute with."""
    basis = tps_basis(height, width) if basis is None else basis
    assert basis.shape == (len(CONTROL_POINTS), height, width), (basis.shape, (height, width))
    moves = spread(uniform, scale).astype(np.float32)
    planes = (moves.T @ basis.reshape(len(basis), -1)).reshape(2, height, width)
    x, y = _axes(height, width)
    planes[0] += x
    planes[1] += y
    return planes


def _interleave(planes: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """Two planes (H, W) -> (H, W, 2)."""
    return cv2.merge([planes[0], planes[1]])


def affine_matrix(
    uniform: np.ndarray,
    rotation: float = 0.26,
    zoom: float = 0.45,
    translation: float = 0.25,
) -> np.ndarray:
    """The random affine map: rotation, isotropic scale, translation (method section 2).

    The published map is R(rot) R(sh)^T D R(sh) with D a multiple of the identity, so the shear angle `sh` is
    drawn and cancels; its draw is accepted and not used.

    Args:
        uniform: Five draws in 0..1: rotation, shear, scale, translation in x and in y.
        rotation: Largest angle in radians.
        zoom: Furthest the scale lies from 1.
        translation: Furthest the translation along one axis, normalised.

    Returns:
        Matrix (2, 3) float64 acting on (x, y, 1).
    """
    rot, _, zoom_draw, tx, ty = 2 * _check_draws(uniform, AFFINE_DRAWS) - 1
    angle = rot * rotation
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) * (1 + zoom_draw * zoom)
    return np.column_stack([linear, (tx * translation, ty * translation)])


def affine_tps_grid(
    uniform: np.ndarray,
    height: int,
    width: int,
    scale: float = 0.08,
    rotation: float = 0.26,
    zoom: float = 0.45,
    translation: float = 0.25,
    basis: np.ndarray | None = None,
) -> np.ndarray:
    """Sampling positions of the random affine map followed by a weak spline (method section 2).

    The affine grid has half-pixel centres, and points of it with |x| >= 1 or |y| >= 1 are outside. It is read
    bilinearly at the spline's positions. An affine grid read bilinearly is the affine map itself; what is left
    of the reading is that a position is outside if any point among its taps is, or if the spline is not
    within (-1, 1).

    Args:
        uniform: Twenty-three draws in 0..1: rotation, shear (no effect), scale, translation in x and in y,
            then the spline's eighteen as in `tps_grid`.
        height: Output height in pixels.
        width: Output width in pixels.
        scale: Furthest a control point of the spline moves along one axis, normalised.
        rotation: Largest angle in radians.
        zoom: Furthest the scale lies from 1.
        translation: Furthest the translation along one axis, normalised.
        basis: `tps_basis(height, width)` where it is at hand; computed otherwise.

    Returns:
        Positions (H, W, 2) float32, last axis (x, y), normalised; `OUTSIDE` in both where nothing is read.
    """
    uniform = _check_draws(uniform, AFFINE_TPS_DRAWS)
    # The map from pixel index to position: index i has the half-pixel centre (2 i + 1) / n - 1.
    matrix = affine_matrix(uniform[:AFFINE_DRAWS], rotation, zoom, translation)
    size = np.array((width, height), np.float64)
    linear = matrix[:, :2] * 2 / size
    offset = matrix[:, :2] @ (1 / size - 1) + matrix[:, 2]

    index = _tps_planes(uniform[AFFINE_DRAWS:], height, width, scale, basis)
    inside = (np.abs(index) < 1).all(0)
    index += 1
    index *= ((size - 1) / 2).astype(np.float32)[:, None, None]
    inside &= _taps_within_one(index, linear, offset)
    # A sum: masked assignment takes ten times as long, and -1e10 swallows the position it is added to.
    penalty = np.multiply(~inside, np.float32(OUTSIDE))
    planes = [cv2.addWeighted(index[0], a, index[1], b, c) for (a, b), c in zip(linear, offset, strict=True)]
    return _interleave([plane + penalty for plane in planes])


def _taps_within_one(index: np.ndarray, linear: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Whether an affine map of the pixel grid is within (-1, 1) at all taps of each position.

    Args:
        index: Positions between pixels, (2, H, W) float32, x then y.
        linear: Linear part of the map from pixel index to normalised coordinates, (2, 2).
        offset: Its constant, (2,).

    Returns:
        (H, W) bool.
    """
    low, high = np.floor(index), np.ceil(index)
    inside = np.ones(index.shape[1:], bool)
    for (in_x, in_y), constant in zip(linear, offset, strict=True):
        # Over the taps, a linear function is largest and smallest at the corners that its signs tell.
        x_up, x_down = (high[0], low[0]) if in_x > 0 else (low[0], high[0])
        y_up, y_down = (high[1], low[1]) if in_y > 0 else (low[1], high[1])
        inside &= cv2.addWeighted(x_up, in_x, y_up, in_y, constant) < 1
        inside &= cv2.addWeighted(x_down, in_x, y_down, in_y, constant) > -1
    return inside
