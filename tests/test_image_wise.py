"""Scores image by image against matrices that are kept whole."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from icda.image_wise import ImageWise, quarters
from icda.metrics import ConfusionMatrix


@given(st.integers(2, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_images_score_as_if_each_were_a_set(classes, count, seed):
    generator = np.random.default_rng(seed)
    images, whole = ImageWise(classes, 255), []
    for _ in range(count):
        matrix = ConfusionMatrix(classes, 255)
        label = generator.integers(0, classes, (3, 4))
        label[generator.random((3, 4)) < 0.6] = 255
        matrix.update(generator.integers(0, classes, (3, 4)), label)
        images.update(matrix.matrix)
        whole.append(matrix)
    np.testing.assert_array_equal(images.miou(), [matrix.miou() for matrix in whole])
    np.testing.assert_array_equal(images.pixel_accuracy(), [matrix.pixel_accuracy() for matrix in whole])
    np.testing.assert_array_equal(images.pixels(), [matrix.matrix.sum() for matrix in whole])
    some = generator.permutation(count)[: generator.integers(0, count + 1)]
    expected = sum((whole[k].matrix for k in some), np.zeros((classes, classes), np.int64))
    np.testing.assert_array_equal(images.joined(some).matrix, expected)
    assert len(images) == count


@given(st.lists(st.floats(0, 255), min_size=1, max_size=30))
def test_quarters_are_equal_parts_in_order(values):
    groups = quarters(np.array(values))
    assert sorted(k for group in groups for k in group) == list(range(len(values)))
    assert len(groups) == min(4, len(values)) and max(map(len, groups)) - min(map(len, groups)) <= 1
    for one, other in itertools.pairwise(groups):
        assert max(values[k] for k in one) <= min(values[k] for k in other)
