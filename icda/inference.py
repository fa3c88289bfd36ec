"""From logits to labels at full size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from icda.errors import UserError
from icda.models import SegmentationModel


def labels_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Train ids of logits brought bilinearly to a size (method section 4).

    The same labels as resizing all logits and taking the argmax, but the classes are resized one after the other,
    which needs a tenth of the memory (a photograph of 12 megapixels has 0.9 GB of logits) and less time on a CPU.

    Args:
        logits: (B, C, H, W) float.
        size: Height and width (h, w) of the labels.

    Returns:
        (B, h, w) uint8; of equal logits the first class.
    """
    best = _resized(logits, 0, size)
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for k in range(1, logits.shape[1]):
        other = _resized(logits, k, size)
        labels.masked_fill_(other > best, k)
        best = torch.maximum(best, other)
    return labels


def labels_and_confidence_at(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Train ids as ``labels_at`` gives them, and the softmax probability of each.

    Args:
        logits: (B, C, H, W) float.
        size: Height and width (h, w) of the labels.

    Returns:
        Train ids (B, h, w) uint8 and probabilities (B, h, w) of the logits' type, from 1 / C to 1.
    """
    best = _resized(logits, 0, size)
    labels = torch.zeros_like(best, dtype=torch.uint8)
    total = torch.ones_like(best)  # sum over the classes so far of exp(logit - best)
    for k in range(1, logits.shape[1]):
        other = _resized(logits, k, size)
        labels.masked_fill_(other > best, k)
        higher = torch.maximum(best, other)
        total.mul_(best.sub_(higher).exp_()).add_(other.sub_(higher).exp_())
        best = higher
    return labels, total.reciprocal_()


def _resized(logits: Tensor, k: int, size: tuple[int, int]) -> Tensor:
    """Logits of class k at a size, (B, h, w); a tensor of its own."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits[:, k].clone()
    return F.interpolate(logits[:, k : k + 1], tuple(size), mode="bilinear", align_corners=False)[:, 0]


@contextmanager
def enough_memory(size: tuple[int, ...], mend: str = "give a smaller one as size=[height,width]") -> Iterator[None]:
    """Where the memory does not suffice inside a ``with`` block, say so in one line.

    Args:
        size: Height and width at which a picture enters the network.
        mend: What to do.

    Raises:
        UserError: Instead of what Python, NumPy, OpenCV and PyTorch raise.
    """
    try:
        yield
    except (MemoryError, RuntimeError, cv2.error) as error:
        if not _tells_of_memory(error):
            raise
        raise UserError(
            f"the memory does not suffice for a picture that enters the network at {size[0]} x {size[1]} (height x "
            f"width); {mend}"
        ) from error


def _tells_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    # PyTorch has a type of its own for a GPU's memory alone.
    return any(words in str(error) for words in ("allocate", "out of memory"))


@torch.inference_mode()
def segment(
    model: SegmentationModel, entering: Tensor, size: tuple[int, int], confidence: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Segment one picture.

    Args:
        model: In evaluation mode.
        entering: The picture as it enters, normalised, (1, 3, h, w) float32, on any device.
        size: Height and width (H, W) of the result.
        confidence: Whether the softmax probabilities are wanted, too.

    Returns:
        Train ids (H, W) uint8, and their probabilities (H, W) float32 or None.

    Raises:
        UserError: If the memory does not suffice.
    """
    with enough_memory(tuple(entering.shape[2:])):
        logits = model(entering.to(model.mean.device))
        if not confidence:
            return labels_at(logits, size)[0].cpu().numpy(), None
        labels, probability = labels_and_confidence_at(logits, size)
        return labels[0].cpu().numpy(), probability[0].float().cpu().numpy()
