"""The warps against reference arrays, OpenCV, and their own definitions."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
