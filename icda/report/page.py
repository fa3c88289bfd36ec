"""The page that shows an evaluation to people: figures, charts, and the pictures themselves."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

import icda
from icda.data.classes import ClassSet
from icda.report import charts
from icda.report.collect import Collector
from icda.report.compare import Other, change, figure
from icda.report.html import ENCODING, asset, data_block, document, text
from icda.report.tables import class_table, confusion, image_table, marked, plain_table, signed
from icda.report.viewer import viewer
from icda.scores import percent
from icda.training.durable import write_whole

REPORT = Path("report") / "index.html"
"""The page, in the run's folder."""
_QUARTERS = ("darkest", "darker", "brighter", "brightest")


def write_report(
    path: Path, result: dict[str, Any], collected: dict[str, Collector], other: Other | None = None
) -> None:
    """Write the page.

    Args:
        path: Where it goes.
        result: What ``eval.json`` holds.
        collected: What was gathered of each set, by its name.
        other: Another scoring to show differences from; None shows none.

    Raises:
        OSError: If it cannot be written.
    """
    content = report(result, collected, other).encode(ENCODING)
    write_whole(path, lambda file: file.write(content))


def report(result: dict[str, Any], collected: dict[str, Collector], other: Other | None = None) -> str:
    """The page as text; arguments are those of :func:`write_report`."""
    names = list(result["sets"])
    parts, tabs = [], []
    for place, name in enumerate(names):
        tabs.append((place, name))
        parts.append(_part(place, name, result["sets"][name], collected[name], other))
    several = len(names) > 1
    body = "\n".join(
        (
            '<a class="skip" href="#content">To the figures</a>',
            _head(result, other),
            '<main id="content">',
            _overview(result, other) if several else "",
            _tabs(tabs) if several else "",
            *parts,
            "</main>",
            f"<footer>Made by icda {text(icda.__version__)}. Everything on this page is in the file itself; the "
            "same figures stand in <code>eval.json</code> beside it.</footer>",
        )
    )
    mean = percent(result["mean"]["miou"])
    title = f"mIoU {mean} % on {result['sets'][names[0]]['dataset'] if not several else f'{len(names)} sets'}"
    scripts = [asset("tables.js"), asset("viewer.js"), asset("report.js")]
    return document(title, body, scripts, [asset("report.css")])


def _head(result: dict[str, Any], other: Other | None) -> str:
    weights = "the mean teacher" if result["teacher"] else "the student"
    step = "" if result["step"] is None else f", step {result['step']:,}"
    lines = [f"Checkpoint <code><bdi>{text(result['checkpoint'])}</bdi></code>{step}, {weights}"]
    if other is not None:
        lines.append(f"compared with <code><bdi>{text(other.path)}</bdi></code>")
    if result["absent"]:
        lines.append(f"not on disk: {text(', '.join(result['absent']))}")
    return '<header><h1>Evaluation</h1><p class="muted facts">' + "<br>".join(lines) + "</p></header>"


def _overview(result: dict[str, Any], other: Other | None) -> str:
    """All sets and their mean, a line each."""
    keys = ("miou", "frequency_weighted_iou", "pixel_accuracy")
    heads = ["set", "mIoU, %", "frequency-weighted IoU, %", "pixel accuracy, %", "images"]
    rows = [[name, *(percent(s[key]) for key in keys), f"{s['images']:,}"] for name, s in result["sets"].items()]
    rows.append([f"mean of {len(rows)} sets", *(percent(result["mean"][key]) for key in keys), ""])
    if other is not None:
        heads.append("mIoU, difference")
        for row, (name, s) in zip(rows, result["sets"].items(), strict=False):
            theirs = other.matching(name, list(s["iou"]))
            row.append(marked(change(s["miou"], theirs["miou"] if theirs else None)))
        rows[-1].append("")
    return f'<section class="overview" aria-label="All sets">{plain_table("All sets", heads, rows)}</section>'


def _tabs(names: list[tuple[int, str]]) -> str:
    buttons = "".join(
        f'<button type="button" role="tab" id="tab-{place}" aria-controls="set-{place}" '
        f'aria-selected="{"true" if place == 0 else "false"}" tabindex="{0 if place == 0 else -1}">'
        f"<bdi>{text(name)}</bdi></button>"
        for place, name in names
    )
    return f'<div role="tablist" aria-label="Sets" class="tabs">{buttons}</div>'


def _part(
    place: int,
    name: str,
    scores: dict[str, Any],
    collected: Collector,
    other: Other | None,
) -> str:
    """One set."""
    classes, shown = collected.classes, collected.shown()
    theirs = other.matching(name, classes.names) if other else None
    notes = [other.remark(name, scores)] if other else []
    if not scores["labelled_pixels"]:
        notes.append("No image of this set has a labelled pixel: nothing was scored.")
    note = "".join(f'<p class="note">{text(words)}</p>' for words in notes if words)
    links = (
        ("pictures", "Pictures"),
        ("classes", "Classes"),
        ("confusion", "Confusion"),
        ("calibration", "Calibration"),
        ("brightness", "Brightness"),
        ("images", "All images"),
    )
    sections = {
        "pictures": viewer(place, scores, collected, shown),
        "classes": class_table(scores, classes, theirs),
        "confusion": confusion(scores["confusion_matrix"], classes)
        + "<p>Each row: how the pixels of one class are predicted, in percent of the row; blank below 0.5 %.</p>",
        "calibration": _calibration(scores),
        "brightness": _brightness(scores),
        "images": _images(scores, shown, theirs),
    }
    navigation = "".join(f'<a href="#{key}-{place}">{title}</a>' for key, title in links)
    content = "".join(
        f'<section aria-labelledby="{key}-{place}"><h2 id="{key}-{place}">{title}</h2>{sections[key]}</section>'
        for key, title in links
    )
    return (
        f'<div class="set" id="set-{place}" data-set="{place}" role="region" aria-label="{text(name)}">'
        f'<h2 class="set-name">{text(scores["dataset"])}</h2>{note}{_tiles(scores, theirs)}'
        f'<nav class="sections" aria-label="Sections of {text(name)}">{navigation}</nav>{content}'
        f"{_data(place, scores, classes, collected)}</div>"
    )


def _data(place: int, scores: dict[str, Any], classes: ClassSet, collected: Collector) -> str:
    """What the page's script needs of a set: the classes, the matrix, and thumbnails."""
    value = {
        "names": classes.names,
        "palette": classes.palette,
        "ignore": classes.ignore_index,
        "matrix": scores["confusion_matrix"],
    }
    thumbnails = [base64.b64encode(data).decode("ascii") for data in collected.thumbnails]
    return data_block(f"data-{place}", value) + data_block(f"thumbnails-{place}", thumbnails)


def _tiles(scores: dict[str, Any], theirs: dict[str, Any] | None) -> str:
    """The headline figures."""
    wanted = [
        ("mIoU", ("miou",), True),
        ("pixel accuracy", ("pixel_accuracy",), True),
        ("frequency-weighted IoU", ("frequency_weighted_iou",), True),
        ("image-wise mIoU", ("image_wise", "miou"), True),
        ("calibration error", ("calibration", "ece"), False),
    ]
    if "uncertainty" in scores:
        wanted.append(("average UIoU", ("uncertainty", "average_uiou"), True))
        wanted.append(("best UIoU", ("uncertainty", "best", "uiou"), True))
    tiles = []
    for title, keys, more_is_better in wanted:
        value, before = figure(scores, *keys), figure(theirs, *keys)
        grown = change(value, before)
        better = None if grown is None or more_is_better else grown < 0
        changed = "" if before is None else f'<dd class="change">{signed(grown, better)} from {percent(before)}</dd>'
        unit = "" if value is None else "<small> %</small>"
        tiles.append(
            f'<div class="tile"><dt>{title}</dt><dd class="figure" data-figure="{".".join(keys)}" '
            f'data-value="{"" if value is None else repr(value)}">{percent(value)}{unit}</dd>{changed}</div>'
        )
    tiles.append(
        f'<div class="tile"><dt>images</dt><dd class="figure" data-figure="images" data-value="{scores["images"]}">'
        f"{scores['images']:,}</dd></div>"
    )
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _calibration(scores: dict[str, Any]) -> str:
    bins = scores["calibration"]["bins"]
    rows = [
        [
            f"{100 * one['from']:.1f} to {100 * one['to']:.1f}",
            percent(one["accuracy"]),
            percent(one["confidence"]),
            f"{one['pixels']:,}",
        ]
        for one in bins
    ]
    uncertain = ""
    if "uncertainty" in scores:
        values = scores["uncertainty"]
        uncertain = (
            f"<figure>{charts.uncertainty(values['thresholds'], values['uiou'])}<figcaption>Uncertainty-aware IoU "
            "when pixels less sure than a threshold are called invalid. The best threshold is chosen on these labels."
            "</figcaption></figure>"
        )
    return (
        '<div class="charts"><figure>'
        + charts.reliability(bins)
        + "<figcaption>Reliability: of the pixels of each bin of confidence, how many are right. Bars that end below "
        "the line: the network is surer than it should be. Orange: the gap between accuracy and mean confidence."
        "</figcaption></figure><figure>"
        + charts.bin_shares(bins)
        + "<figcaption>How the pixels are spread over the bins. Expected calibration error "
        f"{percent(scores['calibration']['ece'])} %: the gap, averaged over all pixels.</figcaption></figure>"
        f"{uncertain}</div>"
        + _details("Reliability in figures", ["confidence, %", "accuracy, %", "mean confidence, %", "pixels"], rows)
    )


def _brightness(scores: dict[str, Any]) -> str:
    groups, images = scores["brightness"], scores["image_wise"]["images"]
    words = _QUARTERS if len(groups) == len(_QUARTERS) else [f"group {i + 1}" for i in range(len(groups))]
    rows = [
        [word, f"{one['from']:.1f} to {one['to']:.1f}", f"{one['images']:,}", percent(one["miou"])]
        for word, one in zip(words, groups, strict=True)
    ]
    equal = ""
    if len(groups) > 1 and groups[0]["from"] == groups[-1]["to"]:
        equal = '<p class="note">All images are equally bright: their order, and with it the quarters, is chance.</p>'
    return (
        f'{equal}<div class="charts"><figure>{charts.brightness(groups, images)}<figcaption>Bars: mIoU of the images '
        "in quarters from the darkest to the brightest, each from one confusion matrix over all of its images. Dots: "
        "each image's own mIoU, which leaves out the classes that it does not show, and is therefore no part of the "
        "bar's.</figcaption></figure>"
        + plain_table("Quarters by brightness", ["quarter", "brightness", "images", "mIoU, %"], rows)
        + "</div>"
    )


def _images(scores: dict[str, Any], shown: dict[str, list[int]], theirs: dict[str, Any] | None) -> str:
    each = [image["miou"] for image in scores["image_wise"]["images"]]
    known = [value for value in each if value is not None]
    points = (("worst image", 0), ("lower quarter", 25), ("median", 50), ("upper quarter", 75), ("best image", 100))
    rows = [[name, percent(float(np.percentile(known, point)) if known else None)] for name, point in points]
    left = len(each) - len(known)
    without = f" Left out: {left:,} without a labelled pixel." if left else ""
    return (
        f'<div class="charts"><figure>{charts.histogram(each)}<figcaption>How many images have which mIoU.'
        f"{without}</figcaption></figure>{plain_table('mIoU of single images', ['', 'mIoU, %'], rows)}</div>"
        f"{image_table(scores, shown, theirs)}"
    )


def _details(title: str, heads: list[str], rows: list[list[str]]) -> str:
    return f"<details><summary>{title}</summary>{plain_table(title, heads, rows)}</details>"
