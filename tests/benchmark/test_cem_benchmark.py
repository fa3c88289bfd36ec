"""The benchmark of CEM: its rows, and that what is warped is what training warps."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from benchmark_runs import COMMON, composed, run_benchmark
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from icda.benchmark.cem import _steps
from icda.benchmark.settings import read_settings
from icda.data.classes import CITYSCAPES
from icda.data.demo.scene import source_sample
from icda.data.setup import cem_pipeline
from icda.transforms import WARPS, reseed


def test_rows_and_result(tmp_path: Path) -> None:
    summary, lines = run_benchmark(tmp_path, "what=cem", "cem=relight")
    assert json.loads(lines[-1]) == summary and set(summary) >= COMMON and summary["what"] == "cem"
    names = ["spatial", *WARPS, "translated", "style", "relight"]
    names += ["jitter", "blur", "normalise", "whole, relight", "day from night"]
    assert list(summary["rows"]) == names
    assert all(any(re.match(rf" *{re.escape(name)}\s+\d+\.\d\d", line) for line in lines) for name in names)
    assert summary["rows"]["spatial"] == summary["seconds"]["median"]
    assert summary["images_per_second"] == pytest.approx(1 / summary["seconds"]["median"])


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_the_steps_make_what_the_pipeline_makes(interpolation: str) -> None:
    """Jitter, warp and normalisation as they are timed, one after the other, are the pipeline without a blur."""
    config = read_settings(composed("what=cem", f"cem.interpolation={interpolation}", "cem.blur_probability=0"))
    config = replace(config, cem=replace(config.cem, illumination="none"))
    image, label = source_sample(np.random.default_rng(0), tuple(config.crop))
    steps = _steps(config, image, label, image)
    ours = A.Compose([step for name in ("jitter", "spatial", "normalise") for step in steps[name][0]])
    whole = cem_pipeline(config.cem, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, CITYSCAPES.ignore_index)
    for seed in range(3):
        results = []
        for pipeline in (ours, whole):
            reseed(pipeline, seed)
            results.append(pipeline(image=image, mask=label))
        assert (results[0]["mask"] != label).any() and not (results[0]["image"] == 0).all()
        for key in ("image", "mask"):
            np.testing.assert_array_equal(results[0][key], results[1][key])
