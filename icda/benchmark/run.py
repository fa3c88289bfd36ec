"""Choosing what is measured, and telling what was found."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from icda.benchmark.cem import measure_cem
from icda.benchmark.data import measure_data
from icda.benchmark.settings import BenchmarkConfig
from icda.benchmark.timing import Result, threads
from icda.config import Check, checked

log = logging.getLogger(__name__)

BENCHMARKS: dict[str, Callable[[BenchmarkConfig], Result]] = {"data": measure_data, "cem": measure_cem}
"""What can be measured, by name."""

_CHECKS: tuple[Check, ...] = (
    ("what", lambda v: v in BENCHMARKS, f"one of {', '.join(BENCHMARKS)}"),
    ("dataset.sampling.crop", lambda v: len(v) == 2 and min(v) >= 32, "[height, width], each 32 or more"),
    *((key, lambda v: v >= 1, "1 or more") for key in ("images", "batch_size", "threads", "repeats")),
    *((key, lambda v: v >= 0, "0 or more") for key in ("warmup", "seed", "workers")),
)


def benchmark(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Measure, and print a table and, as the last line, JSON.

    Args:
        cfg: Composed from ``conf/benchmark.yaml``.
        folder: The run's folder; nothing is written there.

    Returns:
        What the last line holds (``Result.summary``).

    Raises:
        UserError: If a setting or the data cannot be used.
    """
    config = checked(BenchmarkConfig, cfg, _CHECKS)
    with threads(config.threads):
        result = BENCHMARKS[config.what](config)
    log.info("%s\n", result.table())
    summary = result.summary(config.what)
    log.info("%s", json.dumps(summary))
    return summary
