"""Scores as a table for people and as plain values for files."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

from icda.data.classes import ClassSet
from icda.metrics import ConfusionMatrix, UncertaintyIoU


def scores(matrix: ConfusionMatrix, classes: ClassSet) -> dict[str, Any]:
    """Scores as plain values, 0..1, ready for JSON; a class that does not occur has None.

    Returns:
        ``miou``, ``iou`` by class name, ``pixel_accuracy``, ``frequency_weighted_iou``, ``labelled_pixels`` and
        ``pixels`` by class name (labelled pixels of the class).
    """
    iou = {name: plain(value) for name, value in zip(classes.names, matrix.iou(), strict=True)}
    pixels = dict(zip(classes.names, matrix.matrix.sum(1).tolist(), strict=True))
    return {
        "miou": plain(matrix.miou()),
        "iou": iou,
        "pixel_accuracy": plain(matrix.pixel_accuracy()),
        "frequency_weighted_iou": plain(matrix.frequency_weighted_iou()),
        "labelled_pixels": int(matrix.matrix.sum()),
        "pixels": pixels,
    }


def plain(value: float) -> float | None:
    """A number as JSON can hold it: None for nan."""
    return None if math.isnan(value) else float(value)


def percent(value: float | None) -> str:
    """A share 0..1 as percent with two digits; a dash for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def table(result: dict[str, Any]) -> str:
    """Per-class IoU and its mean in percent, as lines of text."""
    width = max(map(len, (*result["iou"], "frequency-weighted IoU")))
    lines = [f"{'class':<{width}}     IoU      pixels"]
    for name, value in result["iou"].items():
        lines.append(f"{name:<{width}}  {percent(value):>6}  {result['pixels'][name]:>10}")
    lines.append("-" * (width + 20))
    for name, key in (
        ("mIoU", "miou"),
        ("frequency-weighted IoU", "frequency_weighted_iou"),
        ("pixel accuracy", "pixel_accuracy"),
    ):
        lines.append(f"{name:<{width}}  {percent(result[key]):>6}")
    absent = [name for name, value in result["iou"].items() if value is None]
    if absent:
        lines.append(f"not in the mean, since neither labelled nor predicted: {', '.join(absent)}")
    return "\n".join(lines)


def mean_scores(sets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over sets of what :func:`scores` gave for each; every set counts the same, whatever its size.

    Returns:
        ``miou``, ``pixel_accuracy``, ``frequency_weighted_iou``, and ``iou`` by class name; a class is averaged over
        the sets in which it has a score.
    """
    first = next(iter(sets.values()))
    return {
        **{
            key: _mean([s[key] for s in sets.values()])
            for key in ("miou", "pixel_accuracy", "frequency_weighted_iou")
        },
        "iou": {name: _mean([s["iou"][name] for s in sets.values()]) for name in first["iou"]},
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def sets_table(result: dict[str, Any]) -> str:
    """The sets of an ``eval.json``, a line each, and their mean, in percent."""
    rows = [(name, *_figures(s), str(s["images"])) for name, s in result["sets"].items()]
    rows.append((f"mean of {len(rows)} sets", *_figures(result["mean"]), ""))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'set':<{width}}    mIoU  frequency-weighted IoU  pixel accuracy  images"]
    lines += [f"{name:<{width}}  {miou:>6}  {fw:>22}  {accuracy:>14}  {n:>6}" for name, miou, fw, accuracy, n in rows]
    return "\n".join(lines)


def _figures(result: dict[str, Any]) -> tuple[str, str, str]:
    return tuple(percent(result[key]) for key in ("miou", "frequency_weighted_iou", "pixel_accuracy"))


def uncertainty_scores(metric: UncertaintyIoU) -> dict[str, Any]:
    """Uncertainty-aware IoU as plain values, 0..1, ready for JSON; None where nothing was counted.

    Returns:
        ``thresholds``, ``uiou`` (the mean over classes at each threshold), ``average_uiou`` (the mean of these) and
        ``best`` with the ``threshold`` of the highest ``uiou``, the lowest such if there are several. The best is
        chosen on the very labels it is scored on, so it is an upper bound of what a threshold fixed before gives.
    """
    uiou = metric.muiou()
    best = None if np.isnan(uiou).any() else int(uiou.argmax())
    return {
        "thresholds": metric.thresholds.tolist(),
        "uiou": [plain(value) for value in uiou],
        "average_uiou": plain(metric.average()),
        "best": {
            "threshold": None if best is None else float(metric.thresholds[best]),
            "uiou": None if best is None else float(uiou[best]),
        },
    }


def uncertainty_text(metric: UncertaintyIoU) -> str:
    """Uncertainty-aware IoU in percent, as lines of text: average, best, and that at 1/C where the grid has it."""
    result = uncertainty_scores(metric)
    grid, best = metric.thresholds, result["best"]
    steps = np.diff(grid)
    spacing = " in equal steps" if steps.size > 1 and np.allclose(steps, steps[0]) else ""
    name = "threshold" if grid.size == 1 else "thresholds"
    span = f"{grid[0]:.4f} to {grid[-1]:.4f}{spacing}" if grid.size > 1 else f"{grid[0]:.4f}"
    threshold = "-" if best["threshold"] is None else f"{best['threshold']:.4f}"
    lines = [
        f"average UIoU  {percent(result['average_uiou']):>6}  over {grid.size} {name}, {span}",
        f"best UIoU     {percent(best['uiou']):>6}  at threshold {threshold}, chosen on these labels",
    ]
    if grid[0] <= 1 / metric.num_classes:
        lines.append(f"UIoU at 1/C   {percent(result['uiou'][0]):>6}  nothing is invalidated: the mIoU")
    return "\n".join(lines)


def readable(result: dict[str, Any]) -> str:
    """Plain values as JSON for files: indented, with rows of numbers on one line each.

    >>> print(readable({"miou": 0.5, "matrix": [[1, 2], [3, None]]}), end="")
    {
      "miou": 0.5,
      "matrix": [
        [1, 2],
        [3, null]
      ]
    }
    """
    whole = json.dumps(result, indent=2, allow_nan=False)
    # A string cannot be taken for a row: in JSON it holds no line feed.
    row = re.compile(r"\[\n\s+((?:(?:-?\d[\d.eE+-]*|null),\n\s+)*(?:-?\d[\d.eE+-]*|null))\n\s+\]")
    return row.sub(lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", whole) + "\n"
