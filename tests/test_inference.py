"""Labels and confidences at full size: the same as resizing all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from icda.inference import labels_and_confidence_at, labels_at


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
