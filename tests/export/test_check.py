"""Comparing an exported graph with the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from export_models import SMALL, make_model

from icda.errors import UserError
from icda.export.check import NOISE, Compared, agreement, compare, picture, require_agreement
from icda.export.graph import InferenceGraph

SETTINGS = {"normalizes": True, "argmax": True, "sizes": [(64, 96), (70, 33)], "smallest": 32, "timing_runs": 1}


def test_pictures_have_structure_and_noise():
    image = picture((97, 131), np.random.default_rng(1)).astype(float)
    assert image.shape == (97, 131, 3) and image.min() >= 0 and image.max() <= 255
    neighbours = np.corrcoef(image[:, 1:].ravel(), image[:, :-1].ravel())[0, 1]
    assert neighbours > 0.9  # white noise: about 0
    # Means over cells of 32 x 32 pixels vary; those of white noise (deviation 74) would by 74 / 32 = 2.3.
    cells = image[:96, :128].reshape(3, 32, 4, 32, 3).mean((1, 3))
    assert cells.std(axis=(0, 1)).min() > 10
    # Where structures are smooth, second differences are of the noise alone, with sqrt(6) times its deviation.
    second = np.diff(image, 2, axis=1)
    assert 0.5 * NOISE < np.median(np.abs(second)) / 0.6745 / np.sqrt(6) < 2 * NOISE
    np.testing.assert_array_equal(image, picture((97, 131), np.random.default_rng(1)))


def test_cases_and_times():
    model = make_model(SMALL)
    results = compare(model, InferenceGraph(model), **SETTINGS)
    assert [(r.batch, r.height, r.width) for r in results] == [(1, 64, 96), (1, 70, 33), (2, 70, 33), (1, 32, 32)]
    assert [r.pixels for r in results] == [6144, 2310, 4620, 1024]
    assert all(r.differing == 0 and r.agreement == 1 for r in results) and agreement(results) == 1
    assert [r.seconds_pytorch is not None for r in results] == [True, True, False, False]
    assert all(r.seconds_exported > 0 for r in results[:2]) and results[2].seconds_exported is None
    require_agreement(results, 1.0, "x")


def test_differing_pixels_are_counted():
    model = make_model(SMALL)
    graph = InferenceGraph(model)

    def off_by_seven(images):
        labels = graph(images)
        labels.view(-1)[:7] += 1
        return labels

    results = compare(model, off_by_seven, **SETTINGS)
    assert [r.differing for r in results] == [7] * 4
    assert agreement(results) == pytest.approx(1 - 28 / 14098)
    assert results[3].agreement == pytest.approx(1 - 7 / 1024)
    with pytest.raises(UserError, match=r"agree on 99\.3164 % .* 1 x 32 x 32 .* expected 99\.99 %"):
        require_agreement(results, 0.9999, "onnx")


def case(pixels: int, differing: int, logit_difference: float | None = None) -> Compared:
    return Compared(1, 1, pixels, pixels, differing, 1 - differing / pixels, logit_difference, None, None)


@pytest.mark.parametrize(
    ("pixels", "differing", "least", "good"),
    [
        (1024, 1, 0.9999, True),  # a tenth of a pixel is allowed, hence one
        (1024, 2, 0.9999, False),
        (1024, 1, 1.0, False),
        (1024, 0, 1.0, True),
        (400_000, 40, 0.9999, True),
        (400_000, 41, 0.9999, False),
    ],
)
def test_each_case_has_to_agree_by_itself(pixels, differing, least, good):
    results = [case(10**8, 0), case(pixels, differing), case(10**8, 0)]
    if good:
        require_agreement(results, least, "onnx")
    else:
        with pytest.raises(UserError, match=f"1 x 1 x {pixels} "):
            require_agreement(results, least, "onnx")


@pytest.mark.parametrize("encoder", [SMALL, pytest.param("mit_b0", marks=pytest.mark.slow)])
def test_logits_are_compared_by_themselves(encoder):
    model = make_model(encoder)
    graph = InferenceGraph(model, normalize=False, argmax=False)
    settings = {**SETTINGS, "normalizes": False, "argmax": False}
    results = compare(model, graph, **settings)
    assert agreement(results) == 1 and max(r.logit_difference for r in results) < 1e-4
    require_agreement(results, 1.0, "onnx")
    labels_stay = compare(model, lambda images: 2 * graph(images) + 1, **settings)
    assert agreement(labels_stay) > 0.999 and min(r.logit_difference for r in labels_stay) > 0.5
    with pytest.raises(UserError, match=r"logits of the onnx graph .* differ by up to .* 1 x 64 x 96 .* 0\.001"):
        require_agreement(labels_stay, 0.9, "onnx")
    shifted = compare(model, lambda images: graph(images) + 0.01 * model(images).std(), **settings)
    assert [r.logit_difference for r in shifted] == pytest.approx([0.01] * 4, rel=0.01)
    assert agreement(compare(model, lambda images: -graph(images), **settings)) < 0.5
    wrong_type = compare(model, lambda images: graph(images).double(), **settings)
    assert [(r.differing, r.logit_difference) for r in wrong_type] == [(r.pixels, math.inf) for r in results]


@pytest.mark.parametrize("difference", [1.1e-3, math.inf, math.nan])
def test_logits_that_differ_are_refused(difference):
    with pytest.raises(UserError, match="logits"):
        require_agreement([case(9, 0, 1e-3), case(9, 0, difference)], 0.9, "pt2")


@pytest.mark.parametrize("spoil", [lambda y: y.long(), lambda y: y[:, 1:], lambda y: y[:1], lambda y: y.float()])
def test_a_wrong_type_or_shape_counts_as_all_wrong(spoil):
    model = make_model(SMALL)
    graph = InferenceGraph(model)
    results = compare(model, lambda images: spoil(graph(images)), **SETTINGS)
    assert max(r.differing / r.pixels for r in results) == 1


def test_one_wrong_case_suffices():
    good = Compared(1, 540, 960, 518400, 0, 1.0, None, 1.0, 1.0)
    bad = Compared(1, 32, 32, 1024, 1024, 0.0, None, None, None)
    with pytest.raises(UserError, match="1 x 32 x 32"):
        require_agreement([good, good, bad], 0.9999, "pt2")
