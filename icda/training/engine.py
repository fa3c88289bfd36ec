"""One step of the optimiser: passes of the method, in as many processes and in the precision that are asked for."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from icda import distributed
from icda.config import ScheduleConfig
from icda.errors import UserError
from icda.training.diagnostics import gradient_norms
from icda.training.guard import Guard, snapshot
from icda.training.optimizer import lr_factor, set_lr
from icda.training.precision import Precision
from icda.training.step import Batch, Draws, TrainStep

log = logging.getLogger(__name__)


class Engine:
    """Takes the steps of a run; what is random in one is a function of the seed and its number.

    Attributes:
        norms: Of the last step's gradient, by part of the student (``icda.training.diagnostics.gradient_norms``).

    Args:
        method: Losses and gradients.
        optimizer: Of the student's parameters.
        precision: Autocast and loss scale.
        guard: Keeps the batches whose loss is not finite.
        schedule: Batch, passes a step, clipping, learning rates.
        seed: Of the run.
        device: Where the method is.
    """

    def __init__(
        self,
        method: TrainStep,
        optimizer: Optimizer,
        precision: Precision,
        guard: Guard,
        schedule: ScheduleConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self.method = method
        self.optimizer = optimizer
        self.precision = precision
        self.guard = guard
        self.schedule = schedule
        self.seed = seed
        self.device = device
        self.norms: dict[str, float] = {}
        self.parallel: nn.Module = method
        if distributed.world_size() > 1:
            # The method takes the gradients of all its branches but the last inside its forward pass; DDP leaves
            # them alone, and averages the sum in the backward pass of the last, which reaches every parameter. Batch
            # norm, prototypes and draws are those of the joined batch by themselves, so no buffer is copied.
            with warnings.catch_warnings():  # a new name for broadcast_buffers, which earlier versions do not know
                warnings.filterwarnings("ignore", "`?broadcast_buffers", FutureWarning)
                self.parallel = DistributedDataParallel(method, broadcast_buffers=False, gradient_as_bucket_view=True)

    def step(self, batches: Iterator[dict[str, Tensor]], step: int) -> dict[str, Tensor]:
        """Take one step.

        Args:
            batches: Gives the step's ``schedule.accumulate`` batches of this process.
            step: Training step, from 0.

        Returns:
            The terms, averaged over the passes; empty if the step was skipped.

        Raises:
            StopIteration: If the batches end, as they do after a signal; nothing has changed.
            UserError: If a term or the gradient is not finite, and as many steps as may be were skipped before.
        """
        schedule, student, scaler = self.schedule, self.method.student, self.precision.scaler
        set_lr(self.optimizer, lr_factor(step, schedule.max_steps, schedule.warmup_steps))
        # All before the first pass, so that where they end, or a pass is broken, the run stands between two steps.
        ours = [Batch(**next(batches)) for _ in range(schedule.accumulate)]
        undo = snapshot(self.method, self.method.teacher) if self.guard.max_skipped else None
        terms: dict[str, Tensor] = {}
        for number, batch in enumerate(batch.to(self.device) for batch in ours):
            draws, new = self._pass(batch, step, number)
            if broken := self.guard.check(new):
                return self._skip(step, batch, draws, new, broken, undo)
            terms = {name: terms.get(name, 0) + value / schedule.accumulate for name, value in new.items()}
        scaler.unscale_(self.optimizer)
        self.norms = gradient_norms(student)
        # With fp16 a gradient that overflows is how the loss scale is found; below 1 it is not the scale.
        searches = scaler.is_enabled() and scaler.get_scale() > 1
        if not math.isfinite(self.norms["total"]) and not searches:
            scaler.update()  # it has taken note of this step's gradient
            return self._skip(step, batch, draws, terms, ["gradient"], undo)
        if schedule.clip_grad_norm is not None:
            clip_grad_norm_(student.parameters(), schedule.clip_grad_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return terms

    def _pass(self, batch: Batch, step: int, number: int) -> tuple[Draws, dict[str, Tensor]]:
        """Add the gradients of one batch; returns what was drawn, and the terms."""
        generator = np.random.default_rng([self.seed, step, number] if number else [self.seed, step])
        # Dropout and stochastic depth, which differ between processes.
        torch.manual_seed((int(generator.integers(2**63)) + distributed.rank()) % 2**63)
        draws = self.method.draw(generator, batch)
        scale = self.precision.loss_scale() / self.schedule.accumulate
        with self._gradients_stay_here() if number < self.schedule.accumulate - 1 else contextlib.nullcontext():
            try:
                with self.precision.autocast():
                    rest, terms = self.parallel(batch, step, draws, scale, first=number == 0)
                with warnings.catch_warnings():  # of depthwise convolutions, which could do with another layout
                    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
                    self.method.finish(rest)
            except Exception as error:
                from icda.training.compilation import explain_compile_error

                if (explained := explain_compile_error(error)) is not None:
                    raise explained from error
                raise
        return draws, terms

    def _gradients_stay_here(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.parallel is self.method else self.parallel.no_sync()

    def _skip(
        self,
        step: int,
        batch: Batch,
        draws: Draws,
        terms: dict[str, Tensor],
        broken: list[str],
        undo: Callable[[], None] | None,
    ) -> dict[str, Tensor]:
        """Leave out a step without a trace, or end the run where there were too many."""
        student, guard = self.method.student, self.guard
        guard.skip()
        path = guard.hold(
            batch, draws, terms, broken, step, distributed.rank(), student.mean, student.std, self.method.classes
        )
        if distributed.world_size() > 1:  # the terms are those of all; any process's batch may be the cause
            path = None
        if guard.exceeded:
            raise UserError(guard.text(broken, step, path))
        log.warning("%s", guard.text(broken, step, path))
        assert undo is not None, guard.max_skipped
        undo()
        self.optimizer.zero_grad(set_to_none=True)
        return {}
