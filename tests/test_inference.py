"""Labels and confidences at full size: the same as resizing all logits at once."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from icda.data.base import Sample, SegmentationDataset
from icda.data.classes import CAMVID
from icda.errors import UserError
from icda.evaluation import evaluate
from icda.inference import enough_memory, labels_and_confidence_at, labels_at
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


@pytest.mark.parametrize("uncertainty", [False, True])
def test_evaluation_tells_of_too_little_memory_in_one_line(tmp_path, uncertainty):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 12, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "l.png"), np.zeros((8, 12), np.uint8))
    dataset = SegmentationDataset("one", CAMVID, tmp_path, [Sample("a", tmp_path / "a.png", tmp_path / "l.png")])
    scores = UncertaintyIoU(len(CAMVID), CAMVID.ignore_index) if uncertainty else None
    with pytest.raises(UserError, match=r"at 8 x 12 .* give the data set a smaller one"):
        evaluate(Full(), dataset, torch.device("cpu"), uncertainty=scores)
