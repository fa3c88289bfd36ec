"""Choosing what is measured, and telling what was found."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from icda.benchmark.profiling import free_path, profile_call
from icda.benchmark.settings import ALL, CALLS, BenchmarkConfig, only, read_settings
from icda.benchmark.timing import Result, threads
from icda.device import pick_device
from icda.errors import UserError

log = logging.getLogger(__name__)


def _benchmark(name: str) -> Callable[[BenchmarkConfig], Result]:
    """``icda.benchmark.NAME.measure_NAME``, which is imported when it is called."""

    def call(config: BenchmarkConfig) -> Result:
        return getattr(import_module(f"icda.benchmark.{name}"), f"measure_{name}")(config)

    return call


BENCHMARKS: dict[str, Callable[[BenchmarkConfig], Result]] = {name: _benchmark(name) for name in CALLS}
"""What can be measured, by name."""


def benchmark(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Measure, and print a table and, as the last line, JSON.

    Args:
        cfg: Composed from ``conf/benchmark.yaml``.
        folder: The run's folder; nothing is written there but, if ``profile`` is set, a trace.

    Returns:
        What the last line holds: ``Result.summary``, with the settings that it was found at; of all benchmarks
        ``what`` and ``results``, a list of those.

    Raises:
        UserError: If a setting or the data cannot be used, or one of all benchmarks failed.
    """
    config = read_settings(cfg)
    pick_device(config.device)  # a mistake shows at once
    failed: dict[str, str] = {}
    if config.what == ALL:
        results, failed = _measure_all(config, folder)
        summary = {"what": ALL, "results": results}
        log.info("%s\n", _overview(results))
    else:
        summary, text = measure_one(config, folder)
        log.info("%s\n", text)
    log.info("%s", json.dumps(summary))
    if failed:
        raise UserError(f"not measured: {'; '.join(f'{name} ({reason})' for name, reason in failed.items())}")
    return summary


def measure_one(config: BenchmarkConfig, folder: Path) -> tuple[dict[str, Any], str]:
    """Run one benchmark.

    Args:
        config: Its settings.
        folder: The run's, for a trace.

    Returns:
        Its summary, and what to tell people.
    """
    device = pick_device(config.device)
    with threads(config.threads):
        config = replace(config, threads=torch.get_num_threads())
        result = BENCHMARKS[config.what](config)
        texts = [result.table()]
        if config.profile:
            assert result.call is not None, config.what
            path = free_path(folder, f"trace_{config.what}")
            texts.append(profile_call(result.call, device, path))
            texts.append(f"trace of a call: {path.absolute()}; https://ui.perfetto.dev shows it")
    settings = {name: getattr(config, name) for name in ("precision", "threads", "warmup", "steps")}
    return {**result.summary(config.what), "device": str(device), **settings}, "\n\n".join(texts)


def _measure_all(config: BenchmarkConfig, folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run every benchmark in a process of its own, so that none sees memory of another's.

    Returns:
        Summaries of those that ended well, and why the others did not.
    """
    results, failed = [], {}
    for name in BENCHMARKS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                summary, text = pool.submit(measure_one, only(config, name), folder).result()
            except UserError as error:
                failed[name] = str(error)
            except BrokenProcessPool:
                failed[name] = "its process was ended from outside, perhaps since the memory did not suffice"
            else:
                results.append(summary)
                log.info("%s\n", text)
    return results, failed


def _overview(results: list[dict[str, Any]]) -> str:
    """A table of all benchmarks, a line each."""
    head = ("seconds", "images/s", "GB", "GFLOP", "% of peak", "s x peak")
    lines = [f"{'all':<10}" + "".join(f"{name:>12}" for name in head)]
    for found in results:
        share = found["share_of_peak"]
        values = (
            found["seconds"]["median"],
            found["images_per_second"],
            found["peak_memory_gb"],
            found["gflop"],
            None if share is None else 100 * share,
            found["seconds_times_peak"],
        )
        cells = ("-" if value is None else f"{value:.4g}" for value in values)
        lines.append(f"{found['what']:<10}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)
