"""Overlays and the legend."""

from __future__ import annotations

import numpy as np
import pytest

from icda.data.classes import CAMVID, CITYSCAPES
from icda.viz import legend, overlay


@pytest.mark.parametrize(("opacity", "expected"), [(0.0, [10, 20, 30]), (1.0, [128, 64, 128]), (0.5, [69, 42, 79])])
def test_an_overlay_mixes_colour_and_picture(opacity, expected):
    image = np.full((4, 6, 3), (10, 20, 30), np.uint8)
    mixed = overlay(image, np.zeros((4, 6), np.uint8), CITYSCAPES, opacity)  # class 0 is road (128, 64, 128)
    assert mixed.shape == image.shape and mixed.dtype == np.uint8
    np.testing.assert_array_equal(mixed[2, 3], expected)
    assert (mixed == mixed[0, 0]).all() and (image == (10, 20, 30)).all()


def test_pixels_without_a_class_show_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    labels = np.zeros((5, 7), np.uint8)
    labels[:2], labels[2, 0] = CITYSCAPES.ignore_index, len(CITYSCAPES)
    mixed = overlay(image, labels, CITYSCAPES)
    np.testing.assert_array_equal(mixed[:2], image[:2])
    np.testing.assert_array_equal(mixed[2, 0], image[2, 0])
    assert (mixed[3:] != image[3:]).any()


@pytest.mark.parametrize("classes", [CITYSCAPES, CAMVID])
def test_the_legend_shows_every_colour_in_order_with_a_name_beside_it(classes):
    picture = legend(classes, row=26)
    assert picture.shape[0] == 26 * len(classes)
    for i, color in enumerate(classes.palette):
        np.testing.assert_array_equal(picture[26 * i + 13, 20], color)
        name = picture[26 * i : 26 * (i + 1), 52:]
        assert (name < 100).any() and (name[:, -2:] == 255).all()  # written, and not cut off
