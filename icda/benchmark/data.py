"""How long the samples of a training step take to be read and prepared, and which part of it takes how long."""

from __future__ import annotations

import cProfile
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import albumentations as A
import numpy as np
from omegaconf import DictConfig
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from icda.benchmark.settings import BenchmarkConfig
from icda.benchmark.timing import Result, measure
from icda.data import loader, stream
from icda.data.base import SegmentationDataset
from icda.data.cache import ImageCache
from icda.data.demo import DemoCounts, make_demo
from icda.data.io import read_image, read_label, resize_image, resize_label
from icda.data.rare_class import RareClassSampler, class_statistics
from icda.data.setup import cem_pipeline, open_part
from icda.errors import UserError
from icda.transforms import (
    LiftIllumination,
    NormalizeInside,
    RelightIllumination,
    SpatialCEM,
    StyleIllumination,
    TranslatedIllumination,
)

DRAWN = {"source": "icda.data.Cityscapes", "target": "icda.data.DarkZurich"}
"""Adapters whose data sets can be drawn, by the part that they play."""


def measure_data(config: BenchmarkConfig) -> Result:
    """Read and prepare batches of source and target pairs in this process, first from files and then from a cache.

    All files are read before, so what is measured is work, not waiting for a disk. The result is about the cache.

    Args:
        config: What to read, and how often.

    Raises:
        UserError: If the data cannot be read, or no pictures can be drawn for the data set.
    """
    timings, columns = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = (_open(config, part, Path(folder)) for part in DRAWN)
        _fill_cache((source, target), Path(folder, "cache"))
        caches = source.cache, target.cache
        for name, (source.cache, target.cache) in {"files": (None, None), "cache": caches}.items():
            samples = loader.batches(_stream(config, source, target), config.batch, workers=0)
            timings[name] = measure(lambda feed=samples: next(feed), config.warmup, config.steps)
            columns[name] = _profile(lambda feed=samples: next(feed), config.steps)
    height, width = config.dataset.sampling.crop
    heading = (
        f"data: a batch of {config.batch} source and {config.batch} target pairs, {height} x {width}, "
        f"cem={config.cem.illumination}, threads {config.threads}; from files, and from a cache at training size"
    )
    parts = {part: {name: column[part] for name, column in columns.items()} for part in columns["files"]}
    return Result(heading, timings["cache"], 2 * config.batch, timings, parts)


def _open(config: BenchmarkConfig, part: str, folder: Path) -> SegmentationDataset:
    """A few images of source or target, from ``data_dir`` or drawn."""
    dataset, node = config.dataset, getattr(config.dataset, part)
    if node is None or node.get("size") is None:
        raise UserError(
            f"dataset={dataset.name} has no {part} with a size; what=data needs both source and target, as in "
            "dataset=darkzurich"
        )
    translated = config.cem.illumination == "translated"
    changes: dict[str, Any] = {"references": dataset.reference == "pairs"} if "references" in node else {}
    if "translations" in node and not translated:
        changes["translations"] = None
    if config.data_dir is not None:
        if dataset.prepare is not None:
            open_part(dataset.prepare)
    elif node["_target_"] != DRAWN[part] or translated:
        raise UserError(
            f"no pictures can be drawn for dataset={dataset.name} cem={config.cem.illumination}; give data_dir=, or "
            "take dataset=darkzurich cem=style"
        )
    else:
        changes["root"] = str(_draw(config, part, node, folder / part))
    opened = open_part(node, **changes)
    opened.keep(opened.samples[: config.images])
    return opened


def _draw(config: BenchmarkConfig, part: str, node: DictConfig, folder: Path) -> Path:
    """Draw a data set at twice its training size, as the real ones are; what they weigh as PNG is alike."""
    counts = DemoCounts(**{**dict.fromkeys(vars(DemoCounts()), 1), f"{part}_train": config.images})
    size = (2 * node.size[0], 2 * node.size[1])
    workers = max(config.workers, 1)
    made = make_demo(folder, seed=config.seed, counts=counts, size=size, workers=workers, progress=config.progress)
    return made / DRAWN[part].rpartition(".")[2]


def _fill_cache(datasets: tuple[SegmentationDataset, ...], folder: Path) -> None:
    """Store all that training reads, and make the data sets read that."""
    for dataset in datasets:
        cache = ImageCache(folder, dataset.root)
        for index, sample in enumerate(dataset.samples):
            readers = {"image": dataset.image, "reference": dataset.reference, "translation": dataset.translation}
            for name, read in readers.items():
                if (path := getattr(sample, name)) is not None:
                    cache.put(path, dataset.size, "image", read(index))
            if sample.label is not None:
                cache.put(sample.label, dataset.size, dataset.label_kind(sample), dataset.label(index))
        dataset.cache = cache


def _stream(config: BenchmarkConfig, source: SegmentationDataset, target: SegmentationDataset) -> stream.PairStream:
    """As many samples as are measured and profiled."""
    mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    sampling, classes = config.dataset.sampling, source.classes
    rare_classes = None
    if sampling.rare_classes:
        rare_classes = RareClassSampler(
            class_statistics(source), len(classes), temperature=sampling.temperature, min_pixels=sampling.min_pixels
        )
    return stream.PairStream(
        source,
        target,
        sampling,
        mean,
        std,
        length=config.batch * (config.warmup + 2 * config.steps),
        seed=config.seed,
        cem=cem_pipeline(config.cem, mean, std, classes.ignore_index),
        lift=A.Compose([LiftIllumination(p=1.0)]) if config.dataset.reference == "enhanced" else None,
        with_reference=True,
        rare_classes=rare_classes,
    )


def _parts() -> dict[str, tuple[Callable[..., Any], ...]]:
    """The functions in which a batch's time is spent, by part; none of them calls another."""
    kinds = (StyleIllumination, RelightIllumination, TranslatedIllumination)
    return {
        "read": (read_image, read_label, np.load),
        "resize": (resize_image, resize_label),
        "window, crop": (stream.PairStream._window, stream._cut),
        "illumination": tuple(kind.apply for kind in kinds),
        "day from night": (LiftIllumination.apply,),
        "jitter": (A.ColorJitter.apply,),
        "blur": (A.GaussianBlur.apply,),
        "normalise": (stream.normalize, NormalizeInside.apply),
        "spatial": (SpatialCEM.get_params_dependent_on_data, SpatialCEM.apply, SpatialCEM.apply_to_mask),
        "collate": (loader._collate,),
    }


def _profile(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """CPU milliseconds that each part of a call takes: medians over calls, which the profiler slows down a little."""
    codes = {name: {_code(function) for function in functions} for name, functions in _parts().items()}
    found: dict[str, list[float]] = {name: [] for name in (*codes, "other")}
    for _ in range(repeats):
        profile = cProfile.Profile(time.process_time)
        profile.runcall(call)
        seconds = {entry.code: entry.totaltime for entry in profile.getstats() if isinstance(entry.code, CodeType)}
        for name, of in codes.items():
            found[name].append(sum(seconds.get(code, 0.0) for code in of))
        total = max(seconds.values())  # of the call itself
        found["other"].append(total - sum(found[name][-1] for name in codes))
    return {name: 1e3 * statistics.median(values) for name, values in found.items()}


def _code(function: Callable[..., Any]) -> CodeType:
    """What the profiler knows a function by, below its decorators."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function.__code__
