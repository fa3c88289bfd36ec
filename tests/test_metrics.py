from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.labels import trainId2label
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import icda.metrics
from icda.metrics import ConfusionMatrix, UncertaintyIoU


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


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_accuracy_and_weighted_iou_are_means_over_pixels(seed, classes):
    """Pixel accuracy is the mean over labelled pixels of being right; weighted IoU that of the IoU of their class."""
    rng = np.random.default_rng(seed)
    pairs = [(rng.integers(0, classes, (4, 5)), rng.integers(0, classes + 1, (4, 5))) for _ in range(2)]
    matrix = ConfusionMatrix(classes, classes)
    for pair in pairs:
        matrix.update(*pair)
    pixels = [(int(p), int(c)) for pair in pairs for p, c in zip(*map(np.ravel, pair), strict=True) if c != classes]
    of_its_class = []
    for _, label in pixels:
        union = [pixel for pixel in pixels if label in pixel]
        of_its_class.append(sum(p == c for p, c in union) / len(union))
    right = [p == c for p, c in pixels]
    assert matrix.pixel_accuracy() == pytest.approx(sum(right) / len(pixels))
    assert matrix.frequency_weighted_iou() == pytest.approx(sum(of_its_class) / len(pixels))


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


@given(st.integers(0, 10_000), st.integers(1, 7), st.sampled_from([np.uint8, np.int16, np.int32, np.int64]))
def test_tensors_are_counted_as_arrays_are(seed, classes, dtype):
    rng = np.random.default_rng(seed)
    label, prediction = rng.integers(0, classes + 1, (5, 6)).astype(dtype), rng.integers(0, classes, (5, 6))
    label[label == classes] = 100
    prediction[label == 100] = rng.integers(0, 200)
    by_array, by_tensor = ConfusionMatrix(classes, 100), ConfusionMatrix(classes, 100)
    for _ in range(2):
        by_array.update(prediction, label)
        by_tensor.update_tensors(torch.from_numpy(prediction), torch.from_numpy(label))
    np.testing.assert_array_equal(by_tensor.matrix, by_array.matrix)
    assert by_tensor.matrix.dtype == np.int64 and by_array.matrix.sum() == 2 * (label != 100).sum()


def test_tensors_that_are_refused():
    matrix, good = ConfusionMatrix(3, 255), torch.zeros(2, 3, dtype=torch.uint8)
    for prediction, label, error, message in (
        (good.float(), good, TypeError, "prediction is float32, expected an integer type"),
        (good, good.bool(), TypeError, "label is bool"),
        (good[:1], good, ValueError, r"prediction is \(1, 3\), label is \(2, 3\)"),
        (good[0], good[0], ValueError, r"prediction is \(3,\)"),
        (good + 3, good, ValueError, "prediction holds ids from 3 to 3"),
        (good, good + 7, ValueError, "label holds ids from 7 to 7"),
    ):
        with pytest.raises(error, match=message):
            matrix.update_tensors(prediction, label)
    assert matrix.matrix.sum() == 0


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 200_000), (700, 300)])
def test_images_of_any_size_are_counted_whole(shape):
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 3, shape), rng.integers(0, 4, shape)
    matrix = ConfusionMatrix(3, 3)
    matrix.update(prediction, label)
    expected = [[((label == i) & (prediction == j)).sum() for j in range(3)] for i in range(3)]
    np.testing.assert_array_equal(matrix.matrix, expected)
    label[:, -1:] = 7
    if label.size:
        with pytest.raises(ValueError, match="label holds ids"):
            matrix.update(prediction, label)
    np.testing.assert_array_equal(matrix.matrix, expected)


# ---- IoU with uncertainty


def by_masks(images: list[tuple], classes: int, ignore: int, thresholds: np.ndarray) -> np.ndarray:
    """UIoU (T, C) from the definition, with one set of masks per threshold, class and image."""
    scores = np.full((len(thresholds), classes), np.nan)
    for t, threshold in enumerate(thresholds):
        for c in range(classes):
            tp = fn = fp = ti = fi = 0
            for prediction, confidence, label, invalid in images:
                low = confidence < confidence.dtype.type(threshold)
                if threshold <= 1 / classes:
                    low = np.zeros_like(invalid)
                valid = label != ignore
                tp += (valid & (label == c) & (prediction == c) & ~low).sum()
                fn += (valid & (label == c) & (prediction != c) & ~low).sum()
                fp += (valid & (label != c) & (prediction == c) & ~low).sum()
                ti += ((label == c) & invalid & low).sum()
                fi += ((label == c) & ~invalid & low).sum()
            if tp + fn + fp + ti + fi:
                scores[t, c] = (tp + ti) / (tp + ti + fp + fn + fi)
    return scores


def random_image(rng: np.random.Generator, classes: int, dtype: type, thresholds: np.ndarray) -> tuple:
    """Prediction, confidence, label, invalid mask; many confidences are equal to a threshold."""
    shape = (6, 7)
    label = rng.integers(0, classes + 1, shape)
    label[label == classes] = 255
    confidence = np.where(rng.random(shape) < 0.5, rng.choice(thresholds, shape), rng.random(shape)).astype(dtype)
    return rng.integers(0, classes, shape), confidence, label, rng.random(shape) < 0.4


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("own", [False, True])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(1, 5))
def test_uiou_is_that_of_masks_at_every_threshold(dtype, own, seed, classes):
    rng = np.random.default_rng(seed)
    metric = UncertaintyIoU(classes, 255, np.sort(rng.random(6)) if own else None)
    images = [random_image(rng, classes, dtype, metric.thresholds) for _ in range(2)]
    for image in images:
        metric.update(*image)
    expected = by_masks(images, classes, 255, metric.thresholds)
    np.testing.assert_array_equal(metric.uiou(), expected)
    means = [np.mean(row[~np.isnan(row)]) for row in expected]
    np.testing.assert_allclose(metric.muiou(), means, rtol=1e-12)
    assert metric.average() == pytest.approx(np.mean(means), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uiou_hand_computed(dtype):
    """0.7 as float32 is less than as float64: it must not be below the threshold 0.7 for either."""
    metric = UncertaintyIoU(2, 255, [0.5, 0.7, 1.0])
    metric.update(
        np.array([[0, 1, 1], [1, 0, 0], [0, 1, 0]]),
        np.array([[0.9, 0.6, 0.55], [0.7, 0.65, 0.5], [0.95, 1.0, 0.5]], dtype),
        np.array([[0, 0, 1], [1, 0, 255], [1, 1, 0]]),
        np.array([[False, True, True], [False, False, True], [True, False, True]]),
    )
    # At 0.7, class 0: TP 1, TI 2, FP 1, FN 0, FI 1; class 1: TP 2, TI 1, FP 0, FN 1, FI 0.
    np.testing.assert_allclose(metric.uiou(), [[3 / 5, 3 / 5], [3 / 5, 3 / 4], [2 / 4, 3 / 4]], rtol=1e-15)
    np.testing.assert_allclose(metric.muiou(), [0.6, 0.675, 0.625], rtol=1e-15)
    assert metric.average() == pytest.approx(1.9 / 3)


@pytest.mark.parametrize("bits", [0, 16], ids=["float32", "16 bits"])
@pytest.mark.parametrize("classes", [2, 3, 7, 11, 19, 23, 41])
def test_uiou_at_one_over_c_is_iou(classes, bits):
    """Also where all classes are alike, whose float32 probability 1/C may be below 1/C as float64."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(classes, 40, 50, generator=generator)
    logits[:, :10] = 0
    logits[:, 10:20] *= 1e-7
    confidence, prediction = (values.numpy() for values in torch.softmax(logits, 0).max(0))
    if bits:
        confidence = (confidence * (2**bits - 1)).astype(np.uint16) / np.float32(2**bits - 1)
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, prediction.shape)
    label[rng.random(label.shape) < 0.1] = 255
    metric, matrix = UncertaintyIoU(classes, 255), ConfusionMatrix(classes, 255)
    metric.update(prediction, confidence, label, rng.random(label.shape) < 0.3)
    matrix.update(prediction, label)
    assert metric.thresholds[0] == 1 / classes and metric.thresholds[-1] == 1
    np.testing.assert_array_equal(metric.uiou()[0], matrix.iou())
    assert metric.muiou()[0] == matrix.miou()
    assert (metric.uiou()[-1] != matrix.iou()).all()


def test_the_border_case_exists():
    """Without the comparison in the type of the confidences, float32(1/C) would be invalidated at 1/C for some C."""
    assert {c for c in (2, 3, 7, 11, 19, 23, 41) if float(np.float32(1 / c)) < 1 / c} == {41}


def test_uiou_in_limiting_cases():
    rng = np.random.default_rng(2)
    prediction, label = rng.integers(0, 4, (2, 30, 40))
    invalid = rng.random(label.shape) < 0.3
    confidence = rng.uniform(0.25, 0.99, label.shape).astype(np.float32)

    def uiou(prediction, confidence, invalid, thresholds=(0.3, 0.6, 1.0)):
        metric = UncertaintyIoU(4, 255, thresholds)
        metric.update(prediction, confidence, label, invalid)
        return metric.uiou()

    # All invalidated: what is left is the share of each class that people cannot make out either.
    shares = [invalid[label == c].mean() for c in range(4)]
    np.testing.assert_allclose(uiou(prediction, confidence, invalid)[-1], shares, rtol=1e-12)
    np.testing.assert_array_equal(uiou(prediction, confidence, np.ones_like(invalid))[-1], 1)
    # Nothing invalid to people: all invalidated is all wrong.
    nothing = np.zeros_like(invalid)
    np.testing.assert_array_equal(uiou(prediction, confidence, nothing)[-1], 0)
    assert (uiou(label, confidence, nothing)[1] < 1).all()
    # Unsure exactly of what people cannot make out, and right about the rest, for any threshold between.
    perfect = np.where(invalid, np.float32(0.29), np.float32(1))
    np.testing.assert_array_equal(uiou(np.where(invalid, prediction, label), perfect, invalid), 1)
    # Sure of everything: no threshold matters.
    matrix = ConfusionMatrix(4, 255)
    matrix.update(prediction, label)
    np.testing.assert_array_equal(uiou(prediction, np.ones_like(confidence), invalid), [matrix.iou()] * 3)


@pytest.mark.filterwarnings("error")
def test_uiou_of_absent_classes_and_unlabelled_pixels():
    metric = UncertaintyIoU(3, 255, [0.4, 0.8])
    metric.update(np.zeros((2, 2), int), np.full((2, 2), 0.5), np.full((2, 2), 255), np.ones((2, 2), bool))
    metric.update(np.zeros((0, 4), int), np.zeros((0, 4)), np.zeros((0, 4), int), np.zeros((0, 4), bool))
    assert metric.counts.sum() == 0
    assert np.isnan(metric.uiou()).all() and np.isnan(metric.muiou()).all() and math.isnan(metric.average())
    # Class 1 is predicted only, at confidence 0.5: a miss at 0.4, nothing at 0.8. Class 2 does not occur.
    metric.update(np.array([[0, 1]]), np.array([[1.0, 0.5]]), np.array([[0, 0]]), np.array([[False, False]]))
    np.testing.assert_array_equal(metric.uiou(), [[0.5, 0, np.nan], [0.5, np.nan, np.nan]])
    np.testing.assert_array_equal(metric.muiou(), [0.25, 0.5])


def test_merged_uiou_equals_one_over_all():
    rng = np.random.default_rng(3)
    whole, parts = UncertaintyIoU(4, 255), [UncertaintyIoU(4, 255), UncertaintyIoU(4, 255)]
    size = whole.counts.shape
    for i in range(6):
        image = random_image(rng, 4, np.float32, whole.thresholds)
        whole.update(*image)
        parts[i % 2].update(*image)
    parts[0].merge(parts[1])
    np.testing.assert_array_equal(parts[0].counts, whole.counts)
    assert whole.counts.shape == size and parts[0].average() == whole.average()
    with pytest.raises(ValueError, match=r"cannot merge .*\(5, 255\) into \(4, 255\)"):
        whole.merge(UncertaintyIoU(5, 255))
    with pytest.raises(ValueError, match=r"other thresholds: 2 from 0\.3 to 1 into 101 from 0\.25 to 1$"):
        whole.merge(UncertaintyIoU(4, 255, [0.3, 1]))


ZEROS, HALVES, NO = np.zeros((2, 3), int), np.full((2, 3), 0.5), np.zeros((2, 3), bool)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"prediction": HALVES}, TypeError, "prediction is float64, expected an integer type"),
        ({"confidence": ZEROS}, TypeError, "confidence is int64, expected a float type"),
        ({"invalid": ZEROS}, TypeError, "invalid is int64, expected bool"),
        ({"confidence": HALVES[:1]}, ValueError, r"confidence is \(1, 3\), label is \(2, 3\)"),
        ({"invalid": NO.ravel()}, ValueError, r"invalid is \(6,\), label is \(2, 3\)"),
        ({"label": ZEROS.ravel()}, ValueError, r"label is \(6,\); expected the same"),
        ({"prediction": ZEROS + 3}, ValueError, "prediction holds ids from 3 to 3"),
        ({"confidence": HALVES * 2.5}, ValueError, "confidence is from 1.25 to 1.25; expected"),
        ({"confidence": -HALVES}, ValueError, "confidence is from -0.5 to -0.5; expected"),
        ({"confidence": HALVES * np.nan, "label": ZEROS + 255}, ValueError, "confidence is nan at 6 pixels"),
    ],
)
def test_bad_input_to_uiou(given, error, message):
    metric = UncertaintyIoU(3, 255)
    with pytest.raises(error, match=message) as caught:
        metric.update(**{"prediction": ZEROS, "confidence": HALVES, "label": ZEROS, "invalid": NO, **given})
    assert "\n" not in str(caught.value) and metric.counts.sum() == 0


@pytest.mark.parametrize("thresholds", [[], [[0.5]], 0.5, [0.5, 0.4], [-0.1, 1], [0.5, 1.1], [0.5, math.nan]])
def test_bad_thresholds(thresholds):
    with pytest.raises(ValueError, match=r"^thresholds (is|are) .*expected"):
        UncertaintyIoU(3, 255, thresholds)


def test_bad_label_space_of_uiou():
    with pytest.raises(ValueError, match="ignore_index is 2, one of the 3 classes"):
        UncertaintyIoU(3, 2)
    with pytest.raises(ValueError, match="num_classes is 0"):
        UncertaintyIoU(0, 255)
