"""How long the scores of a prediction take."""

from __future__ import annotations

import numpy as np

from icda.benchmark.settings import BenchmarkConfig
from icda.benchmark.timing import Result, measure
from icda.data.classes import CITYSCAPES
from icda.metrics import ConfusionMatrix


def measure_metric(config: BenchmarkConfig) -> Result:
    """Count the pixels of a prediction by label and prediction, all being random.

    Args:
        config: Its ``output``, the size of the prediction.
    """
    count, ignored = len(CITYSCAPES), CITYSCAPES.ignore_index
    rng = np.random.default_rng(config.seed)
    prediction = rng.integers(count, size=config.output, dtype=np.uint8)
    label = rng.choice(np.array([*range(count), ignored], np.uint8), config.output)
    matrix = ConfusionMatrix(count, ignored)

    def update() -> None:
        matrix.update(prediction, label)

    timing = measure(update, config.warmup, config.steps)
    rows = {"confusion matrix": timing, "mIoU": measure(matrix.miou, config.warmup, config.steps)}
    height, width = config.output
    heading = f"metric: a prediction of {height} x {width}, {count} classes, threads {config.threads}"
    return Result(heading, timing, 1, rows, call=update)
