"""Queries: given ones are checked, chosen ones differ in class, lie inside regions and far apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icda.errors import UserError
from icda.explanation.points import chosen_points, given_points


def test_given_points_are_taken_as_they_are():
    assert given_points([[0, 0], [9, 19]], (10, 20)).tolist() == [[0, 0], [9, 19]]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], r"^points=\[\] names no point"),
        ([[1, 2, 3]], r"\[1, 2, 3\] is no point; give each as \[row,column\]"),
        (
            [[0, 0], [10, 3]],
            r"\[10, 3\] lies outside .* 10 x 20 \(height x width\); rows are 0 to 9, columns 0 to 19",
        ),
        ([[3, 20]], "lies outside"),
        ([[-1, 0]], "lies outside"),
    ],
)
def test_points_that_are_none(points, message):
    with pytest.raises(UserError, match=message):
        given_points(points, (10, 20))


def test_chosen_points_by_hand():
    labels = np.zeros((40, 60), int)
    labels[:, 40:] = 2  # 800 pixels
    labels[0:5, 0:5] = 7
    # The deepest of class 0, the largest, which is a ring around nothing: far from its borders.
    points = chosen_points(labels, 3)
    assert labels[tuple(points.T)].tolist() == [0, 7, 2] or labels[tuple(points.T)].tolist() == [0, 2, 7]
    row, column = points[labels[tuple(points.T)].tolist().index(7)]
    assert (row, column) == (2, 2)  # the middle of a square of 5 pixels in the corner


def test_where_there_are_fewer_classes_the_rest_is_spread():
    points = chosen_points(np.zeros((21, 21), int), 5)
    assert points[0].tolist() == [10, 10]
    assert sorted(map(tuple, points[1:].tolist())) == [(0, 0), (0, 20), (20, 0), (20, 20)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), count=st.integers(1, 9), size=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_chosen_points_are_different_pixels_and_classes_first(seed, count, size):
    labels = np.random.default_rng(seed).integers(0, 5, size)
    points = chosen_points(labels, count)
    np.testing.assert_array_equal(points, chosen_points(labels, count))
    assert len(points) == min(count, labels.size) == len({tuple(p) for p in points.tolist()})
    assert (points >= 0).all() and (points < size).all()
    assert len(set(labels[tuple(points.T)].tolist())) == min(count, len(np.unique(labels)))
