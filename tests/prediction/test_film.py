"""Frames of a video of a prediction."""

from __future__ import annotations

import numpy as np
import pytest

from icda.data.classes import CITYSCAPES
from icda.prediction.film import WIDTH, Film, film_frame
from icda.prediction.video import VideoReader
from icda.viz import confidence_map, overlay


def prediction(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 19, size, np.uint8), rng.random(size)


def test_three_pictures_beside_each_other():
    image, labels, confidence = prediction((40, 170))
    frame = film_frame("side_by_side", image, labels, confidence, CITYSCAPES, 0.3)
    expected = (image, overlay(image, labels, CITYSCAPES, 0.3), confidence_map(confidence))
    for i, picture in enumerate(expected):
        np.testing.assert_array_equal(frame[22:62, 173 * i : 173 * i + 170], picture)


def test_an_overlay_needs_no_confidence_and_keeps_its_size():
    image, labels, _ = prediction((40, 170))
    np.testing.assert_array_equal(
        film_frame("overlay", image, labels, None, CITYSCAPES), overlay(image, labels, CITYSCAPES)
    )


@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080), (2160, 3840), (481, 641), (50, 31)])
def test_the_width_is_bounded_and_sides_are_even(size):
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    height, width = film_frame("side_by_side", image, labels, np.zeros(size), CITYSCAPES).shape[:2]
    assert width <= WIDTH and width % 2 == height % 2 == 0
    # The shape of the pictures is kept: three, and two gaps.
    assert (width / 3) / (height - 22) == pytest.approx(size[1] / size[0], rel=0.05)


@pytest.mark.parametrize("kind", ["side_by_side", "overlay"])
def test_what_is_written_is_a_video(tmp_path, kind):
    film = Film(tmp_path, kind, 5, (40, 170), CITYSCAPES, 0.5)
    assert film.told == f"no frame was segmented, there is no {kind}.mp4"
    for _ in range(3):
        film.write(*prediction((40, 170)))
    film.close()
    assert film.told.endswith(f"{kind}.mp4 holds the first 3 frames")
    with VideoReader(tmp_path / f"{kind}.mp4") as video:
        assert video.declared == 3
        expected = film_frame(kind, *prediction((40, 170)), CITYSCAPES)
        assert np.abs(next(iter(video)).astype(int) - expected).mean() < 40  # noise is what codecs do worst
