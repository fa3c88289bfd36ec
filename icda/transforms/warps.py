"""The three random warps of CEM's spatial part, as pure functions from uniform draws to sampling positions.

Every function returns an array of positions (H, W, 2) float32, last axis (x, y): for each output pixel the
place in the input it is read from. Coordinates are normalised, -1 and 1 being the centres of the outermost
pixels (the `align_corners=True` convention of `torch.nn.functional.grid_sample`). Source: method section 2.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from icda.transforms.arrays import set_where

OUTSIDE = -1e10
"""Both coordinates of a position that reads nothing."""

# (x, y), in the order in which the draws move them.
CORNERS = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)], np.float64)
CONTROL_POINTS = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)], np.float64)

HOMOGRAPHY_DRAWS = 2 * len(CORNERS)
TPS_DRAWS = 2 * len(CONTROL_POINTS)
AFFINE_DRAWS = 5
AFFINE_TPS_DRAWS = AFFINE_DRAWS + TPS_DRAWS

_SPLINE_RANK = 32
_SAMPLED_COLUMNS = 32
_CHUNK = 512  # columns for which the spline's kernels are computed at a time
_BOTH = np.array((True, True)).view(np.uint16)[0]


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
        scale: Furthest a corner moves along one axis, normalised (2 is the whole image); below 0.5.

    Returns:
        Positions (H, W, 2) float32, last axis (x, y), normalised.
    """
    moved = CORNERS + spread(_check_draws(uniform, HOMOGRAPHY_DRAWS), scale)
    matrix = solve_homography(CORNERS, moved)
    # Seen from the corner of the smallest denominator a position is moved corner + (a u + b v) / (c u + d v + e)
    # with u, v, c, d, e >= 0: nothing cancels in the denominator, however little of it is left there.
    denominators = CORNERS @ matrix[2, :2] + 1
    corner = denominators.argmin()
    inward = -CORNERS[corner]
    x, y = _axes(height, width)
    u, v = 1 + x * np.float32(inward[0]), 1 + y * np.float32(inward[1])
    c, d = (matrix[2, :2] * inward).astype(np.float32)
    smallest = np.float32(max(denominators[corner], np.finfo(np.float32).tiny))
    denominator = c * u + (d * v + smallest)
    planes = []
    for row, start in zip(matrix[:2, :2], moved[corner], strict=True):
        a, b = ((row - start * matrix[2, :2]) * inward).astype(np.float32)
        plane = a * u + b * v
        plane /= denominator
        plane += np.float32(start)
        planes.append(plane)
    return cv2.merge(planes)


def _tps_kernel(squared: np.ndarray) -> np.ndarray:
    """r^2 log r^2 of squared distances; 0 at distance 0, its limit."""
    return squared * np.log(np.where(squared > 0, squared, 1))


class SplineBasis(NamedTuple):
    """Influence of each control point of the thin-plate spline on each pixel, as a product of two matrices.

    The spline through the control points is linear in their moves: position = pixel + sum_k influence_k move_k,
    where influence k is 1 at control point k and 0 at the others. The influences are smooth functions of x and y,
    so a few functions of y times functions of x add up to them: sum_r rows[y, r] columns[k, r, x].

    Args:
        rows: (H, R) float32; column 0 is 1, column 1 is y.
        columns: (9, R, W) float32.
    """

    rows: np.ndarray
    columns: np.ndarray


def tps_basis(height: int, width: int) -> SplineBasis:
    """The part of the thin-plate spline that does not depend on the draws; worth keeping for images of one size.

    Moves of up to 1 give positions that are off by 4e-6 (normalised) at most, in float64.
    """
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
    weights = _tps_weights()

    def influences(columns: np.ndarray) -> np.ndarray:
        """(H, n, 9) float64 for some columns, (n,)."""
        return np.einsum("fhn,fk->hnk", _tps_features(columns, y), weights, optimize=True)

    # A sample of columns tells the functions of y; denser near control points, where the kernel is least smooth.
    half = np.linspace(0, 1, _SAMPLED_COLUMNS // 2 + 1)
    half = half**3 / (half**3 + (1 - half) ** 3)
    places = np.unique(np.rint(np.append(half - 1, half) * ((width - 1) / 2) + (width - 1) / 2).astype(int))
    line = np.stack([np.ones(height), y], 1)
    sample = influences(x[places]).reshape(height, -1)
    sample -= line @ (np.linalg.pinv(line) @ sample)
    functions, sizes, _ = np.linalg.svd(sample, full_matrices=False)
    rows = np.hstack([line, functions[:, : _SPLINE_RANK - 2][:, sizes[: _SPLINE_RANK - 2] > 1e-9]])
    inverse = np.linalg.pinv(rows)
    columns = np.empty((len(CONTROL_POINTS), rows.shape[1], width), np.float32)
    for start in range(0, width, _CHUNK):
        part = influences(x[start : start + _CHUNK])
        columns[..., start : start + _CHUNK] = np.tensordot(inverse, part, 1).transpose(2, 0, 1)
    return SplineBasis(rows.astype(np.float32), columns)


def _tps_weights() -> np.ndarray:
    """Weights of the nine kernels and of 1, x, y in each control point's influence, (12, 9) float64."""
    count = len(CONTROL_POINTS)
    system = np.zeros((count + 3, count + 3))
    squared = ((CONTROL_POINTS[:, None] - CONTROL_POINTS[None]) ** 2).sum(-1)
    system[:count, :count] = _tps_kernel(squared)
    system[:count, count] = system[count, :count] = 1
    system[:count, count + 1 :] = CONTROL_POINTS
    system[count + 1 :, :count] = CONTROL_POINTS.T
    return np.linalg.inv(system)[:, :count]


def _tps_features(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The nine kernels and 1, x, y on a grid of columns (n,) and rows (H,): (12, H, n) float64."""
    x, y = x[None, :], y[:, None]
    features = [_tps_kernel((x - px) ** 2 + (y - py) ** 2) for px, py in CONTROL_POINTS]
    return np.stack(features + [np.broadcast_to(f, (y.size, x.size)) for f in (np.ones((1, 1)), x, y)])


def tps_grid(
    uniform: np.ndarray, height: int, width: int, scale: float = 0.333, basis: SplineBasis | None = None
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
    basis = tps_basis(height, width) if basis is None else basis
    count, rank, columns = basis.columns.shape
    assert (len(basis.rows), columns) == (height, width), (basis.rows.shape, basis.columns.shape, (height, width))
    moves = spread(_check_draws(uniform, TPS_DRAWS), scale).astype(np.float32)
    moved = (moves.T @ basis.columns.reshape(count, -1)).reshape(2, rank, width)
    moved[0, 0] += np.linspace(-1, 1, width, dtype=np.float32)  # the pixel itself: x times 1 ...
    moved[1, 1] += 1  # ... and 1 times y
    return (basis.rows @ cv2.merge([moved[0], moved[1]]).reshape(rank, -1)).reshape(height, width, 2)


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
    basis: SplineBasis | None = None,
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

    spline = tps_grid(uniform[AFFINE_DRAWS:], height, width, scale, basis)
    half = (size - 1) / 2  # normalised to pixel index: (position + 1) * half
    position = cv2.transform(spline, np.column_stack([linear * half, linear @ half + offset]))
    taps = np.floor(cv2.transform(spline, np.column_stack([np.diag(half), half])))
    taps = cv2.transform(taps, _tap_bounds(linear, offset))
    inside = np.maximum(np.abs(spline, out=spline), np.abs(taps, out=taps), out=taps) < 1
    outside = inside.view(np.uint16)[..., 0] != _BOTH  # much quicker than asking along an axis of two
    set_where(position, outside.view(np.uint8), OUTSIDE)
    return position


def _tap_bounds(linear: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The test whether an affine map of the pixel grid is within (-1, 1) at all four taps of a position.

    Args:
        linear: Linear part of the map from pixel index to normalised coordinates, (2, 2).
        offset: Its constant, (2,).

    Returns:
        Affine map (2, 3) of the tap of the lowest index; both its values are within (-1, 1) if all taps are.
    """
    # From the lowest tap to the others, the map grows by `up` at most and falls by `down` at most.
    up, down = np.maximum(linear, 0).sum(1), np.minimum(linear, 0).sum(1)
    room = 1 - (up - down) / 2
    bounds = np.column_stack([linear, offset + (up + down) / 2]) / np.where(room > 0, room, 1)[:, None]
    never = np.array((0, 0, 2))
    return np.where((room > 0)[:, None], bounds, never)
