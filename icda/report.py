"""Scores as a table for people and as plain values for files."""

from __future__ import annotations

import math
from typing import Any

from icda.data.classes import ClassSet
from icda.metrics import ConfusionMatrix


def scores(matrix: ConfusionMatrix, classes: ClassSet) -> dict[str, Any]:
    """Scores as plain values, 0..1, ready for JSON; a class that does not occur has None.

    Returns:
        ``miou``, ``iou`` by class name, ``pixel_accuracy``, ``frequency_weighted_iou``, ``labelled_pixels`` and
        ``pixels`` by class name (labelled pixels of the class).
    """
    iou = {name: _plain(value) for name, value in zip(classes.names, matrix.iou(), strict=True)}
    pixels = dict(zip(classes.names, matrix.matrix.sum(1).tolist(), strict=True))
    return {
        "miou": _plain(matrix.miou()),
        "iou": iou,
        "pixel_accuracy": _plain(matrix.pixel_accuracy()),
        "frequency_weighted_iou": _plain(matrix.frequency_weighted_iou()),
        "labelled_pixels": int(matrix.matrix.sum()),
        "pixels": pixels,
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def percent(value: float | None) -> str:
    """A share 0..1 as percent with two digits; a dash for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def table(result: dict[str, Any]) -> str:
    """Per-class IoU and its mean in percent, as lines of text."""
    width = max(map(len, result["iou"]))
    lines = [f"{'class':<{width}}     IoU      pixels"]
    for name, value in result["iou"].items():
        lines.append(f"{name:<{width}}  {percent(value):>6}  {result['pixels'][name]:>10}")
    lines.append("-" * (width + 20))
    lines.append(f"{'mIoU':<{width}}  {percent(result['miou']):>6}")
    absent = [name for name, value in result["iou"].items() if value is None]
    if absent:
        lines.append(f"not in the mean, since neither labelled nor predicted: {', '.join(absent)}")
    return "\n".join(lines)
