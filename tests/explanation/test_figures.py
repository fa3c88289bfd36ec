"""What is drawn lies where it belongs."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from icda.explanation import figures
from icda.explanation.dar_view import DeformableView, LocalView, StageView
from icda.explanation.figures import (
    attention_figure,
    dimmed,
    dots,
    effective,
    local_figure,
    marked,
    to_pixels,
    wrapped,
)
from icda.viz import HEADING


def test_positions_lie_where_maps_are_resized_to():
    # A map that rises by one a cell, resized as logits are, tells each pixel's position in cells.
    ramp = torch.arange(8.0).expand(1, 1, 4, 8)
    found = F.interpolate(ramp, (64, 128), mode="bilinear", align_corners=False)[0, 0, 0].numpy()
    inner = slice(8, 120)  # beyond the last centres there is nothing to interpolate between
    pixels = to_pixels(np.stack([np.zeros(128), found], -1), (4, 8), (64, 128))
    np.testing.assert_allclose(pixels[inner, 1], np.arange(128)[inner], atol=1e-4)


def test_over_how_many_samples_weights_spread():
    assert effective(np.full((3, 5), 1 / 15)) == pytest.approx(15)
    assert effective(np.array([0.5, 0.5, 0])) == pytest.approx(2)


def stage(weights: np.ndarray, positions: np.ndarray) -> StageView:
    size = positions.shape[1:3]
    deformable = DeformableView(positions, positions[0], weights[None])
    local = LocalView(np.array([[0, 4]]), np.full((1, len(weights), 4, 4), 1 / 16, np.float32))
    return StageView(size, np.array([[1, 5]]), local, deformable)


def grid(size: tuple[int, int]) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).astype(np.float32)


def test_a_dot_lies_where_each_group_reads_the_sample():
    weights = np.zeros((4, 8), np.float32)
    weights[2, 3] = 1
    positions = np.stack([grid((4, 8)), grid((4, 8)) + np.float32((-1, 2))])
    picture = dots(np.zeros((64, 128, 3), np.uint8), DeformableView(positions, positions[0], weights), weights)
    # Cells of 16 x 16 pixels: centres of cells (2, 3) and (1, 5).
    for row, column in ((40, 56), (24, 88)):
        assert picture[row, column].tolist() == [253, 231, 37]  # the end of viridis
        picture[row - 9 : row + 10, column - 9 : column + 10] = 0
    # The others weigh nothing: a point at most.
    assert (picture.max(-1) > 0).sum() <= 4 * 2 * 31


def test_bright_pictures_are_darkened_and_dark_ones_are_not():
    rng = np.random.default_rng(0)
    night, day = rng.integers(0, 60, (9, 9, 3), np.uint8), rng.integers(100, 256, (9, 9, 3), np.uint8)
    np.testing.assert_array_equal(dimmed(night), night)
    assert dimmed(day).mean() == pytest.approx(60, abs=1)


def test_figures_have_a_panel_for_the_mean_and_each_head():
    weights = np.random.default_rng(0).random((8, 4, 8)).astype(np.float32)
    weights /= weights.sum((1, 2), keepdims=True)
    view = stage(weights, np.stack([grid((4, 8))] * 8))
    night, day = np.full((80, 160, 3), 60, np.uint8), np.full((80, 160, 3), 200, np.uint8)
    figure = attention_figure(night, day, view, 0)
    assert figure.shape == (2 * (HEADING + 2 * 83), 5 * 163 - 3, 3)  # nine panels in two rows
    local = local_figure(night, view, 0)
    assert local.dtype == np.uint8 and (local[HEADING + 5 :, 5:100] != 255).any()


def test_the_mark_of_a_query_frames_its_cell():
    picture = marked(np.zeros((64, 128, 3), np.uint8), (1, 5), (4, 8))
    rows, columns = np.nonzero(picture.max(-1) > 60)  # edges are smooth
    # The line is three pixels wide, with smooth edges.
    assert abs(rows.min() - 16) <= 3 and abs(rows.max() - 32) <= 3
    assert abs(columns.min() - 80) <= 3 and abs(columns.max() - 96) <= 3
    assert not picture[20:28, 84:92].any()  # what is inside can be seen


@pytest.mark.parametrize("cell", [(0, 0), (3, 7), (0, 7), (3, 0)])
def test_the_number_of_a_query_stays_in_the_picture(cell):
    plain = marked(np.zeros((64, 160, 3), np.uint8), cell, (4, 8))
    named = marked(np.zeros((64, 160, 3), np.uint8), cell, (4, 8), "12")
    assert (named != plain).any(-1).sum() > 60


def test_panels_wrap_into_rows_of_one_length():
    picture = np.zeros((10, 200, 3), np.uint8)
    assert wrapped({str(i): [picture] for i in range(6)}).shape == (2 * (HEADING + 13), 3 * 203 - 3, 3)
    assert wrapped({str(i): [picture] for i in range(7)}).shape[1] == 4 * 203 - 3


def test_examples():
    failed, tried = doctest.testmod(figures)
    assert tried > 0 and failed == 0
