"""How long the transforms of CEM take (method section 2)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import albumentations as A
import numpy as np
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from icda.benchmark.settings import BenchmarkConfig
from icda.benchmark.timing import Result, measure
from icda.data.classes import CITYSCAPES
from icda.data.demo.scene import source_sample, target_sample
from icda.data.setup import cem_pipeline
from icda.transforms import (
    LiftIllumination,
    RelightIllumination,
    SpatialCEM,
    StyleIllumination,
    TranslatedIllumination,
    reseed,
)


def measure_cem(config: BenchmarkConfig) -> Result:
    """The transforms of one source crop, one by one; the result is about the warp of image and label.

    Args:
        config: Its ``crop``, ``cem``, ``threads``, ``warmup`` and ``steps``; pictures are drawn.
    """
    height, width = config.crop
    rng = np.random.default_rng(config.seed)
    image, label = (a[:, :width].copy() for a in source_sample(rng, (height, max(width, 2 * height))))
    night = target_sample(rng, (height, 2 * height))[0]  # about as large as in training, where it is not cropped
    rows = {
        name: measure(_draws(A.Compose(transforms), data, config.seed), config.warmup, config.steps)
        for name, (transforms, data) in _steps(config, image, label, night).items()
    }
    heading = f"cem: one crop of {height} x {width} with its label, threads {config.threads}"
    return Result(heading, rows["spatial"], 1, rows)


Step = tuple[Sequence[A.BasicTransform], dict[str, np.ndarray]]


def _steps(config: BenchmarkConfig, image: np.ndarray, label: np.ndarray, night: np.ndarray) -> dict[str, Step]:
    """Transforms and what they are given, by name."""
    cem, fill = config.cem, CITYSCAPES.ignore_index
    mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    plain = replace(cem, illumination="none", spatial=False, blur_probability=1.0)
    jitter, blur, normalise = cem_pipeline(plain, mean, std, fill).transforms
    pair = {"image": image, "mask": label}
    aids = {"translated": {"translated": image}, "style": {"style_image": night}}

    def spatial(warps: Sequence[str]) -> Step:
        return [SpatialCEM(warps, cem.interpolation, fill_mask=fill, alpha=True)], pair  # as in training

    return {
        "spatial": spatial(cem.warps),
        **{f"  {warp}": spatial([warp]) for warp in cem.warps},
        "translated": ([TranslatedIllumination()], {**pair, **aids["translated"]}),
        "style": ([StyleIllumination(strength=cem.style_strength)], {**pair, **aids["style"]}),
        "relight": ([RelightIllumination()], pair),
        "jitter": ([jitter], pair),
        "blur": ([blur], pair),
        "normalise": ([normalise], pair),
        f"whole, {cem.illumination}": (
            cem_pipeline(cem, mean, std, fill).transforms,
            {**pair, **aids.get(cem.illumination, {})},
        ),
        "day from night": ([LiftIllumination(p=1.0)], {"image": night}),
    }


def _draws(pipeline: A.Compose, data: dict[str, np.ndarray], seed: int) -> Callable[[], object]:
    """A function that calls the pipeline, each time with the next seed."""
    seeds = itertools.count(seed)

    def call() -> object:
        reseed(pipeline, next(seeds))
        return pipeline(**data)

    return call
