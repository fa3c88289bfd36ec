"""The mean teacher: a running average of the student that writes pseudo labels (method sections 7.1 and 7.7)."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("batch", "student")
"""What a teacher's batch norm may use."""


def use_batch_statistics(module: nn.Module) -> None:
    """Put batch norm on the statistics of the batch at hand, and everything else in evaluation mode."""
    for part in module.modules():
        part.training = isinstance(part, _BatchNorm)


class MeanTeacher(nn.Module):
    """Exponential moving average of a model's parameters.

    Only parameters are averaged. Buffers are the teacher's own: its batch norm uses the statistics of the batch at
    hand and keeps running ones of its own (published), or uses the student's running ones. Dropout and stochastic
    depth are off, whatever mode is asked for.

    Attributes:
        model: The averaged model; none of its parameters takes a gradient.

    Args:
        student: The model to copy.
        momentum: m of the average once warmed up, 0..1.
        statistics: What its batch norm uses: those of the ``batch``, or the ``student``'s running ones.
    """

    def __init__(self, student: nn.Module, momentum: float = 0.999, statistics: str = "batch") -> None:
        super().__init__()
        assert statistics in STATISTICS, (statistics, STATISTICS)
        self.momentum = momentum
        self.statistics = statistics
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> MeanTeacher:
        """Batch norm on the statistics that it uses, and everything else in evaluation mode, for either ``mode``."""
        super().train(mode)
        if self.statistics == "batch":
            use_batch_statistics(self.model)
        else:
            self.model.eval()
        return self

    def decay(self, step: int) -> float:
        """m at this step, from 0: ``min(1 - 1 / (step + 1), momentum)``, so that step 0 copies the student."""
        return min(1 - 1 / (step + 1), self.momentum)

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """``theta_bar = m theta_bar + (1 - m) theta`` over all parameters; the student's statistics, if it uses them.

        Args:
            student: The model that was copied at the start.
            step: Training step, from 0.
        """
        ours, theirs = list(self.model.parameters()), [p.detach() for p in student.parameters()]
        assert len(ours) == len(theirs), (len(ours), len(theirs))
        torch._foreach_lerp_(ours, theirs, 1 - self.decay(step))
        if self.statistics == "student":
            for own, other in zip(self.model.buffers(), student.buffers(), strict=True):
                own.copy_(other)
