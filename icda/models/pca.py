"""PCA, prototype-based class alignment: one prototype per class, to which the pixels of both domains are pulled.

Paper: ICDA, section 3.4; method section 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icda.distributed import sum_over_ranks, world_size
from icda.training.precision import at_least_float32


class PCA(nn.Module):
    """Class prototypes, published in logit space, and the alignment loss against them (method section 6).

    Attributes:
        prototypes: Buffer (C, D) float32, row c the prototype of class c; zero until class c was seen. The same on
            every process.

    Args:
        num_classes: Classes C.
        momentum: Share of the newest batch in a prototype, 0..1. Published: 0.9, that is, a prototype is
            nine tenths the last batch in which its class occurred.
        tau: Temperature that cosine similarities are divided by. Published: 50.
        ignore_index: Label of pixels that feed no prototype.
        balanced: Whether every class counts alike in the loss, however many pixels it has. Published: every pixel.
        channels: Channels D of the maps that are aligned. None: as many as classes, that is, logits (published).
    """

    prototypes: Tensor

    def __init__(
        self,
        num_classes: int,
        momentum: float = 0.9,
        tau: float = 50.0,
        ignore_index: int = 255,
        balanced: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.tau = tau
        self.ignore_index = ignore_index
        self.balanced = balanced
        self.register_buffer("prototypes", torch.zeros(num_classes, channels or num_classes))

    @torch.no_grad()
    def update(self, maps: Tensor, labels: Tensor) -> None:
        """Move the prototype of every class that occurs to the mean over its pixels, over all processes.

        Args:
            maps: (B, D, H, W) float, logits of the enhanced source image's night-like features, or what else has a
                vector for each pixel.
            labels: (B, h, w) int64 class ids or ``ignore_index``; brought to H x W by nearest neighbour.
        """
        labels = _at(labels, maps.shape[2:]).flatten()
        pixels = at_least_float32(maps).permute(0, 2, 3, 1).flatten(0, 2)  # (B*H*W, D)
        # Ignored pixels are gathered in one row past the classes, which is then left out: no copy of the pixels.
        num_classes, channels = self.prototypes.shape
        index = torch.where(labels == self.ignore_index, num_classes, labels)
        sums = pixels.new_zeros(num_classes + 1, channels).index_add_(0, index, pixels)[:-1]
        counts = torch.bincount(index, minlength=num_classes + 1)[:-1, None]
        sums, counts = sum_over_ranks(sums), sum_over_ranks(counts)
        updated = self.momentum * sums / counts.clamp(min=1) + (1 - self.momentum) * self.prototypes
        self.prototypes.copy_(torch.where(counts > 0, updated, self.prototypes))

    def forward(self, maps: Tensor, labels: Tensor | None = None) -> Tensor:
        """The alignment loss: cross entropy of similarities to the prototypes; the prototypes take no gradient.

        Args:
            maps: (B, D, H, W) float.
            labels: Classes that pixels are pulled to, (B, h, w) int64, brought to H x W by nearest neighbour; ignored
                ones cost nothing, but count in the mean. None, for logits: their own argmax, for every pixel, those
                without a label included (published).

        Returns:
            Scalar float32 (float64 for float64 maps): the mean over pixels or, if ``balanced``, over the classes
            that occur in the batches of all processes, of the mean over their pixels.
        """
        maps = at_least_float32(maps)
        labels = maps.argmax(1) if labels is None else _at(labels, maps.shape[2:])
        with torch.autocast(maps.device.type, enabled=False):  # it would take the similarities to half precision
            directions = F.normalize(self.prototypes, dim=1)  # a zero prototype stays zero: similarity 0
            similarity = F.conv2d(F.normalize(maps, dim=1), directions[:, :, None, None])  # (B, C, H, W)
            cost = F.cross_entropy(similarity / self.tau, labels, ignore_index=self.ignore_index, reduction="none")
        return (cost * self._balance(labels)).sum() if self.balanced else cost.mean()

    def _balance(self, labels: Tensor) -> Tensor:
        """What each pixel's cost counts, (B, H, W) float32; the average over processes is the mean over classes."""
        known = labels != self.ignore_index
        counts = sum_over_ranks(torch.bincount(labels[known], minlength=len(self.prototypes)))
        each = world_size() / (counts.clamp(min=1) * (counts > 0).sum().clamp(min=1))
        return torch.where(known, each[torch.where(known, labels, 0)], 0)


def _at(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (B, h, w) at another size (H, W), by nearest neighbour."""
    if labels.shape[1:] == torch.Size(size):
        return labels
    return F.interpolate(labels[:, None].float(), tuple(size), mode="nearest")[:, 0].long()
