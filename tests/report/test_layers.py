"""What is embedded of an image."""

from __future__ import annotations

import base64
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_pages import MEAN, STD, classes_of, scored

from icda.report.layers import embedded_size, layers_of, luma, packed, picture, thumbnail


def unpacked(text: str, height: int, width: int) -> np.ndarray:
    """The plane again, by the description of its format."""
    rows = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(height, width)
    return np.cumsum(rows, axis=0, dtype=np.uint8)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_planes_are_packed_without_loss(height, width, seed):
    plane = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    np.testing.assert_array_equal(unpacked(packed(plane), height, width), plane)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((1080, 1920), 640, (360, 640)),
        ((1920, 1080), 640, (640, 360)),
        ((64, 96), 640, (64, 96)),
        ((2, 9000), 640, (1, 640)),
    ],
)
def test_sizes_are_bounded_by_the_longer_side(size, side, expected):
    assert embedded_size(size, side) == expected


def test_layers_at_the_labels_own_size_are_exact():
    image = scored(3, classes_of(5), 0.5)
    layers = layers_of(image, MEAN, STD, 640)
    np.testing.assert_array_equal(layers.truth, image.label)
    np.testing.assert_array_equal(layers.prediction, image.prediction)
    np.testing.assert_array_equal(layers.confidence, np.rint(100 * image.confidence))
    plain = layers.plain(255)
    np.testing.assert_array_equal(unpacked(plain["prediction"], 24, 40), image.prediction)
    assert (plain["height"], plain["width"]) == (24, 40)
    assert plain["truthPixels"] == [int((image.label == k).sum()) for k in range(5)]
    assert plain["predictedPixels"] == [int(((image.prediction == k) & (image.label != 255)).sum()) for k in range(5)]


def test_reduced_layers_hold_ids_of_the_image_alone():
    image = scored(3, classes_of(5), 0.5, (96, 160))
    layers = layers_of(image, MEAN, STD, 50)
    assert layers.truth.shape == layers.prediction.shape == layers.picture.shape[:2] == (30, 50)
    assert set(np.unique(layers.truth)) <= set(np.unique(image.label))


def test_pictures_and_brightness_are_those_of_the_image():
    image = scored(1, classes_of(3), 0.5)
    levels = (image.image.permute(1, 2, 0).numpy() * STD + MEAN) * 255
    rgb = np.rint(levels).astype(np.uint8)
    np.testing.assert_allclose(picture(image, MEAN, STD, (24, 40)), rgb, atol=1)
    assert luma(image, MEAN, STD) == pytest.approx(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).mean(), abs=0.5)


@pytest.mark.parametrize("limit", [6000, 2000, 10])
def test_thumbnails_are_as_small_as_asked_where_that_can_be(limit):
    data = thumbnail(scored(1, classes_of(3), 0.5, (120, 200)), MEAN, STD, 144, limit)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (86, 144, 3) and len(data) <= max(limit, 2000)
