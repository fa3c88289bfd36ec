"""What ``conf/benchmark.yaml`` composes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from icda.config import (
    CemConfig,
    DatasetConfig,
    LossConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
    least,
    validate,
)
from icda.errors import UserError
from icda.typed_config import Check, checked

ALL = "all"
"""Every benchmark, one after the other."""
CALLS = {
    "train": (1, 3),
    "infer": (1, 5),
    "cem": (3, 20),
    "data": (3, 20),
    "metric": (3, 20),
    "peers": (1, 3),
    "startup": (1, 3),
}
"""The benchmarks, with the calls of each before it measures, and those that it measures, unless the settings say."""
PROFILED = ("train", "infer", "metric")
"""Benchmarks of which ``profile=true`` writes a trace."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What ``scripts/benchmark.py`` composes; the values' meaning stands in ``conf/benchmark.yaml``.

    Where ``read_settings`` made it, ``crop`` is height and width, ``dataset.sampling.crop`` and
    ``schedule.batch_size`` are ``crop`` and ``batch``, and ``warmup`` and ``steps`` are numbers unless ``what`` is
    ``all``.
    """

    dataset: DatasetConfig
    model: ModelConfig
    loss: LossConfig
    schedule: ScheduleConfig
    cem: CemConfig
    what: str
    device: str
    precision: str
    no_grad_precision: str
    memory: str
    compile: bool
    crop: Any
    batch: int
    size: list[int]
    output: list[int]
    steps: int | None
    warmup: int | None
    threads: int | None
    profile: bool
    seed: int
    data_dir: str | None
    images: int
    workers: int
    progress: bool


def _pair(value: Any) -> list[int]:
    """Height and width of a setting that may be one number for both; empty if it is neither."""
    values = list(value) if isinstance(value, list | ListConfig) else [value, value]
    return values if len(values) == 2 and all(type(v) is int for v in values) else []


_CHECKS: tuple[Check, ...] = (
    ("what", lambda v: v in (*CALLS, ALL), f"one of {', '.join((*CALLS, ALL))}"),
    ("precision", lambda v: v in ("fp32", "bf16", "fp16"), "fp32, bf16 or fp16"),
    ("no_grad_precision", lambda v: v in ("auto", "bf16", "same"), "auto, bf16 or same"),
    ("memory", lambda v: v in ("normal", "low"), "normal or low"),
    ("crop", lambda v: min(_pair(v), default=0) >= 32, "a number or [height, width], each 32 or more"),
    *(
        (key, lambda v: min(_pair(v), default=0) >= 1, "[height, width], each 1 or more")
        for key in ("size", "output")
    ),
    *least(1, "images", "batch"),
    *least(0, "seed", "workers"),
    *((key, lambda v: v is None or v >= 1, "null, or 1 or more") for key in ("threads", "steps")),
    ("warmup", lambda v: v is None or v >= 0, "null, or 0 or more"),
)
# What a training is made of beside what a benchmark sets: nothing that it reads or writes.
_IDLE = {
    "data_dir": "",
    "prepared_dir": "",
    "score_last": [],
    "overlap": "warn",
    "worker_timeout": 0,
    "init": None,
    "resume": None,
    "keep": 1,
    "max_skipped": 0,
    "logger": "none",
    "panels": 0,
}


def read_settings(cfg: DictConfig) -> BenchmarkConfig:
    """The composed configuration of a benchmark as typed objects.

    Args:
        cfg: What Hydra composed from ``conf/benchmark.yaml``.

    Raises:
        UserError: If a key is unknown or missing, a value has the wrong type or is out of range, or two do not go
            together.
    """
    config = checked(BenchmarkConfig, cfg, _CHECKS)
    if config.profile and config.what not in (*PROFILED, ALL):
        raise UserError(
            f"profile=true, but what={config.what} is nothing to profile; leave it out, or give what="
            f"{', '.join(PROFILED)} or {ALL}"
        )
    resolved = OmegaConf.to_container(cfg, resolve=True)
    trained = {f.name: resolved[f.name] for f in fields(TrainConfig) if f.name in resolved}
    validate(OmegaConf.create({**trained, **_IDLE}))
    crop = _pair(config.crop)
    config = replace(
        config,
        crop=crop,
        dataset=replace(config.dataset, sampling=replace(config.dataset.sampling, crop=crop)),
        schedule=replace(config.schedule, batch_size=config.batch),
    )
    return config if config.what == ALL else only(config, config.what)


def only(config: BenchmarkConfig, what: str) -> BenchmarkConfig:
    """The settings for one benchmark, with a number of calls where none was given.

    Args:
        config: Made by ``read_settings``.
        what: The benchmark.
    """
    warmup, steps = CALLS[what]
    return replace(
        config,
        what=what,
        warmup=warmup if config.warmup is None else config.warmup,
        steps=steps if config.steps is None else config.steps,
        profile=config.profile and what in PROFILED,
    )


def train_settings(config: BenchmarkConfig) -> TrainConfig:
    """The settings of a training that a benchmark takes a step of; it reads and writes nothing.

    Args:
        config: Made by ``read_settings``.
    """
    own = {f.name: getattr(config, f.name) for f in fields(TrainConfig) if hasattr(config, f.name)}
    return TrainConfig(**{**own, **_IDLE})
