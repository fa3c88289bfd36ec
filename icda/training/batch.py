"""What a training step is given: images and labels, and what was drawn for it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from icda.training.dacs import DacsDraws


@dataclass(frozen=True)
class Batch:
    """A batch of source and target pairs; B of each.

    Attributes:
        source: S, labelled day images (B, 3, H, W) float32, normalised.
        source_label: (B, H, W) int64.
        enhanced: E, its twin made by CEM, normalised; None where no term needs it.
        enhanced_label: (B, H, W) int64 or None.
        reference: R, day images of the target's places, normalised, or None.
        target: T, night images, normalised, or None.
    """

    source: Tensor
    source_label: Tensor
    enhanced: Tensor | None = None
    enhanced_label: Tensor | None = None
    reference: Tensor | None = None
    target: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in moved.items() if v is not None})


@dataclass(frozen=True)
class Draws:
    """Everything random in a step, apart from dropout and stochastic depth.

    Attributes:
        target_is_reference: Whether the pseudo labels and the mix are made on R instead of T.
        dacs: The mix.
        hidden: (B, 1, H, W) bool, what the student does not see of the masked image; None without its loss.
        reverse: The mix the other way round; None without its loss.
    """

    target_is_reference: bool
    dacs: DacsDraws
    hidden: Tensor | None = None
    reverse: DacsDraws | None = None
