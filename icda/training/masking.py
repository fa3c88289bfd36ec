"""Masked images: what the student does not see of a target image, of which the teacher sees all.

Paper: "MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation", https://arxiv.org/abs/2212.01322.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from icda.distributed import rank, world_size


def draw_hidden(generator: np.random.Generator, labels: Tensor, block: int, share: float) -> Tensor:
    """Draw which squares of each image are hidden.

    With several processes it is drawn for the joined batch of all of them, and every process keeps what concerns its
    own images; all must call it, with batches of one size.

    Args:
        generator: Source of randomness, in the same state on every process.
        labels: Of the batch, (B, H, W); only the shape and the device are read.
        block: Side of a square in pixels; the last ones of a row or column may be cut off.
        share: Probability with which a square is hidden, 0..1, each by itself.

    Returns:
        (B, 1, H, W) bool, true where hidden.
    """
    images, height, width = labels.shape
    rows, columns = -(-height // block), -(-width // block)
    drawn = generator.random((images * world_size(), 1, rows, columns)) < share
    hidden = torch.from_numpy(drawn[rank() * images : (rank() + 1) * images]).to(labels.device)
    return hidden.repeat_interleave(block, 2).repeat_interleave(block, 3)[:, :, :height, :width]
