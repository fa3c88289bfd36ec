"""Building blocks of light and tone against published values and hand-made cases."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icda.transforms import light


def test_srgb_values_of_the_standard_and_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    linear = light.srgb_to_linear(levels)
    assert linear[0, 0] == 0 and linear[15, 15] == 1
    np.testing.assert_allclose(linear[8, 0], 0.21586, atol=1e-5)  # 128, IEC 61966-2-1
    np.testing.assert_array_equal(light.linear_to_srgb(linear), levels)
    assert light.linear_to_srgb(np.float32([[-1.0, 7.0]])).tolist() == [[0, 255]]


def test_luma_is_opencvs() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    expected = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(light.luma(image.astype(np.float32)), expected, atol=0.51)


def test_base_layer_keeps_a_large_edge_and_removes_texture() -> None:
    step = np.full((80, 120), 40, np.float32)
    step[:, 60:] = 220
    texture = np.random.default_rng(0).normal(0, 6, step.shape).astype(np.float32)
    base = light.base_layer(step + texture)
    assert np.abs(base - step).max() < 25  # no halo beside the edge
    assert (base - step)[:, :50].std() < 0.4 * texture.std()


def test_tone_curve_matches_quantiles_where_slopes_allow() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.uniform(50, 200, 5000), rng.uniform(10, 60, 5000)
    start, mapped = light.tone_curve(source, target, max_slope=2)
    moved = np.interp(source, start, mapped)
    for share in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(np.quantile(moved, share), np.quantile(target, share), atol=1)


@settings(max_examples=50, deadline=None)
@given(
    source=st.lists(st.floats(0, 300), min_size=1, max_size=50),
    target=st.lists(st.floats(0, 255), min_size=1, max_size=50),
    slope=st.floats(1, 5),
)
def test_tone_curve_is_monotone_bounded_and_not_negative(source: list, target: list, slope: float) -> None:
    start, mapped = light.tone_curve(np.array(source), np.array(target), slope)
    assert (np.diff(mapped) >= 0).all() and (mapped >= 0).all() and np.isfinite(mapped).all()
    assert (np.diff(mapped) <= slope * np.diff(start) + 1e-6).all()


def test_chroma_matrix_moves_the_mean_colour_and_keeps_luma() -> None:
    rng = np.random.default_rng(0)
    source = (rng.uniform(0.8, 1.2, (4000, 3)) * (90, 100, 120)).astype(np.float32)
    target = (rng.uniform(0.8, 1.2, (4000, 3)) * (70, 50, 25)).astype(np.float32)
    matrix = light.chroma_matrix(source, target, gain=(0.4, 1.5))
    moved = source @ matrix.T
    np.testing.assert_allclose(moved @ light.LUMA, source @ light.LUMA, rtol=1e-4)
    ratios = [i.mean(0) / i.mean() for i in (moved, target)]
    np.testing.assert_allclose(*ratios, atol=0.05)


@pytest.mark.parametrize("sigma", [2.0, 8.0])
def test_noise_level_of_known_noise(sigma: float) -> None:
    ramp = np.linspace(20, 120, 200)[None].repeat(150, 0)
    noisy = ramp + np.random.default_rng(0).normal(0, sigma, ramp.shape)
    np.testing.assert_allclose(light.noise_level(noisy), sigma, rtol=0.05)
    assert light.noise_level(ramp) < 0.01
    assert light.noise_level(ramp[:2]) == 0


@pytest.mark.parametrize("shape", [(3, 3), (4, 5), (37, 52), (150, 200)])
@pytest.mark.parametrize("levels", [1, 2, 30, 256])
def test_noise_level_by_counting_is_the_median(shape: tuple[int, int], levels: int) -> None:
    """Grey levels as bytes take a quicker way than the same as numbers."""
    gray = np.random.default_rng(0).integers(0, levels, shape).astype(np.uint8)
    assert light.noise_level(gray) == light.noise_level(gray.astype(np.float32))
