"""What ``conf/benchmark.yaml`` composes."""

from __future__ import annotations

from dataclasses import dataclass

from icda.config import CemConfig, DatasetConfig


@dataclass(frozen=True)
class BenchmarkConfig:
    """What ``scripts/benchmark.py`` composes; the values' meaning stands in ``conf/benchmark.yaml``."""

    dataset: DatasetConfig
    cem: CemConfig
    what: str
    data_dir: str | None
    images: int
    batch_size: int
    threads: int
    warmup: int
    repeats: int
    seed: int
    workers: int
    progress: bool
