from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.labels import trainId2label
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import icda.metrics
from icda.metrics import ConfusionMatrix


def to_label_ids(train_ids: np.ndarray) -> np.ndarray:
    """Label ids of train ids; ignored pixels become 0, the official "unlabeled"."""
    table = np.zeros(256, np.uint8)
    for train_id, label in trainId2label.items():
        if 0 <= train_id < 19:
            table[train_id] = label.id
    return table[train_ids]


def official_scores(pairs: list[tuple[np.ndarray, np.ndarray]], folder: Path) -> tuple[np.ndarray, float]:
    """IoU by train id, (19,), and their average, of the official evaluation run on files."""
    files: tuple[list[str], list[str]] = ([], [])
    for i, pair in enumerate(pairs):
        for j, train_ids in enumerate(pair):
            files[j].append(str(folder / f"{i}_{j}.png"))
            Image.fromarray(to_label_ids(train_ids)).save(files[j][-1])
    args = official.args
    args.evalInstLevelScore, args.evalPixelAccuracy, args.JSONOutput, args.quiet = False, False, False, True
    result = official.evaluateImgLists(*files, args)
    scores = [result["classScores"][trainId2label[i].name] for i in range(19)]
    return np.array(scores), result["averageScoreClasses"]


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [(range(19), range(19)), ((0, 3, 7), (0, 3, 7, 9)), ((1,), (1,)), (range(10), range(10, 19))],
    ids=["all classes", "some absent, one only predicted", "one class", "all wrong"],
)
def test_agrees_with_the_official_evaluation(tmp_path, labels, predictions):
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(3):
        label = rng.choice(list(labels), (40, 60)).astype(np.uint8)
        prediction = np.where(rng.random((40, 60)) < 0.6, label, rng.choice(list(predictions), (40, 60)))
        if set(predictions).isdisjoint(labels):
            prediction = rng.choice(list(predictions), (40, 60))
        label[rng.random((40, 60)) < 0.1] = 255
        pairs.append((prediction.astype(np.uint8), label))
    # A class predicted at ignored pixels alone does not exist for either.
    pairs[0][0][pairs[0][1] == 255] = 18
    matrix = ConfusionMatrix(19, 255)
    for prediction, label in pairs:
        matrix.update(prediction, label)
    scores, average = official_scores(pairs, tmp_path)
    np.testing.assert_allclose(matrix.iou(), scores, rtol=0, atol=1e-9, equal_nan=True)
    assert matrix.miou() == pytest.approx(average, abs=1e-9)


def test_hand_computed():
    matrix = ConfusionMatrix(4, 255)
    label = np.array([[0, 0, 0, 1], [1, 255, 255, 0]])
    prediction = np.array([[0, 0, 1, 1], [2, 3, 0, 0]], np.uint8)
    matrix.update(prediction, label)
    np.testing.assert_array_equal(matrix.matrix, [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert matrix.matrix.dtype == np.int64
    np.testing.assert_allclose(matrix.iou(), [3 / 4, 1 / 3, 0, np.nan])
    assert matrix.miou() == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert matrix.pixel_accuracy() == pytest.approx(4 / 6)
    assert matrix.frequency_weighted_iou() == pytest.approx(4 / 6 * 3 / 4 + 2 / 6 * 1 / 3)


@given(st.integers(0, 10_000), st.integers(1, 7), st.sampled_from([np.uint8, np.int16, np.int32, np.int64]))
def test_counts_are_those_of_brute_force(seed, classes, dtype):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes + 1, (5, 6)).astype(dtype)
    label[label == classes] = 100
    prediction = rng.integers(0, classes, (5, 6)).astype(dtype)
    matrix = ConfusionMatrix(classes, 100)
    matrix.update(prediction, label)
    expected = [[int(((label == i) & (prediction == j)).sum()) for j in range(classes)] for i in range(classes)]
    assert matrix.matrix.tolist() == expected
    for i in range(classes):
        union = int(((label == i) | ((prediction == i) & (label != 100))).sum())
        assert matrix.iou()[i] == pytest.approx(expected[i][i] / union if union else math.nan, nan_ok=True)


def test_merge_equals_one_matrix_over_all():
    rng = np.random.default_rng(1)
    whole, parts = ConfusionMatrix(5, 255), [ConfusionMatrix(5, 255), ConfusionMatrix(5, 255)]
    for i in range(6):
        pair = rng.integers(0, 5, (2, 9, 9))
        whole.update(*pair)
        parts[i % 2].update(*pair)
    parts[0].merge(parts[1])
    np.testing.assert_array_equal(parts[0].matrix, whole.matrix)
    with pytest.raises(ValueError, match=r"cannot merge .*\(4, 255\) into \(5, 255\)"):
        whole.merge(ConfusionMatrix(4, 255))


@pytest.mark.filterwarnings("error")
def test_nothing_counted_is_nan_without_warnings():
    matrix = ConfusionMatrix(3, 255)
    matrix.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    matrix.update(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8))
    assert np.isnan(matrix.iou()).all()
    assert math.isnan(matrix.miou())
    assert math.isnan(matrix.pixel_accuracy())
    assert math.isnan(matrix.frequency_weighted_iou())


def test_large_counts_do_not_overflow():
    matrix = ConfusionMatrix(2, 255)
    matrix.matrix[:] = 2**40
    assert matrix.iou() == pytest.approx([1 / 3, 1 / 3])


def test_bad_input():
    matrix = ConfusionMatrix(3, 255)
    good = np.zeros((2, 3), np.int64)
    with pytest.raises(TypeError, match="prediction is float32, expected an integer type"):
        matrix.update(good.astype(np.float32), good)
    with pytest.raises(TypeError, match="label is bool"):
        matrix.update(good, good.astype(bool))
    with pytest.raises(ValueError, match=r"prediction is \(2, 4\), label is \(2, 3\); expected the same"):
        matrix.update(np.zeros((2, 4), int), good)
    with pytest.raises(ValueError, match=r"prediction is \(6,\)"):
        matrix.update(good.ravel(), good.ravel())
    with pytest.raises(ValueError, match=r"prediction holds ids from 3 to 3 at labelled pixels; expected 0 to 2$"):
        matrix.update(good + 3, good)
    with pytest.raises(ValueError, match=r"label holds ids from -1 to -1 .*expected 0 to 2 or 255"):
        matrix.update(good, good - 1)
    assert matrix.matrix.sum() == 0
    with pytest.raises(ValueError, match="ignore_index is 2, one of the 3 classes"):
        ConfusionMatrix(3, 2)
    with pytest.raises(ValueError, match="num_classes is 0"):
        ConfusionMatrix(0, 255)


def test_importable_alone():
    """The file runs without the package, and brings nothing heavy with it."""
    code = (
        "import sys, runpy; "
        f"names = runpy.run_path({icda.metrics.__file__!r}); "
        "assert 'icda' not in sys.modules and 'torch' not in sys.modules; "
        "m = names['ConfusionMatrix'](2, 255); assert m.matrix.shape == (2, 2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
