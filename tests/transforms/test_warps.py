"""The warps against reference arrays, OpenCV, and their own definitions."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RBFInterpolator

from icda.transforms import warps

REFERENCE = Path(__file__).parents[1] / "reference" / "geometry.npz"
SIZE = (24, 32)
WARPS = [
    (warps.homography_grid, warps.HOMOGRAPHY_DRAWS),
    (warps.tps_grid, warps.TPS_DRAWS),
    (warps.affine_tps_grid, warps.AFFINE_TPS_DRAWS),
]


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as archive:
        return dict(archive)


def identity(height: int, width: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height)), -1)


def test_homography_agrees_with_the_reference(reference: dict[str, np.ndarray]) -> None:
    moved = warps.CORNERS + warps.spread(reference["hom_uniform"], 0.333)
    np.testing.assert_allclose(moved, reference["hom_corners_xy"], rtol=0, atol=1e-6)
    grid = warps.homography_grid(reference["hom_uniform"], *SIZE)
    np.testing.assert_allclose(grid, reference["hom_grid"], rtol=0, atol=1e-5)


def test_spline_agrees_with_the_reference(reference: dict[str, np.ndarray]) -> None:
    moved = warps.CONTROL_POINTS + warps.spread(reference["tps_uniform"], 0.333)
    np.testing.assert_allclose(moved, reference["tps_points_xy"], rtol=0, atol=1e-6)
    grid = warps.tps_grid(reference["tps_uniform"], *SIZE)
    np.testing.assert_allclose(grid, reference["tps_grid"], rtol=0, atol=1e-5)


def test_affine_then_spline_agrees_with_the_reference(reference: dict[str, np.ndarray]) -> None:
    uniform = reference["afftps_uniform"]
    height, width = SIZE
    centres = np.meshgrid((2 * np.arange(width) + 1) / width - 1, (2 * np.arange(height) + 1) / height - 1)
    affine = np.stack([*centres, np.ones(SIZE)], -1) @ warps.affine_matrix(uniform[:5]).T
    np.testing.assert_allclose(affine, reference["affine_grid"], rtol=0, atol=1e-5)
    spline = warps.tps_grid(uniform[5:], *SIZE, scale=0.08)
    np.testing.assert_allclose(spline, reference["afftps_tps_grid"], rtol=0, atol=1e-5)

    grid = warps.affine_tps_grid(uniform, *SIZE)
    outside = (reference["afftps_grid"] < -1.5).any(-1)
    assert 0 < outside.mean() < 1
    np.testing.assert_array_equal((grid < -1.5).any(-1), outside)
    np.testing.assert_allclose(grid[~outside], reference["afftps_grid"][~outside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_affine_then_spline_agrees_with_sampling_the_affine_grid(seed: int) -> None:
    """The definition, word by word, with torch's grid_sample in double precision."""
    uniform = np.random.default_rng(seed).random(warps.AFFINE_TPS_DRAWS)
    height, width = 41, 29
    theta = torch.from_numpy(warps.affine_matrix(uniform[:5]))[None]
    affine = torch.nn.functional.affine_grid(theta, [1, 1, height, width], align_corners=False)
    affine[(affine.abs() >= 1).any(-1)] = -1e10
    spline = warps.tps_grid(uniform[5:], height, width, scale=0.08)
    positions = torch.from_numpy(spline)[None].double()
    sampled = torch.nn.functional.grid_sample(affine.permute(0, 3, 1, 2), positions, align_corners=True)
    expected = sampled[0].permute(1, 2, 0).numpy()
    outside = (expected < -1.5).any(-1) | (np.abs(spline) >= 1).any(-1)

    grid = warps.affine_tps_grid(uniform, height, width)
    np.testing.assert_array_equal((grid == np.float32(warps.OUTSIDE)).all(-1), outside)
    np.testing.assert_allclose(grid[~outside], expected[~outside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_homography_agrees_with_opencv(seed: int) -> None:
    uniform = np.random.default_rng(seed).random(8)
    moved = warps.CORNERS + warps.spread(uniform, 0.333)
    matrix = cv2.getPerspectiveTransform(warps.CORNERS.astype(np.float32), moved.astype(np.float32))
    points = identity(30, 20).reshape(-1, 1, 2)
    expected = cv2.perspectiveTransform(points, matrix).reshape(30, 20, 2)
    np.testing.assert_allclose(warps.homography_grid(uniform, 30, 20), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_spline_goes_through_its_control_points(seed: int) -> None:
    uniform = np.random.default_rng(seed).random(18)
    grid = warps.tps_grid(uniform, 41, 61)
    at_points = np.array([grid[round((y + 1) * 20), round((x + 1) * 30)] for x, y in warps.CONTROL_POINTS])
    moved = warps.CONTROL_POINTS + warps.spread(uniform, 0.333)
    np.testing.assert_allclose(at_points, moved, rtol=0, atol=1e-5)


def test_spline_with_affine_moves_is_that_affine_map() -> None:
    """A thin-plate spline reproduces affine maps exactly: moves (0.1 x, -0.2 y + 0.05)."""
    moves = warps.CONTROL_POINTS * (0.1, -0.2) + (0, 0.05)
    uniform = (moves.T.reshape(-1) / 0.333 + 1) / 2
    expected = identity(33, 47) * (1.1, 0.8) + (0, 0.05)
    np.testing.assert_allclose(warps.tps_grid(uniform, 33, 47), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("function", "draws"), WARPS[:2])
@pytest.mark.parametrize("size", [(24, 32), (1, 1), (1, 9), (7, 1), (35, 51)])
def test_middle_draws_give_the_identity(function, draws: int, size: tuple[int, int]) -> None:
    x = np.linspace(-1, 1, size[1]) if size[1] > 1 else np.array([-1.0])
    y = np.linspace(-1, 1, size[0]) if size[0] > 1 else np.array([-1.0])
    expected = np.stack(np.meshgrid(x, y), -1)
    np.testing.assert_allclose(function(np.full(draws, 0.5), *size), expected, rtol=0, atol=1e-6)


def test_middle_draws_of_affine_then_spline_keep_the_inner_pixels() -> None:
    """The half-pixel centres shrink the grid by (n - 1) / n; the border is outside, where |x| is not below 1."""
    height, width = 20, 30
    grid = warps.affine_tps_grid(np.full(23, 0.5), height, width)
    expected = identity(height, width) * ((width - 1) / width, (height - 1) / height)
    np.testing.assert_allclose(grid[1:-1, 1:-1], expected[1:-1, 1:-1], rtol=0, atol=1e-5)
    border = np.ones((height, width), bool)
    border[1:-1, 1:-1] = False
    assert (grid[border] == np.float32(warps.OUTSIDE)).all()


def test_shear_draw_has_no_effect() -> None:
    uniform = np.random.default_rng(0).random(23)
    other = uniform.copy()
    other[1] = 1 - other[1]
    np.testing.assert_array_equal(warps.affine_tps_grid(uniform, 9, 9), warps.affine_tps_grid(other, 9, 9))


def direct_homography(uniform: np.ndarray, x: np.ndarray, y: np.ndarray, scale: float) -> np.ndarray:
    """The homography of four moved corners on a grid, in float64, by the null space of its equations."""
    moved = warps.CORNERS + (2 * uniform - 1).reshape(2, 4).T * scale
    rows = []
    for (p, q), (u, v) in zip(warps.CORNERS, moved, strict=True):
        rows += [[p, q, 1, 0, 0, 0, -u * p, -u * q, -u], [0, 0, 0, p, q, 1, -v * p, -v * q, -v]]
    matrix = np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3)
    mapped = np.stack([x, y, np.ones_like(x)], -1) @ matrix.T
    return mapped[..., :2] / mapped[..., 2:]


def direct_spline(uniform: np.ndarray, x: np.ndarray, y: np.ndarray, scale: float) -> np.ndarray:
    """The thin-plate spline as a sum over its control points, in float64, by SciPy."""
    moved = warps.CONTROL_POINTS + (2 * uniform - 1).reshape(2, 9).T * scale
    spline = RBFInterpolator(warps.CONTROL_POINTS, moved, kernel="thin_plate_spline", degree=1)
    return spline(np.stack([x, y], -1).reshape(-1, 2)).reshape(*x.shape, 2)


def pixel_error(grid: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of positions, in pixels."""
    height, width = expected.shape[:2]
    return float((np.abs(grid - expected) * (width - 1, height - 1)).max() / 2)


GRIDS = [(512, 512), (511, 300), (360, 641), (33, 48), (7, 2)]


@pytest.mark.parametrize("scale", [0.1, 0.333, 0.49, 0.4999])
def test_homography_is_exact_to_a_hundredth_of_a_pixel(scale: float) -> None:
    """Also where all corners move as far as they may, and three of them nearly stand on a line."""
    rng = np.random.default_rng(0)
    for size in GRIDS:
        x, y = np.moveaxis(identity(*size), -1, 0)
        for draw in range(12):
            uniform = rng.random(8) if draw % 2 else rng.integers(0, 2, 8).astype(float)
            grid = warps.homography_grid(uniform, *size, scale)
            assert pixel_error(grid, direct_homography(uniform, x, y, scale)) < 0.01


def test_homography_at_the_largest_amount_is_finite() -> None:
    """There three corners may stand on a line and nothing be left of the denominator at one of them."""
    scale = np.nextafter(0.5, 0)
    for corners in itertools.product((0.0, 1.0), repeat=8):
        uniform = np.array(corners)
        grid = warps.homography_grid(uniform, 17, 24, scale)
        moved = warps.CORNERS + warps.spread(uniform, scale)
        assert np.isfinite(grid).all() and np.abs(grid).max() < 1.51
        np.testing.assert_allclose(grid[[0, -1, 0, -1], [0, 0, -1, -1]], moved, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.08, 0.333, 1.0])
def test_spline_is_exact_to_a_hundredth_of_a_pixel(scale: float) -> None:
    rng = np.random.default_rng(1)
    for height, width in GRIDS:
        basis = warps.tps_basis(height, width)
        whole = identity(height, width)
        some = np.ix_(*(np.unique(np.append(rng.integers(0, n, 60), (0, n // 2, n - 1))) for n in (height, width)))
        x, y = np.moveaxis(whole[some], -1, 0)
        for draw in range(8):
            uniform = rng.random(18) if draw % 2 else rng.integers(0, 2, 18).astype(float)
            difference = warps.tps_grid(uniform, height, width, scale, basis)[some]
            difference = np.abs(difference - direct_spline(uniform, x, y, scale))
            assert (difference * (width - 1, height - 1)).max() / 2 < 0.01


@pytest.mark.parametrize("most", [False, True])
def test_affine_then_spline_is_exact_to_a_hundredth_of_a_pixel(most: bool) -> None:
    """Positions and outside against the definition in float64; outside may differ only where it hangs by a thread.

    Once with the published amounts, once with the largest that are allowed.
    """
    rng = np.random.default_rng(2)
    scale, rotation, zoom, shift = (1.0, np.pi, 0.999, 2.0) if most else (0.08, 0.26, 0.45, 0.25)
    for height, width in [(96, 97), (61, 140), (33, 48)]:
        size, basis = np.array((width, height)), warps.tps_basis(height, width)
        x, y = np.moveaxis(identity(height, width), -1, 0)
        compared = 0
        for _ in range(12):
            uniform = rng.random(23)
            grid = warps.affine_tps_grid(uniform, height, width, scale, rotation, zoom, shift, basis)
            spline = direct_spline(uniform[5:], x, y, scale)
            matrix = warps.affine_matrix(uniform[:5], rotation, zoom, shift)
            index = (spline + 1) * (size - 1) / 2
            expected = ((2 * index + 1) / size - 1) @ matrix[:, :2].T + matrix[:, 2]
            reach = np.abs(spline).max(-1)  # how far out position and taps are; from 1 on, outside
            for step_x, step_y in itertools.product((0, 1), repeat=2):
                tap = (2 * (np.floor(index) + np.array((step_x, step_y))) + 1) / size - 1
                reach = np.maximum(reach, np.abs(tap @ matrix[:, :2].T + matrix[:, 2]).max(-1))
            whole = np.abs(index - np.rint(index)).min(-1) < 0.001  # which taps there are hangs by a thread
            clear = ~whole & (np.abs(reach - 1) > 1e-5)
            outside = (grid == np.float32(warps.OUTSIDE)).all(-1)
            np.testing.assert_array_equal(outside[clear], reach[clear] >= 1)
            inside = clear & ~outside
            compared += inside.sum()
            error = np.abs(grid - expected)[inside] * (size - 1) / 2
            assert (error < 0.01).all()
        assert compared > 12 * height * width * (0.01 if most else 0.4)


@settings(max_examples=25, deadline=None)
@given(which=st.integers(0, 2), seed=st.integers(0, 2**32 - 1), height=st.integers(1, 40), width=st.integers(1, 40))
def test_any_size_gives_finite_positions(which: int, seed: int, height: int, width: int) -> None:
    function, draws = WARPS[which]
    uniform = np.random.default_rng(seed).random(draws)
    grid = function(uniform, height, width)
    assert grid.shape == (height, width, 2) and grid.dtype == np.float32
    assert np.isfinite(grid).all()


def test_basis_at_hand_gives_the_same_grid() -> None:
    uniform, basis = np.random.default_rng(1).random(18), warps.tps_basis(10, 14)
    np.testing.assert_array_equal(warps.tps_grid(uniform, 10, 14), warps.tps_grid(uniform, 10, 14, basis=basis))
