"""``index.html`` of an explanation: figures with what they show, in the house style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from icda.data.classes import ClassSet
from icda.report.html import data_uri, document, jpeg, png, text

STYLE = """
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0 0 16px; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; }
.classes { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 16px; padding: 0; margin: 0 0 16px; }
.classes i { display: inline-block; width: 18px; height: 12px; margin-right: 6px; border-radius: 2px; }
figure > img { border-radius: 6px; background: #fff; }
figure.wide { overflow-x: auto; }
figure.wide > img { max-width: none; width: 100%; min-width: 900px; }
figure.wide > figcaption { position: sticky; left: 0; }
th { overflow-wrap: normal; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 0; }
"""
_STRIDES = ((8, 16), (16, 32))  # of the maps that the stages of DAR read and write
_QUALITY = 90
_WIDE = 1100  # pixels from which a picture scrolls rather than shrinks


def figure(picture: np.ndarray, alt: str, caption: str, photograph: bool = True) -> str:
    """A picture with a line below it.

    Args:
        picture: RGB (H, W, 3) uint8.
        alt: What it shows, for those who cannot see it.
        caption: Plain text below it.
        photograph: Whether it is put into the page as a JPEG; drawings stay sharp as PNGs.

    Returns:
        HTML. On a narrow screen a wide picture scrolls by itself.
    """
    source = data_uri(jpeg(picture, _QUALITY), "image/jpeg") if photograph else data_uri(png(picture), "image/png")
    height, width = picture.shape[:2]
    image = f'<img src="{source}" alt="{text(alt)}" width="{width}" height="{height}" loading="lazy">'
    scrolls = ' class="wide" tabindex="0"' if width >= _WIDE else ""
    return f"<figure{scrolls}>{image}<figcaption>{text(caption)}</figcaption></figure>"


def facts(rows: Mapping[str, object]) -> str:
    """Names and values, below each other, as HTML."""
    return f'<dl class="facts">{"".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in rows.items())}</dl>'


def class_list(classes: ClassSet) -> str:
    """The colours of the classes beside their names, as HTML."""
    items = (
        f'<li><i style="background: rgb{color}"></i>{text(name)}</li>'
        for name, color in zip(classes.names, classes.palette, strict=True)
    )
    return f'<ul class="classes" aria-label="Colours of the classes">{"".join(items)}</ul>'


def explain_page(summary: Mapping[str, Any], figures: Mapping[str, np.ndarray], classes: ClassSet) -> str:
    """The page of an explanation.

    Args:
        summary: What ``explain.json`` holds (``icda.explanation.run``).
        figures: By the name of their file.
        classes: The label space.

    Returns:
        HTML, whole and self-contained.
    """
    queries = range(1, len(summary["queries"]) + 1)
    links = [("overview", "Overview"), *((f"query{i}", f"Query {i}") for i in queries)]
    links += [("offsets", "Sampling positions"), ("prototypes", "Prototypes"), ("pseudo", "Pseudo labels")]
    items = "".join(f'<li><a href="#{place}">{name}</a></li>' for place, name in links)
    parts = [
        "<header><h1>What DAR looks at</h1>",
        facts(_facts(summary)),
        f"<nav><ul>{items}</ul></nav></header><main>",
        _overview(summary, figures, classes),
        *(_query(i, summary, figures) for i in queries),
        _offsets(summary, figures),
        _prototypes(summary, figures),
        _pseudo_labels(summary, figures),
        "</main>",
    ]
    return document("What DAR looks at", "\n".join(parts), styles=[STYLE])


def _facts(summary: Mapping[str, Any]) -> dict[str, object]:
    step = summary["step"]
    return {
        "Checkpoint": summary["checkpoint"],
        "Network": ("mean teacher" if summary["teacher"] else "student")
        + ("" if step is None else f" after {step} steps"),
        "Night": summary["night"],
        "Day": summary["day"] if summary["day"] != "enhanced" else "made from the night picture",
        "Entering at": f"{summary['size'][0]} x {summary['size'][1]} (height x width)",
    }


def _overview(summary: Mapping[str, Any], figures: Mapping[str, np.ndarray], classes: ClassSet) -> str:
    changed = summary["changed_by_dar"]
    head = "".join(
        f'<th scope="col">{text(name)}</th>'
        for name in (
            "Query",
            "Row, column",
            "Predicted with day",
            "Probability",
            "From night alone",
            *(f"Stage {j + 1}: samples" for j in range(len(summary["grids"]))),
        )
    )
    rows = "".join(_row(i, query) for i, query in enumerate(summary["queries"], start=1))
    return (
        '<section id="overview"><h2>Overview</h2>'
        + figure(
            figures["overview"],
            "Night picture with numbered queries, day picture, and two predictions",
            f"Coupling the night features to the day picture changes {changed:.1%} of the predicted pixels.",
        )
        + class_list(classes)
        + f'<div class="scroll" tabindex="0"><table><caption>The queries. Samples: over how many samples the mean of '
        f"the heads spreads, the exponential of its entropy; the fewer, the more it looks at one "
        f"place.</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _row(number: int, query: Mapping[str, Any]) -> str:
    row, column = query["point"]
    return (
        f'<tr><th scope="row"><a href="#query{number}">{number}</a></th><td class="number">{row}, {column}</td>'
        f'<td>{text(query["coupled"])}</td><td class="number">{query["confidence"]:.3f}</td>'
        f"<td>{text(query['alone'])}</td>"
        + "".join(f'<td class="number">{value:.0f}</td>' for value in query["effective_samples"])
        + "</tr>"
    )


def _query(number: int, summary: Mapping[str, Any], figures: Mapping[str, np.ndarray]) -> str:
    query = summary["queries"][number - 1]
    row, column = query["point"]
    parts = [
        f'<section id="query{number}"><h2>Query {number}: {text(query["coupled"])} at row {row}, column {column}</h2>'
    ]
    for j, (height, width) in enumerate(summary["grids"]):
        reads, writes = _STRIDES[j]
        parts += [
            f"<h3>Stage {j + 1}: from stride {reads} to {writes}, a grid of {height} x {width} cells</h3>",
            figure(
                figures[f"query{number}_stage{j + 1}_deformable"],
                f"Weights of the deformable layer of stage {j + 1} for query {number}",
                f"Deformable layer. A dot lies where a sample is read, of both pictures together; its area and its "
                f"brightness tell its weight, beside the largest of its panel. Of {height * width} samples, the mean "
                f"spreads over {query['effective_samples'][j]:.0f}. Framed: the query's cell.",
            ),
            figure(
                figures[f"query{number}_stage{j + 1}_local"],
                f"Weights of the local layer of stage {j + 1} for query {number}",
                "Local layer. It attends within the coloured window of the night picture alone, to brighter cells "
                "more; dark violet is 0, yellow the largest weight of the panel.",
            ),
        ]
    return "\n".join([*parts, "</section>"])


def _offsets(summary: Mapping[str, Any], figures: Mapping[str, np.ndarray]) -> str:
    parts = ['<section id="offsets"><h2>Sampling positions</h2>']
    for j, largest in enumerate(summary["largest_offset_cells"]):
        parts += [
            f"<h3>Stage {j + 1}</h3>",
            figure(
                figures[f"stage{j + 1}_offsets"],
                f"Offsets of each group of the deformable layer of stage {j + 1}",
                f"Each group of channels reads the sample of a cell at a position of its own (dot), moved from the "
                f"cell's reference point by an offset (line); the longest is {largest:.2f} cells. They are the same "
                "for every query. What lies outside of the picture reads as 0.",
            ),
        ]
    return "\n".join([*parts, "</section>"])


def _prototypes(summary: Mapping[str, Any], figures: Mapping[str, np.ndarray]) -> str:
    head = '<section id="prototypes"><h2>Prototypes</h2>'
    if summary["prototypes"] is None:
        return f"{head}<p>The checkpoint holds none; those of a run are in its checkpoints/last.pt.</p></section>"
    caption = (
        f"Cosine similarity of PCA's class prototypes, {summary['prototypes']} of which were learnt; grey: not yet. "
        "The redder, the more alike the logits of two classes; blue are opposites."
    )
    shown = figure(figures["prototypes"], "Similarity of each class prototype with each", caption, photograph=False)
    return f"{head}{shown}</section>"


def _pseudo_labels(summary: Mapping[str, Any], figures: Mapping[str, np.ndarray]) -> str:
    who = "mean teacher" if summary["teacher"] else "student (pseudo labels in training are the mean teacher's)"
    caption = (
        f"{summary['share_above_threshold']:.1%} of the pixels have a probability of {summary['threshold']:g} or "
        "more; in training, this share is the weight of a batch's pseudo labels. The mean probability is "
        f"{summary['mean_confidence']:.3f}."
    )
    shown = figure(figures["pseudo_labels"], "Pseudo label, its confidence, and what is confident", caption)
    return f'<section id="pseudo"><h2>Pseudo labels</h2><p>Those of the {text(who)}.</p>{shown}</section>'
