"""Steps on large arrays against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest

from icda.transforms.arrays import set_where


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 9, 3), (31, 4, 2), (32, 1, 3), (33, 7, 1), (100, 13, 4)])
@pytest.mark.parametrize("value", [0.0, -1e10])
def test_pixels_are_set_in_place(shape: tuple[int, int, int], value: float) -> None:
    rng = np.random.default_rng(0)
    array, mask = rng.random(shape, np.float32), rng.integers(0, 3, shape[:2]).astype(np.uint8)
    expected = np.where(mask[..., None] != 0, np.float32(value), array)
    set_where(array, mask, value)
    np.testing.assert_array_equal(array, expected)
