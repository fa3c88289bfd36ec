"""Small benchmarks, for the tests."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from conftest import CONF, TINY
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from icda.benchmark import benchmark

COMMON = {
    "what",
    "seconds",
    "images_per_second",
    "peak_memory_gb",
    "gflop",
    "peak_gflops",
    "share_of_peak",
    "seconds_times_peak",
    "cpu_seconds",
    "rows",
}
SMALL = (
    "dataset=demo",
    "model=icda_small",
    *(option for option in TINY if option.startswith(("dataset.", "model."))),
    "device=cpu",
    "batch=1",
    "size=[64,96]",
    "output=[128,192]",
    "warmup=1",
    "steps=2",
    "images=2",
    "workers=0",
    "progress=false",
)


def composed(*overrides: str) -> DictConfig:
    """``conf/benchmark.yaml`` with settings for a second's work, and the ones given."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("benchmark", [*SMALL, *overrides])


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += record.getMessage().splitlines()


def run_benchmark(folder: Path, *overrides: str) -> tuple[dict[str, Any], list[str]]:
    """A small benchmark's summary, and the lines it printed."""
    logger, seen = logging.getLogger("icda.benchmark"), _Lines()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(seen)
    try:
        summary = benchmark(composed(*overrides), folder)
    finally:
        logger.removeHandler(seen)
        logger.setLevel(level)
    return summary, seen.lines
