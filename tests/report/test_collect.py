"""What is gathered while images are scored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_pages import MEAN, STD, classes_of, collected, scored

from icda.errors import UserError
from icda.evaluation import Scored
from icda.metrics import ConfusionMatrix
from icda.report.collect import Collector, Pictures

CLASSES = classes_of(2)


def with_score(index: int, hits: int | None) -> Scored:
    """An image of one labelled row of 10 pixels of class 0, of which ``hits`` are predicted right; None: no label."""
    image = scored(index, CLASSES, 1.0, (4, 12), labelled=False)
    label = np.full((4, 12), 255, np.uint8)
    prediction = np.zeros((4, 12), np.uint8)
    if hits is not None:
        label[1, :10] = 0
        prediction[1, hits:10] = 1
    matrix = ConfusionMatrix(2, 255)
    matrix.update(prediction, label)
    return Scored(index, image.image, label, prediction, image.confidence, matrix.matrix)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.integers(0, 10), min_size=1, max_size=24), st.integers(0, 3))
def test_the_best_the_worst_and_the_median_are_kept(hits, each):
    images = [with_score(k, h) for k, h in enumerate(hits)]
    collector = Collector(CLASSES, MEAN, STD, [str(k) for k in range(len(hits))], Pictures(each, 16))
    for image in images:
        collector(image)
        assert len(collector.layers) <= 6 * each  # whatever comes
    shown, scores = collector.shown(), collector.images.miou()
    ranked = sorted((k for k, h in enumerate(hits) if h is not None), key=lambda k: (scores[k], k))
    best, median, worst = shown["best"], shown["median"], shown["worst"]
    assert best == ranked[::-1][: len(best)] and worst == ranked[::-1][len(ranked) - len(worst) :]
    together = best + median + worst
    assert len(set(together)) == len(together) == min(3 * each, len(ranked))
    between = [k for k in ranked[::-1] if k not in best + worst]
    skipped = between.index(median[0]) if median else 0
    assert median == between[skipped : skipped + len(median)]
    assert not each or abs(skipped - (len(between) - len(median) - skipped)) <= 1  # from the middle
    for index in collector.settle():
        assert index in median and len(ranked) > 6 * each  # few images are never scored twice
        collector.again(images[index])
    assert set(together) == set(collector.layers)
    for index in together:
        np.testing.assert_array_equal(collector.layers[index].prediction, images[index].prediction)


def test_a_median_that_was_not_in_the_middle_before_is_scored_again():
    images = [with_score(k, k // 2) for k in range(22)]  # ever better, so that the middle moves on and on
    collector = Collector(CLASSES, MEAN, STD, [str(k) for k in range(22)], Pictures(1, 16))
    for image in images:
        collector(image)
    assert len(collector.layers) <= 6 and collector.shown()["median"] == collector.settle() == [11]
    collector.again(images[11])
    assert sorted(collector.layers) == [0, 11, 21]


def test_an_image_that_overflows_is_named():
    image = with_score(0, 5)
    image.confidence[2, 3] = np.nan
    with pytest.raises(UserError, match=r"b\.png: what the network gives is not finite; give precision=fp32"):
        Collector(CLASSES, MEAN, STD, ["b.png"])(image)


def test_figures_alone_need_no_pictures():
    entry, collector = collected([with_score(0, 5), with_score(1, 10)], CLASSES, ["a", "b"], None)
    assert collector.thumbnails == [] and collector.layers == {} and collector.settle() == []
    # Class 0 has 5/10 and class 1, which is predicted at five pixels, has 0; then class 0 alone, with 10/10.
    assert [image["miou"] for image in entry["image_wise"]["images"]] == [0.25, 1.0]
    assert entry["image_wise"]["miou"] == 0.625
    assert [image["labelled_pixels"] for image in entry["image_wise"]["images"]] == [10, 10]
    assert [image["pixel_accuracy"] for image in entry["image_wise"]["images"]] == [0.5, 1.0]


def test_figures_are_json_and_quarters_have_their_own_matrices():
    images = [scored(k, classes_of(3), 0.1 * k) for k in range(9)]
    entry, _ = collected(images, classes_of(3), [f"n{k}" for k in range(9)], None)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    order = sorted(range(9), key=lambda k: entry["image_wise"]["images"][k]["brightness"])
    start = 0
    assert [group["images"] for group in entry["brightness"]] == [3, 2, 2, 2]
    for group in entry["brightness"]:
        matrix = ConfusionMatrix(3, 255)
        for k in order[start : start + group["images"]]:
            matrix.update(images[k].prediction, images[k].label)
        start += group["images"]
        assert group["miou"] == matrix.miou()
    values = [image["brightness"] for image in entry["image_wise"]["images"]]
    assert entry["brightness"][0]["from"] == min(values) and entry["brightness"][-1]["to"] == max(values)
    bins = entry["calibration"]["bins"]
    assert len(bins) == 15 and sum(b["pixels"] for b in bins) == entry["labelled_pixels"]
    gaps = sum(b["pixels"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["pixels"])
    assert entry["calibration"]["ece"] == pytest.approx(gaps / entry["labelled_pixels"])


def test_nothing_labelled_gives_none():
    entry, collector = collected([with_score(0, None)], CLASSES, ["a"], Pictures(2, 16))
    assert entry["calibration"]["ece"] is None and entry["image_wise"]["miou"] is None
    assert entry["image_wise"]["images"][0]["miou"] is None and entry["brightness"][0]["miou"] is None
    assert collector.shown() == {"best": [], "median": [], "worst": []} and len(collector.thumbnails) == 1


def test_what_is_kept_of_an_image_is_small():
    classes = classes_of(19)
    names = [str(k) for k in range(5000)]
    collector = Collector(classes, MEAN, STD, names, Pictures(1, 64))
    for k in range(30):
        collector(scored(k, classes, 0.5, (128, 256)))
    assert max(map(len, collector.thumbnails)) <= 2400 * 2  # noise, the worst there is, at the lowest quality
    assert len(collector.layers) <= 6
