"""Evaluations made up for the tests of the page: labels, predictions and confidences of no network."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from icda.data.classes import ClassSet
from icda.evaluation import Scored
from icda.metrics import ConfusionMatrix
from icda.report.collect import Collector, Pictures
from icda.report.compare import Other
from icda.report.page import report
from icda.scores import mean_scores, scores

HOSTILE = ('</script><img src=x onerror="hacked=1">', "a\"b'c\\d&amp;", "Zürich 夜 \u202e", "<!--", "{{7*7}}")
MEAN, STD = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])


def classes_of(count: int, names: Sequence[str] | None = None) -> ClassSet:
    """Classes of distinct colours."""
    palette = [tuple(round(255 * v) for v in colorsys.hsv_to_rgb(k / count, 0.8, 0.9)) for k in range(count)]
    return ClassSet("made up", tuple(names or (f"class {k}" for k in range(count))), tuple(palette), 255, ())


def scored(
    index: int, classes: ClassSet, right: float, size: tuple[int, int] = (24, 40), labelled: bool = True
) -> Scored:
    """An image of blocks, of which a share is predicted right."""
    generator = np.random.default_rng(index)
    blocks = generator.integers(0, len(classes), (size[0] // 4, size[1] // 4), np.uint8)
    label = np.kron(blocks, np.ones((4, 4), np.uint8))
    other = (label + generator.integers(1, len(classes), label.shape, np.uint8)) % len(classes)
    prediction = np.where(generator.random(label.shape) < right, label, other).astype(np.uint8)
    label[:2] = classes.ignore_index
    if not labelled:
        label[:] = classes.ignore_index
    confidence = generator.uniform(1 / len(classes), 1, label.shape).astype(np.float32)
    matrix = ConfusionMatrix(len(classes), classes.ignore_index)
    matrix.update(prediction, label)
    levels = generator.uniform(0.05, 0.9, (3, *size))
    image = torch.from_numpy((levels - MEAN[:, None, None]) / STD[:, None, None]).float()
    return Scored(index, image, label, prediction, confidence, matrix.matrix)


def collected(
    images: Iterable[Scored], classes: ClassSet, names: Sequence[str], pictures: Pictures | None
) -> tuple[dict[str, Any], Collector]:
    """One set of an ``eval.json``, and what the page shows of it."""
    images = list(images)
    collector = Collector(classes, MEAN, STD, names, pictures)
    matrix = ConfusionMatrix(len(classes), classes.ignore_index)
    for image in images:
        collector(image)
        matrix.matrix += image.counts
    for index in collector.settle():
        collector.again(images[index])
    entry = {**scores(matrix, classes), "images": len(images), "dataset": "made up val", **collector.figures()}
    return {**entry, "confusion_matrix": matrix.matrix.tolist()}, collector


def evaluation(
    count: int = 7,
    classes: ClassSet | None = None,
    names: Sequence[str] | None = None,
    sets: Sequence[str] = ("val",),
    each: int = 1,
    size: tuple[int, int] = (24, 40),
    unlabelled: Sequence[int] = (),
    distinct: int | None = None,
) -> tuple[dict[str, Any], dict[str, Collector]]:
    """What ``eval.json`` holds, and what was gathered of each set; ``distinct`` images come again and again."""
    classes = classes or classes_of(5)
    names = list(names or (f"drive/frame_{k:04d}" for k in range(count)))
    entries, collectors = {}, {}
    for name in sets:
        kinds = distinct or count
        images = [scored(k, classes, 0.2 + 0.6 * k / kinds, size, k not in unlabelled) for k in range(kinds)]
        images = [replace(images[k % kinds], index=k) for k in range(count)]
        entries[name], collectors[name] = collected(images, classes, names, Pictures(each, 640))
    result = {
        "sets": entries,
        "mean": mean_scores(entries),
        "absent": [],
        "checkpoint": "runs/x/best.pt",
        "step": 1000,
        "teacher": False,
    }
    return result, collectors


def written(
    folder: Path, result: dict[str, Any], collectors: dict[str, Collector], other: Other | None = None
) -> Path:
    """The page as a file."""
    path = folder / "index.html"
    path.write_text(report(result, collectors, other), encoding="utf-8")
    return path
