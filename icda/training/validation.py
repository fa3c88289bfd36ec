"""How a run scores its network on a labelled set: as ``scripts/eval.py`` does, in float32 and uncompiled."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from icda.config import TrainConfig
from icda.data.base import SegmentationDataset
from icda.evaluation import evaluate
from icda.models import SegmentationModel
from icda.scores import percent, scores
from icda.training.compilation import uncompiled
from icda.training.signals import StopRequest

log = logging.getLogger(__name__)


class Validation:
    """Scores a network on labelled sets, all in the same way.

    Args:
        model: The network.
        config: The run's.
        device: Where the network is.
        stop: Tells when to give up.
    """

    def __init__(
        self, model: SegmentationModel, config: TrainConfig, device: torch.device, stop: StopRequest
    ) -> None:
        self.model = model
        self.config = config
        self.device = device
        self.stop = stop

    def uncompiled(self) -> AbstractContextManager[None]:
        """Context in which networks run as they would without ``compile``."""
        return uncompiled() if self.config.compile else contextlib.nullcontext()

    def scores(self, dataset: SegmentationDataset) -> dict[str, Any] | None:
        """What ``icda.scores.scores`` says of a set; None if a signal came. All processes must call it.

        Args:
            dataset: Labelled images.

        Raises:
            UserError: If an image or a label cannot be used, or the memory does not suffice.
        """
        with self.uncompiled():
            matrix = evaluate(
                self.model,
                dataset,
                self.device,
                workers=self.config.workers,
                progress=self.config.progress,
                timeout=self.config.worker_timeout,
                stop=lambda: bool(self.stop),
            )
        return None if matrix is None else scores(matrix, dataset.classes)

    def held_out(self, datasets: Mapping[str, SegmentationDataset]) -> dict[str, dict[str, Any]] | None:
        """The scores of several sets by name, a line in the log for each; None if a signal came. See ``scores``.

        Args:
            datasets: Labelled sets, by name.
        """
        found: dict[str, dict[str, Any]] = {}
        for name, dataset in datasets.items():
            result = self.scores(dataset)
            if result is None:
                return None
            found[name] = result
            log.info("held out: mIoU %s on %s (%s)", percent(result["miou"]), name, dataset.name)
        return found
