"""Calibration against a plain reading of its definition, and the examples in the metrics' descriptions."""

from __future__ import annotations

import doctest
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import icda.image_wise
import icda.metrics
import icda.report.html
import icda.scores
from icda.metrics import Calibration


@pytest.mark.parametrize("module", [icda.metrics, icda.image_wise, icda.scores, icda.report.html])
def test_examples_in_descriptions_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def by_definition(confidence: list[float], right: list[bool], bins: int) -> float:
    """Guo et al., ICML 2017, equation 3, in exact numbers."""
    total = Fraction(0)
    for m in range(1, bins + 1):
        inside = [
            (Fraction(c), r)
            for c, r in zip(confidence, right, strict=True)
            if Fraction(m - 1, bins) < Fraction(c) <= Fraction(m, bins) or (m == 1 and c == 0)
        ]
        if inside:
            gap = sum(r for _, r in inside) - sum(c for c, _ in inside)
            total += abs(gap)
    return float(total / len(confidence))


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), min_size=1, max_size=30), st.integers(1, 20))
def test_expected_calibration_error_by_its_definition(pixels, bins):
    # Not on the edges of bins but for 0 and 1, where rounding would decide.
    confidence = [k / 1000 if k in (0, 1000) else (k + 0.37) / 1000.01 for k, _ in pixels]
    label = [0 if right else 1 for _, right in pixels]
    calibration = Calibration(2, 255, bins)
    shape = (1, len(pixels))
    calibration.update(np.zeros(shape, int), np.array(confidence).reshape(shape), np.array(label).reshape(shape))
    expected = by_definition(confidence, [right for _, right in pixels], bins)
    assert calibration.ece() == pytest.approx(expected, abs=1e-12)
    assert calibration.pixels.sum() == len(pixels)


def test_edges_belong_to_the_bin_below():
    calibration = Calibration(2, 255, 4)
    confidence = np.array([[0.25, 0.5, 0.75, 1.0, 0.0, np.nextafter(np.float32(0.5), np.float32(1))]], np.float32)
    calibration.update(np.zeros((1, 6), int), confidence, np.zeros((1, 6), int))
    assert calibration.pixels.tolist() == [2, 1, 2, 1]


def test_pixels_without_a_label_count_nowhere_and_images_add_up():
    prediction, confidence = np.array([[0, 1, 1]]), np.array([[0.9, 0.8, 0.1]], np.float32)
    both, calibration = Calibration(2, 255), Calibration(2, 255)
    both.update(np.tile(prediction, (2, 1)), np.tile(confidence, (2, 1)), np.array([[0, 0, 255], [1, 1, 255]]))
    calibration.update(prediction, confidence, np.array([[0, 0, 255]]))
    calibration.update(prediction, confidence, np.array([[1, 1, 255]]))
    assert calibration.pixels.sum() == 4 and calibration.ece() == pytest.approx(both.ece())
    np.testing.assert_array_equal(calibration.hits, both.hits)


def test_nothing_counted_is_nan():
    calibration = Calibration(3, 255)
    assert math.isnan(calibration.ece()) and np.isnan(calibration.accuracy()).all()
    calibration.update(np.zeros((1, 1), int), np.ones((1, 1)), np.full((1, 1), 255))
    assert math.isnan(calibration.ece()) and calibration.pixels.sum() == 0


@pytest.mark.parametrize("wrong", [np.full((1, 2), np.nan), np.full((1, 2), 1.5), np.zeros((2, 1))])
def test_wrong_confidences_are_refused(wrong):
    with pytest.raises(ValueError, match="confidence is"):
        Calibration(2, 255).update(np.zeros((1, 2), int), wrong, np.zeros((1, 2), int))
