"""Tables of the evaluation page: classes, confusion matrix, images, and the figures behind the charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from icda.data.classes import ClassSet
from icda.report.compare import change, image_scores
from icda.report.html import text
from icda.scores import percent

_WRITTEN_CELLS = 25
"""Up to so many classes the cells of the confusion matrix carry their percentage."""


_DEEP = 0.75  # of a row, from which a cell's colour is so deep that only white is legible on it
_LEAST_SHARE = 0.005  # of a row, below which a cell stays blank; it would be rounded to nothing


def header(words: str, kind: str = "number", descending: bool = True, sorted_now: str = "none") -> str:
    """Head of a column by which a table is sorted.

    Args:
        words: Its name.
        kind: Class of the cell.
        descending: Whether the first press sorts from the largest on.
        sorted_now: How the table is sorted by it at first, in the words of ``aria-sort``.
    """
    first = "descending" if descending else "ascending"
    return (
        f'<th scope="col" class="{kind}" aria-sort="{sorted_now}">'
        f'<button type="button" class="sort" data-first="{first}">{text(words)}</button></th>'
    )


def number(value: float | None, words: str, kind: str = "number") -> str:
    """A cell with a number, which is sorted by its full precision; last where it is None."""
    return f'<td class="{kind}" data-value="{"" if value is None else repr(value)}">{text(words)}</td>'


def marked(value: float | None) -> str:
    """A difference of shares in percentage points as plain text: an arrow and a number; a dash for None."""
    if value is None:
        return "-"
    rounded = round(100 * value, 2)
    return f"{'▲' if rounded > 0 else '▼'} {rounded:+.2f}" if rounded else "= 0.00"


def signed(value: float | None, better: bool | None = None) -> str:
    """A difference of shares in percentage points: an arrow, a sign and a colour, and a word for who sees neither.

    Args:
        value: -1..1; None is shown as a dash.
        better: Whether it is to the good; None takes a rise as good.
    """
    words = marked(value)
    if words[0] not in "▲▼":
        return f'<span class="{"muted" if value is None else "same"}">{words}</span>'
    arrow, number = words.split(" ")
    good = arrow == "▲" if better is None else better
    return (
        f'<span class="{"up" if good else "down"}"><span aria-hidden="true">{arrow}</span> {number}'
        f'<span class="unseen"> ({"better" if good else "worse"})</span></span>'
    )


def difference(value: float | None, before: float | None) -> str:
    """A cell with the difference of two scores."""
    grown = change(value, before)
    return f'<td class="number" data-value="{"" if grown is None else repr(grown)}">{signed(grown)}</td>'


def swatch(color: Sequence[int]) -> str:
    """A patch of a class's colour."""
    return f'<span class="swatch" style="background:rgb({",".join(map(str, color))})"></span>'


def class_table(scores: dict[str, Any], classes: ClassSet, other: dict[str, Any] | None) -> str:
    """IoU and pixels of each class, with bars, and the differences from another scoring.

    Args:
        scores: Of one set, as in ``eval.json``.
        classes: The label space.
        other: The other's scores of the same set; None compares with nothing.
    """
    total = scores["labelled_pixels"]
    heads = [
        header("#", "number", False, "ascending"),
        header("class", "name", False),
        '<th scope="col" class="wide"><span class="unseen">IoU as a bar</span></th>',
        header("IoU, %"),
        *([header("before, %"), header("difference")] if other else []),
        header("pixels"),
        header("share, %"),
    ]
    rows = []
    for place, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        iou, pixels = scores["iou"][name], scores["pixels"][name]
        before = other["iou"][name] if other else None
        share = pixels / total if total else 0.0
        rows.append(
            f'<tr data-class="{place}">{number(place, str(place))}'
            f'<th scope="row" data-value="{text(name)}">{swatch(color)}<bdi>{text(name)}</bdi></th>'
            f"<td>{_bar(iou, before, color)}</td>{number(iou, percent(iou))}"
            + (number(before, percent(before)) + difference(iou, before) if other else "")
            + number(pixels, f"{pixels:,}")
            + number(share, percent(share))
            + "</tr>"
        )
    note = "" if other is None else "; the mark on a bar is the score before"
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="IoU of the classes">'
        f'<table class="sortable classes"><caption>Press a column\'s head to sort by it{note}. A dash: the class is '
        f"neither labelled nor predicted, and does not count in the mean.</caption>"
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bar(value: float | None, before: float | None, color: Sequence[int]) -> str:
    length = 0.0 if value is None else 100 * value
    mark = "" if before is None else f'<rect class="before" x="{100 * before:.2f}%" y="0" width="3" height="18"/>'
    return (
        '<svg class="iou" aria-hidden="true" width="100%" height="18"><rect class="ground" y="3" width="100%" '
        f'height="12"/><rect class="filled" y="3" width="{length:.2f}%" height="12" '
        f'fill="rgb({",".join(map(str, color))})"/>{mark}</svg>'
    )


def confusion(matrix: Sequence[Sequence[int]], classes: ClassSet) -> str:
    """The confusion matrix as a grid: each row's percentages; the page's script tells the counts of a cell.

    Args:
        matrix: Pixels by label and prediction, C rows of C.
        classes: The label space.
    """
    written = len(classes) <= _WRITTEN_CELLS
    heads = "".join(
        f'<th scope="col" title="{text(name)}"><span><bdi>{text(name)}</bdi></span>{swatch(color)}</th>'
        for name, color in zip(classes.names, classes.palette, strict=True)
    )
    rows = []
    for i, (name, color, counts) in enumerate(zip(classes.names, classes.palette, matrix, strict=True)):
        total = sum(counts)
        cells = []
        for j, count in enumerate(counts):
            share = count / total if total else 0.0
            words = f"{100 * share:.0f}" if written and share >= _LEAST_SHARE else ""
            kind = ' class="full"' if share > _DEEP else ""
            focus = 0 if i == j == 0 else -1
            cells.append(f'<td{kind} tabindex="{focus}" style="--p:{100 * share:.1f}%">{words}</td>')
        head = f'<th scope="row" title="{text(name)}"><span><bdi>{text(name)}</bdi></span>{swatch(color)}</th>'
        rows.append(f"<tr>{head}{''.join(cells)}</tr>")
    size = "large" if len(classes) <= _WRITTEN_CELLS else "small"
    return (
        f'<div class="scroll"><table class="confusion {size}" role="grid" aria-label="Confusion matrix"><thead><tr>'
        f'<td class="corner">label ↓<br>prediction →</td>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="cell-status" role="status" aria-live="polite">Point at a cell, or go through them with the arrow '
        "keys, for its counts.</p>"
    )


def image_table(scores: dict[str, Any], shown: dict[str, list[int]], other: dict[str, Any] | None) -> str:
    """All images, with what each scored.

    Args:
        scores: Of one set, as in ``eval.json``.
        shown: Places of the images that the viewer can show, by kind.
        other: The other's scores of the same set; None compares with nothing.
    """
    images, before = scores["image_wise"]["images"], image_scores(other)
    kinds = {index: kind for kind, indices in shown.items() for index in indices}
    heads = [
        '<th scope="col"><span class="unseen">picture</span></th>',
        header("image", "name", False),
        header("mIoU, %"),
        *([header("difference")] if before else []),
        header("pixel accuracy, %"),
        header("brightness", "number", False),
        header("labelled pixels"),
    ]
    rows = []
    for index, image in enumerate(images):
        name = f"<bdi>{text(image['name'])}</bdi>"
        if index in kinds:
            button = f'<button type="button" class="open" data-image="{index}">{name}</button>'
            name = f"{button} <small>{kinds[index]}</small>"
        rows.append(
            f'<tr data-row="{index}"><td class="thumbnail"></td>'
            f'<th scope="row" data-value="{text(image["name"])}">{name}</th>'
            + number(image["miou"], percent(image["miou"]))
            + (difference(image["miou"], before.get(image["name"])) if before else "")
            + number(image["pixel_accuracy"], percent(image["pixel_accuracy"]))
            + number(image["brightness"], f"{image['brightness']:.1f}")
            + number(image["labelled_pixels"], f"{image['labelled_pixels']:,}")
            + "</tr>"
        )
    return (
        '<div class="scroll tall" tabindex="0" role="region" aria-label="All images"><table class="sortable images">'
        "<caption>Press a column's head to sort by it; those whose name is a button open in the viewer.</caption>"
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def plain_table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, whose first column names the rows."""
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>{"".join(f"<td class=number>{text(v)}</td>" for v in rest)}</tr>'
        for first, *rest in rows
    )
    top = "".join(f'<th scope="col"{"" if i == 0 else " class=number"}>{text(h)}</th>' for i, h in enumerate(heads))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table><caption>{text(caption)}'
        f"</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
