"""Overlays and the legend."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys

import numpy as np
import pytest

from icda import viz
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


def test_examples():
    failed, tried = doctest.testmod(viz)
    public = [
        f
        for name, f in vars(viz).items()
        if inspect.isfunction(f) and f.__module__ == viz.__name__ and name[0] != "_"
    ]
    assert failed == 0 and tried >= len(public) >= 10
    assert [f.__name__ for f in public if ">>>" not in (f.__doc__ or "")] == []


@pytest.mark.slow
def test_pictures_need_no_pytorch():
    code = "import icda.viz, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_right_wrong_and_unknown_are_told_apart():
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 3, (2, 20, 30), np.uint8)
    truth[:3] = CITYSCAPES.ignore_index
    shown = viz.error_map(labels, truth, CITYSCAPES)
    for (row, column), label in np.ndenumerate(labels):
        true = truth[row, column]
        expected = (0, 0, 0) if true == 255 else viz.RIGHT if label == true else viz.WRONG
        assert tuple(shown[row, column]) == expected
    assert shown.dtype == np.uint8


@pytest.mark.parametrize("diverging", [False, True])
def test_more_is_never_darker_on_the_sequential_map_and_clipped_at_the_ends(diverging):
    ramp = np.linspace(-0.2, 1.2, 300)[None]
    colors = viz.false_colors(ramp, 0, 1, diverging)
    luma = colors[0].astype(float) @ (0.299, 0.587, 0.114)
    assert (colors[0, ramp[0] < 0] == colors[0, 0]).all() and (colors[0, ramp[0] > 1] == colors[0, -1]).all()
    if diverging:
        assert abs(int(luma.argmax()) - 150) < 4  # white in the middle
    else:
        assert (np.diff(luma) > -1.5).all() and luma[-1] - luma[0] > 180


def test_a_heat_map_shows_each_cell_and_greys_what_is_unknown():
    matrix = np.array([[0.0, 0.5, 1.0], [1.0, np.nan, 0.25]])
    picture = viz.heat_map(matrix, ["first", "second"], ["a", "b", "a longer name"])
    left = next(
        x
        for x in range(picture.shape[1])
        if (picture[-20:-12, x] == viz.false_colors(matrix[1:, :1], 0, 1)[0, 0]).all()
    )
    bottom = picture.shape[0] - 10
    corners = picture[bottom - 2 * 38 + 3 : bottom : 38, left + 3 : left + 3 * 38 : 38]
    np.testing.assert_array_equal(corners, viz.false_colors(matrix, 0, 1))
    assert corners[1, 1].tolist() == list(viz.MISSING)


def test_names_do_not_run_into_the_next_picture():
    picture = np.full((30, 160, 3), 9, np.uint8)
    sheet = viz.contact_sheet({"a name that is much too long for a picture of this width": [picture], "": [picture]})
    assert (sheet[: viz.HEADING, 160:] == 255).all() and (sheet[: viz.HEADING, 100:158] < 128).any()


def test_small_pictures_side_by_side_grow_so_that_names_can_be_read():
    picture = np.zeros((10, 30, 3), np.uint8)
    assert viz.side_by_side({"a": picture, "b": picture}).shape == (22 + 60, 2 * 180 + 4, 3)
    assert viz.side_by_side({"a": picture, "b": picture}, width=90).shape[1] <= 90
