"""Labels and confidences at full size: the same as resizing all logits at once."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from icda import inference
from icda.data.base import Sample, SegmentationDataset
from icda.data.classes import CAMVID
from icda.errors import UserError
from icda.evaluation import evaluate
from icda.inference import Views, enough_memory, labels_and_confidence_at, labels_at
from icda.metrics import UncertaintyIoU


@pytest.mark.parametrize("size", [(7, 9), (3, 4), (40, 61), (1, 1)])
@pytest.mark.parametrize("classes", [1, 2, 19])
def test_labels_and_confidence_are_those_of_all_logits_resized(size, classes):
    logits = 5 * torch.randn(2, classes, 7, 9, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    labels, confidence = labels_and_confidence_at(logits, size)
    assert labels.dtype == torch.uint8 and confidence.dtype == torch.float32
    assert torch.equal(labels, expected.argmax(1).to(torch.uint8))
    assert torch.equal(labels, labels_at(logits, size))
    torch.testing.assert_close(confidence, expected.softmax(1).max(1).values, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, before)


def test_of_equal_logits_the_first_class_wins():
    assert labels_at(torch.zeros(1, 3, 2, 2), (4, 4)).unique().tolist() == [0]


def test_large_logits_do_not_overflow():
    logits = torch.tensor([1e4, -1e4, 1e4]).view(1, 3, 1, 1)
    labels, confidence = labels_and_confidence_at(logits, (2, 2))
    assert labels.unique().tolist() == [0]
    torch.testing.assert_close(confidence, torch.full((1, 2, 2), 0.5))


def no_memory_python():
    raise MemoryError


def no_memory_numpy():
    np.empty((2**20, 2**20, 2**10))


def no_memory_opencv():
    cv2.resize(np.zeros((4, 4, 3), np.uint8), (2**31 - 1, 2**31 - 1))


def no_memory_torch():
    torch.empty(2**50)


def no_memory_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def no_memory_driver():
    raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize(
    "fill",
    [no_memory_python, no_memory_numpy, no_memory_opencv, no_memory_torch, no_memory_gpu, no_memory_driver],
)
def test_too_little_memory_is_a_mistake_that_can_be_mended(fill):
    with (
        pytest.raises(UserError, match=r"^the memory does not suffice .* at 5 x 6 \(height x width\); take less$"),
        enough_memory((5, 6), "take less"),
    ):
        fill()


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), enough_memory((5, 6)):
        raise RuntimeError("shapes differ")
    with pytest.raises(cv2.error, match=r"-215|empty"), enough_memory((5, 6)):
        cv2.resize(np.zeros((0, 4, 3), np.uint8), (3, 3))


class Full(torch.nn.Module):
    """A network for which no memory is left."""

    num_classes = len(CAMVID)
    mean, std = torch.zeros(3), torch.ones(3)

    def forward(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("scales", "message"),
    [((0.5,), r"at 32 x 48 .* as size=\[height,width\]$"), ((3, 1), r"at 192 x 288 .*, or smaller scales$")],
)
def test_too_little_memory_for_a_scale(scales, message):
    with pytest.raises(UserError, match=message):
        inference.segment(Full(), torch.zeros(1, 3, 64, 96), (8, 12), False, Views(scales=scales))
    with pytest.raises(UserError, match=message.replace("as size", "such as dataset.val.size")):
        mend = "give the data set a smaller one, such as dataset.val.size=[height,width]"
        with Views(scales=scales).enough_memory(torch.zeros(1, 3, 64, 96), mend):
            Full()(None)


@pytest.mark.parametrize("uncertainty", [False, True])
def test_evaluation_tells_of_too_little_memory_in_one_line(tmp_path, uncertainty):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 12, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "l.png"), np.zeros((8, 12), np.uint8))
    dataset = SegmentationDataset("one", CAMVID, tmp_path, [Sample("a", tmp_path / "a.png", tmp_path / "l.png")])
    scores = UncertaintyIoU(len(CAMVID), CAMVID.ignore_index) if uncertainty else None
    with pytest.raises(UserError, match=r"at 8 x 12 .* give the data set a smaller one"):
        evaluate(Full(), dataset, torch.device("cpu"), uncertainty=scores)


@pytest.mark.parametrize("size", [(40, 61), (3, 4)])
def test_mirrored_logits_decide_by_the_mean_of_probabilities(size):
    one, other = (3 * torch.randn(2, 5, 7, 9, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    both = [F.interpolate(x, size, mode="bilinear", align_corners=False).softmax(1) for x in (one, other)]
    expected = (both[0] + both[1]) / 2
    labels, confidence = labels_and_confidence_at(one, size, other)
    assert torch.equal(labels, expected.argmax(1).to(torch.uint8))
    assert torch.equal(labels, labels_at(one, size, other))
    torch.testing.assert_close(confidence, expected.max(1).values, rtol=1e-5, atol=1e-6)
    assert (labels != labels_at(one, size)).any()


def test_strips_do_not_show(monkeypatch):
    logits, size = torch.randn(2, 4, 11, 13, generator=torch.Generator().manual_seed(0)), (47, 52)
    whole = labels_and_confidence_at(logits, size)
    for pixels in (1, 2 * 52 * 3, 2 * 52 * 46):  # one row at a time, three, all but one
        monkeypatch.setattr(inference, "_CPU_STRIP", pixels)
        for found, expected in zip(labels_and_confidence_at(logits, size), whole, strict=True):
            assert torch.equal(found, expected)


class Local(torch.nn.Module):
    """Logits that depend on where in a window a pixel lies, so that the windows show."""

    mean, num_classes = torch.zeros(3), 2

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        ramp = torch.linspace(0, 1, images.shape[3])
        return torch.stack([images.sum(1) * ramp, images[:, 0] + ramp], 1)


def slid(model, image, window, stride):
    """MMSegmentation's slide_inference, after its published code."""
    (h_stride, w_stride), (h_crop, w_crop), (_, _, h_img, w_img) = stride, window, image.shape
    h_grids = max(h_img - h_crop + h_stride - 1, 0) // h_stride + 1
    w_grids = max(w_img - w_crop + w_stride - 1, 0) // w_stride + 1
    preds, count_mat = image.new_zeros((1, 2, h_img, w_img)), image.new_zeros((1, 1, h_img, w_img))
    for h_idx in range(h_grids):
        for w_idx in range(w_grids):
            y1, x1 = h_idx * h_stride, w_idx * w_stride
            y2, x2 = min(y1 + h_crop, h_img), min(x1 + w_crop, w_img)
            y1, x1 = max(y2 - h_crop, 0), max(x2 - w_crop, 0)
            crop = model(image[:, :, y1:y2, x1:x2])
            preds += F.pad(crop, (x1, w_img - x2, y1, h_img - y2))
            count_mat[:, :, y1:y2, x1:x2] += 1
    assert (count_mat == 0).sum() == 0
    return preds / count_mat


@pytest.mark.parametrize("window", [(16, 16), (9, 30), (64, 64), (40, 16)])
@pytest.mark.parametrize("stride", [(5, 7), (9, 16), (1, 16)])
@pytest.mark.parametrize("batch", [1, 700, 10**6])
def test_windows_are_those_of_mmsegmentation(window, stride, batch, monkeypatch):
    monkeypatch.setattr(inference, "_BATCH", batch)
    image = torch.randn(1, 3, 40, 53, generator=torch.Generator().manual_seed(0))
    model = Local()
    logits, mirrored = Views.of(window, stride, flip=False).logits(model, image)
    assert mirrored is None and len({shape[1:] for shape in model.seen}) == 1
    assert max(b * h * w for b, _, h, w in model.seen) <= max(batch, model.seen[0][2] * model.seen[0][3])
    torch.testing.assert_close(logits, slid(Local(), image, window, stride), rtol=1e-5, atol=1e-5)


def test_the_mirror_image_is_mirrored_back():
    image, model = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)), Local()
    logits, mirrored = Views(flip=True).logits(model, image)
    assert torch.equal(logits, model(image)) and torch.equal(mirrored.flip(3), model(image.flip(3)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, (8, 8), False), "stride=.* is given, but no window"),
        ((8, None, False), r"window=8 is not known; give \[height,width\] in pixels, or null"),
        (((8, 0), None, False), "window=.* is not known"),
        (((8, 8), (8.0, 8), False), "stride=.* is not known"),
        (((8, 8), (9, 8), False), r"stride=\[9, 8\] is larger than window=\[8, 8\]"),
        ((None, None, 1), "flip=1 is not known; give true or false"),
        ((None, None, False, []), r"scales=\[\] is not known; give numbers above 0, each once"),
        ((None, None, False, [1, 0]), r"scales=\[1, 0\] is not known"),
        ((None, None, False, [1.0, 1]), "each once"),
        ((None, None, False, 1.0), r"scales=1\.0 is not known"),
        ((None, None, False, [True]), r"scales=\[True\] is not known"),
        ((None, None, False, [1.0], 0), "temperature=0 is not known; give a number above 0"),
        ((None, None, False, [1.0], float("inf")), "temperature=inf is not known"),
        ((None, None, False, [1.0], float("nan")), "temperature=nan is not known"),
        ((None, None, False, [1.0], 1e-300), "temperature=1e-300 is not known"),
        ((None, None, False, [float("nan")]), "scales=.nan. is not known"),
    ],
)
def test_views_that_are_none(given, message):
    with pytest.raises(UserError, match=message):
        Views.of(*given)


def test_windows_move_by_two_thirds_of_their_size():
    assert Views.of([512, 768], None, False) == Views((512, 768), (341, 512))
    assert Views.of(None, None, False) == Views() and Views.of((1, 1), None, True) == Views((1, 1), (1, 1), True)


def averaged(model, image, size, views):
    """MMSegmentation's aug_test after its published code: each view's softmax at the labels' size, summed."""
    total, count = 0, 0
    for scale in views.scales:
        new = (int(image.shape[2] * scale + 0.5), int(image.shape[3] * scale + 0.5))
        scaled = F.interpolate(image, new, mode="bilinear", align_corners=False)
        for mirror in (False, True)[: 1 + views.flip]:
            shown = scaled.flip(3) if mirror else scaled
            logits = model(shown) if views.window is None else slid(model, shown, views.window, views.stride)
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False) / views.temperature
            probability = logits.softmax(1)
            total, count = total + (probability.flip(3) if mirror else probability), count + 1
    return total / count


SCALES = st.lists(st.sampled_from([0.4, 0.5, 0.75, 1.0, 1.25, 1.7]), min_size=1, max_size=4, unique=True)


@settings(max_examples=40, deadline=None)
@given(
    scales=SCALES,
    flip=st.booleans(),
    window=st.sampled_from([None, ((9, 11), (4, 7)), ((30, 60), (30, 60))]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 50)),
)
def test_views_decide_by_the_mean_of_probabilities(scales, flip, window, temperature, size):
    views = Views.of(*(window or (None, None)), flip, scales, temperature)
    image = 2 * torch.randn(1, 3, 20, 26, generator=torch.Generator().manual_seed(0))
    expected = averaged(Local(), image, size, views)
    labels, confidence = views.segment(Local(), image, size, confidence=True)
    assert labels.dtype == torch.uint8 and labels.shape == (1, *size)
    torch.testing.assert_close(confidence, expected.max(1).values, rtol=1e-4, atol=1e-5)
    clear = (expected[:, 0] - expected[:, 1]).abs() > 1e-4
    assert torch.equal(labels[clear], expected.argmax(1).to(torch.uint8)[clear])
    alone, nothing = views.segment(Local(), image, size)
    assert nothing is None and torch.equal(alone, labels)


@pytest.mark.parametrize("scales", [[1.0], [0.5, 1.0]])
def test_a_temperature_close_to_zero_leaves_no_doubt(scales):
    image = torch.randn(1, 3, 20, 26, generator=torch.Generator().manual_seed(0))
    labels, confidence = Views.of(None, None, True, scales, 1e-37).segment(Local(), 100 * image, (31, 29), True)
    votes = 2 * len(scales)
    torch.testing.assert_close(confidence * votes, (confidence * votes).round())
    assert (confidence >= 0.5).all() and set(labels.unique().tolist()) <= {0, 1}


def test_the_order_of_scales_does_not_matter_but_for_rounding():
    image = torch.randn(2, 3, 20, 26, generator=torch.Generator().manual_seed(0))
    one, other = (Views(scales=s).segment(Local(), image, (33, 44), True)[1] for s in ((0.5, 1, 2), (2, 0.5, 1)))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_of_several_scales_strips_do_not_show(monkeypatch):
    image = torch.randn(2, 3, 20, 26, generator=torch.Generator().manual_seed(0))
    views = Views(flip=True, scales=(0.5, 1.5))
    whole = views.segment(Local(), image, (47, 52), True)
    for pixels in (1, 2 * 52 * 3):
        monkeypatch.setattr(inference, "_CPU_STRIP", pixels)
        for found, expected in zip(views.segment(Local(), image, (47, 52), True), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_more_scales_need_no_more_memory(monkeypatch):
    made, zeros = [], torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **options: made.append(shape) or zeros(*shape, **options))
    image = torch.randn(1, 3, 20, 26)
    Views(flip=True, scales=(0.5, 1.0, 1.5, 2.0)).segment(Local(), image, (40, 52))
    assert [shape for shape in made if len(shape) == 4] == [(2, 1, 40, 52)]  # all classes at full size, once


def test_one_view_is_what_it_was_bit_for_bit():
    image = torch.randn(1, 3, 20, 26, generator=torch.Generator().manual_seed(0))
    for flip in (False, True):
        views = Views(flip=flip)
        logits, mirrored = views.logits(Local(), image)
        expected = labels_and_confidence_at(logits, (47, 52), mirrored)
        found = views.segment(Local(), image, (47, 52), True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@settings(max_examples=30, deadline=None)
@given(temperature=st.floats(0.05, 50))
def test_a_temperature_changes_confidences_but_no_label_of_one_view(temperature):
    image = torch.randn(1, 3, 20, 26, generator=torch.Generator().manual_seed(0))
    plain, sure = Views().segment(Local(), image, (31, 29), True)
    tempered, less = Views.of(None, None, False, [1.0], temperature).segment(Local(), image, (31, 29), True)
    assert torch.equal(tempered, plain)
    assert (less <= sure + 1e-6).all() if temperature >= 1 else (less >= sure - 1e-6).all()
    assert less.min() >= 0.5 - 1e-6  # two classes
