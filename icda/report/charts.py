"""Charts of the evaluation page as SVG in line, whose colours are those of the page's style."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from icda.report.html import text
from icda.scores import percent

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 46
_HISTOGRAM_BINS = 20


class Plot:
    """Axes of a chart, and what is drawn in them.

    Args:
        title: What a screen reader says of the whole chart.
        x: Values at the left and the right end.
        y: Values at the lower and the upper end.
        height: In units of the drawing.
        top: The upper end's distance from the upper edge.
    """

    def __init__(
        self, title: str, x: tuple[float, float], y: tuple[float, float], height: int = _HEIGHT, top: int = _TOP
    ) -> None:
        self.title, self.x, self.y, self.height, self.top = title, x, y, height, top
        self.parts: list[str] = []

    def across(self, value: float) -> float:
        """Where a value of the horizontal axis stands."""
        return _LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (_WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        """Where a value of the vertical axis stands."""
        inner = self.height - self.top - _BOTTOM
        return self.top + (1 - (value - self.y[0]) / (self.y[1] - self.y[0])) * inner

    def bar(self, left: float, right: float, value: float, name: str, kind: str = "bar", base: float = 0) -> None:
        """A bar from ``base`` to a value, with a name that is shown when it is pointed at."""
        x0, x1 = self.across(left), self.across(right)
        y0, y1 = sorted((self.up(base), self.up(value)))
        self.parts.append(
            f'<rect class="{kind}" x="{x0 + 1:.2f}" y="{y0:.2f}" width="{max(x1 - x0 - 2, 0.5):.2f}" '
            f'height="{y1 - y0:.2f}"><title>{text(name)}</title></rect>'
        )

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        path = " ".join(f"{self.across(x):.2f},{self.up(y):.2f}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{path}"/>')

    def dot(self, x: float, y: float, name: str) -> None:
        """A dot, with a name that is shown when it is pointed at."""
        self.parts.append(
            f'<circle class="dot" cx="{self.across(x):.2f}" cy="{self.up(y):.2f}" r="3">'
            f"<title>{text(name)}</title></circle>"
        )

    def label(self, x: float, y: float, words: str, anchor: str) -> None:
        """Words below a point, to its right (``start``) or to its left (``end``)."""
        at = f'x="{self.across(x) + (7 if anchor == "start" else -7):.2f}" y="{self.up(y) + 15:.2f}"'
        self.parts.append(f'<text class="value" text-anchor="{anchor}" {at}>{text(words)}</text>')

    def x_ticks(self, ticks: Sequence[tuple[float, str]], name: str) -> None:
        """Marks of the horizontal axis, and its name."""
        bottom = self.up(self.y[0])
        for value, words in ticks:
            self.parts.append(
                f'<text class="tick" text-anchor="middle" x="{self.across(value):.2f}" y="{bottom + 17:.2f}">'
                f"{text(words)}</text>"
            )
        middle = self.across((self.x[0] + self.x[1]) / 2)
        self.parts.append(
            f'<text class="axis" text-anchor="middle" x="{middle:.2f}" y="{bottom + 38:.2f}">{text(name)}</text>'
        )

    def y_ticks(self, ticks: Sequence[tuple[float, str]], name: str) -> None:
        """Marks of the vertical axis with lines across, and its name."""
        for value, words in ticks:
            y = self.up(value)
            self.parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>'
                f'<text class="tick" text-anchor="end" x="{_LEFT - 7}" y="{y + 4:.2f}">{text(words)}</text>'
            )
        middle = (self.up(self.y[0]) + self.up(self.y[1])) / 2
        self.parts.append(
            f'<text class="axis" text-anchor="middle" transform="translate(13 {middle:.2f}) rotate(-90)">'
            f"{text(name)}</text>"
        )

    def svg(self) -> str:
        """The whole drawing."""
        return (
            f'<svg class="chart" viewBox="0 0 {_WIDTH} {self.height}" role="img" aria-label="{text(self.title)}">'
            f"{''.join(self.parts)}</svg>"
        )


def _round_steps(top: float, count: int = 4) -> list[float]:
    """Round numbers from 0 up to ``top`` or just above, some ``count`` steps."""
    rough = max(top, 1e-9) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [float(step * i) for i in range(int(np.ceil(top / step - 1e-9)) + 1)]


_PERCENTS = [(tick / 100, str(tick)) for tick in range(0, 101, 20)]


def histogram(scores: Sequence[float | None]) -> str:
    """How many images have which mIoU of their own.

    Args:
        scores: 0..1, one an image; None is left out.
    """
    known = np.array([score for score in scores if score is not None])
    counts, edges = np.histogram(known, bins=_HISTOGRAM_BINS, range=(0, 1))
    steps = sorted({int(np.ceil(step)) for step in _round_steps(max(1, counts.max()))})
    plot = Plot(f"Histogram of the mIoU of {known.size} images", (0, 1), (0, steps[-1]))
    plot.y_ticks([(step, f"{step:,}") for step in steps], "images")
    plot.x_ticks(_PERCENTS, "mIoU of the image, %")
    for count, left, right in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        if count:
            plot.bar(left, right, count, f"{100 * left:.0f} to {100 * right:.0f} %: {count} images")
    if known.size:
        middle = float(np.median(known))
        plot.line([(middle, 0), (middle, steps[-1])], "rule")
        plot.label(middle, steps[-1], f"median {percent(middle)} %", "start" if middle < 0.7 else "end")
    return plot.svg()


def reliability(bins: Sequence[dict[str, Any]]) -> str:
    """Accuracy against confidence, and below it how the pixels are spread over confidences.

    Args:
        bins: As ``Collector.figures`` gives them.
    """
    plot = Plot("Reliability diagram: accuracy of the pixels of each bin of confidence", (0, 1), (0, 1), 360)
    plot.y_ticks(_PERCENTS, "accuracy, %")
    plot.x_ticks(_PERCENTS, "confidence, %")
    for one in bins:
        if one["pixels"]:
            name = (
                f"confidence {100 * one['from']:.1f} to {100 * one['to']:.1f} %: accuracy {percent(one['accuracy'])} "
                f"%, mean confidence {percent(one['confidence'])} %, {one['pixels']:,} pixels"
            )
            plot.bar(one["from"], one["to"], one["accuracy"], name)
            plot.bar(one["from"], one["to"], one["confidence"], name, "gap", one["accuracy"])
    plot.line([(0, 0), (1, 1)], "ideal")
    return plot.svg()


def bin_shares(bins: Sequence[dict[str, Any]]) -> str:
    """Share of the labelled pixels in each bin of confidence.

    Args:
        bins: As ``Collector.figures`` gives them.
    """
    total = sum(one["pixels"] for one in bins)
    shares = [one["pixels"] / total if total else 0 for one in bins]
    steps = _round_steps(max(*shares, 0.01), 2)
    plot = Plot("Share of the pixels in each bin of confidence", (0, 1), (0, steps[-1]), 150)
    plot.y_ticks([(step, f"{100 * step:g}") for step in steps], "pixels, %")
    plot.x_ticks(_PERCENTS, "confidence, %")
    for one, share in zip(bins, shares, strict=True):
        if one["pixels"]:
            plot.bar(one["from"], one["to"], share, f"{percent(share)} % of the pixels, {one['pixels']:,}", "share")
    return plot.svg()


def brightness(groups: Sequence[dict[str, Any]], images: Sequence[dict[str, Any]]) -> str:
    """mIoU of the images' quarters by brightness as bars, and every image as a dot, from the darkest on.

    The horizontal axis is the images' order, not their brightness: few images, or images that are nearly equally
    bright, would leave bars too thin to be seen.

    Args:
        groups: ``brightness`` of ``Collector.figures``.
        images: ``images`` of its ``image_wise``.
    """
    highest = max((one["miou"] or 0 for one in (*groups, *images)), default=0)
    rising = _round_steps(max(highest, 0.01))
    plot = Plot("mIoU against brightness", (0, max(1, len(images))), (0, rising[-1]))
    plot.y_ticks([(step, f"{100 * step:g}") for step in rising], "mIoU, %")
    edges = [0, *itertools.accumulate(group["images"] for group in groups)]
    spans = [f"{group['from']:.1f} to {group['to']:.1f}" for group in groups]
    middles = [(left + right) / 2 for left, right in itertools.pairwise(edges)]
    plot.x_ticks(list(zip(middles, spans, strict=True)), "images by their mean brightness (luma, 0 to 255)")
    for group, span, (left, right) in zip(groups, spans, itertools.pairwise(edges), strict=True):
        if group["miou"] is not None:
            name = f"brightness {span}, {group['images']} images: mIoU {percent(group['miou'])} %"
            plot.bar(left, right, group["miou"], name)
    for place, image in enumerate(sorted(images, key=lambda image: image["brightness"])):
        if image["miou"] is not None:
            words = f"{image['name']}: mIoU {percent(image['miou'])} %, brightness {image['brightness']:.1f}"
            plot.dot(place + 0.5, image["miou"], words)
    return plot.svg()


def uncertainty(thresholds: Sequence[float], values: Sequence[float | None]) -> str:
    """UIoU over the threshold below which pixels are called invalid.

    Args:
        thresholds: In ascending order, 0..1.
        values: UIoU at each; None where nothing was counted.
    """
    points = [(x, y) for x, y in zip(thresholds, values, strict=True) if y is not None]
    plot = Plot("Uncertainty-aware IoU at each threshold", (0, 1), (0, 1))
    plot.y_ticks(_PERCENTS, "UIoU, %")
    plot.x_ticks(_PERCENTS, "threshold of the confidence, %")
    if points:
        plot.line(points, "curve")
        best = max(points, key=lambda point: point[1])
        plot.dot(*best, f"best: {percent(best[1])} % at threshold {best[0]:.4f}")
    return plot.svg()
