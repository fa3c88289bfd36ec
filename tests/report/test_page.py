"""The evaluation page as text: its numbers, and names that are no plain text."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import pytest
from report_pages import HOSTILE, classes_of, evaluation
from test_html import Parsed

from icda.report.charts import brightness, histogram, reliability
from icda.report.compare import Other
from icda.report.page import report, write_report
from icda.scores import percent


def other_of(result: dict, **changes: object) -> Other:
    return Other(Path("runs/before/eval.json"), {n: {**s, **changes} for n, s in result["sets"].items()})


def figures(page: str) -> dict[str, str]:
    """Headline figures by name, in full precision."""
    return {a["data-figure"]: a["data-value"] for _, a in Parsed(page).elements if "data-figure" in a}


def test_headline_figures_are_those_of_the_evaluation():
    result, collectors = evaluation()
    scores = result["sets"]["val"]
    shown = figures(report(result, collectors))
    names = {"miou", "pixel_accuracy", "frequency_weighted_iou", "image_wise.miou", "calibration.ece", "images"}
    assert set(shown) == names
    for name, value in shown.items():
        assert float(value) == functools.reduce(lambda group, key: group[key], name.split("."), scores), name


def test_uncertainty_is_shown_where_it_was_scored():
    result, collectors = evaluation()
    result["sets"]["val"]["uncertainty"] = {
        "thresholds": [0.25, 0.5, 1.0],
        "uiou": [0.2, 0.4, 0.3],
        "average_uiou": 0.3,
        "best": {"threshold": 0.5, "uiou": 0.4},
    }
    page = report(result, collectors, other_of(result))
    assert figures(page)["uncertainty.average_uiou"] == "0.3" and figures(page)["uncertainty.best.uiou"] == "0.4"
    assert "best: 40.00 % at threshold 0.5000" in page


@pytest.mark.parametrize(
    "case",
    [
        {"count": 1},
        {"count": 2},
        {"count": 3, "unlabelled": [0, 1, 2]},
        {"count": 5, "unlabelled": [2], "each": 4},
        {"count": 4, "each": 0},
        {"count": 4, "classes": classes_of(2)},
        {"count": 3, "classes": classes_of(100)},
        {"count": 3, "sets": ("val", "source", "other")},
        {"count": 3, "classes": classes_of(5, HOSTILE), "names": HOSTILE[:3], "sets": HOSTILE[:2]},
    ],
)
def test_pages_of_all_kinds(case):
    result, collectors = evaluation(**case)
    page = Parsed(report(result, collectors, other_of(result)))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    references = {a["aria-controls"] for _, a in page.elements if "aria-controls" in a}
    references |= {a["href"][1:] for _, a in page.elements if a.get("href", "").startswith("#")}
    assert references <= set(ids)
    assert not any(name.startswith("on") for _, a in page.elements for name in a)  # no handler slipped in
    scripts = [a for tag, a in page.elements if tag == "script" and a.get("type") != "application/json"]
    assert len(scripts) == 3 and sum(tag == "h1" for tag, _ in page.elements) == 1
    assert {"header", "main", "footer"} <= {tag for tag, _ in page.elements}
    pictures = [a["src"] for tag, a in page.elements if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in pictures)


def test_names_that_no_text_can_hold_are_written(tmp_path):
    result, collectors = evaluation(2, names=["night/a\udcff", "b"])
    write_report(tmp_path / "report" / "index.html", result, collectors)
    assert "night/a\\udcff" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_differences_are_marked_by_signs_and_words():
    result, collectors = evaluation()
    scores = result["sets"]["val"]
    before = {name: 0.0 for name in scores["iou"]}
    page = report(result, collectors, other_of(result, miou=scores["miou"] + 0.1, iou=before, images=3))
    assert re.search(r"▼</span> -10\.00<span class=\"unseen\"> \(worse\)", page)
    assert "▲" in page and "(better)" in page and "The other run scored other images (3" in page
    assert "= 0.00" in page  # what has not changed
    assert "before, %" not in report(result, collectors)


def test_a_lower_calibration_error_is_better():
    result, collectors = evaluation()
    worse = {**result["sets"]["val"]["calibration"], "ece": 0.99}
    page = report(result, collectors, other_of(result, calibration=worse))
    tile = page[page.index("calibration error") :].split("</div>")[0]
    assert "▼" in tile and "(better)" in tile and "from 99.00" in tile


def test_a_set_that_the_other_has_not_is_told():
    result, collectors = evaluation(sets=("val", "new"))
    other = Other(Path("x/eval.json"), {"val": result["sets"]["val"]})
    page = report(result, collectors, other)
    assert page.count("nothing to compare") == 1


def test_an_old_scoring_without_the_new_figures_can_be_compared():
    result, collectors = evaluation()
    keys = ("miou", "iou", "pixels", "pixel_accuracy", "frequency_weighted_iou", "labelled_pixels", "images")
    other = Other(Path("x/eval.json"), {"val": {key: result["sets"]["val"][key] for key in keys}})
    assert "= 0.00" in report(result, collectors, other)


def test_classes_that_do_not_occur_have_a_dash():
    classes = dataclasses.replace(classes_of(6), names=("a", "b", "c", "d", "e", "nowhere"))
    result, collectors = evaluation(classes=classes)
    scores = result["sets"]["val"]
    scores["iou"]["nowhere"] = None
    row = report(result, collectors).split('data-value="nowhere"')[1].split("</tr>")[0]
    assert '<td class="number" data-value="">-</td>' in row


def bars(svg: str, kind: str) -> list[float]:
    return [float(h) for h in re.findall(rf'<rect class="{kind}"[^>]*? height="([\d.]+)"', svg)]


def test_bars_are_as_high_as_their_numbers():
    heights = bars(histogram([0.1, 0.11, 0.52, None]), "bar")
    assert len(heights) == 2 and heights[0] == pytest.approx(2 * heights[1], abs=0.02)
    bins = [
        {"from": 0.0, "to": 0.5, "pixels": 0, "accuracy": None, "confidence": None},
        {"from": 0.5, "to": 1.0, "pixels": 4, "accuracy": 0.5, "confidence": 0.75},
    ]
    svg = reliability(bins)
    assert bars(svg, "bar")[0] == pytest.approx(2 * bars(svg, "gap")[0], abs=0.02)
    groups = [{"images": 1, "from": 5.0, "to": 5.0, "miou": 0.4}]
    drawn = brightness(groups, [{"name": "<x>", "miou": 0.2, "brightness": 5.0}])
    assert "&lt;x&gt;: mIoU 20.00 %" in drawn and len(bars(drawn, "bar")) == 1
    assert bars(drawn, "bar")[0] == pytest.approx(240)  # all of the height: 40 % is the highest step
    assert "nan" not in drawn and "nan" not in histogram([]) and "nan" not in reliability(bins[:1])


def test_quarters_are_equally_wide_however_bright_they_are():
    groups = [{"images": 1, "from": v, "to": v, "miou": 0.5} for v in (3.0, 3.0, 3.1, 250.0)]
    images = [{"name": f"{k}", "miou": 0.5, "brightness": v} for k, v in enumerate((250.0, 3.0, 3.1, 3.0))]
    svg = brightness(groups, images)
    widths = [float(w) for w in re.findall(r'<rect class="bar"[^>]*? width="([\d.]+)"', svg)]
    assert len(widths) == 4 and max(widths) - min(widths) < 0.02 and min(widths) > 100
    dots = re.findall(r'cx="([\d.]+)"[^>]*><title>(\d):', svg)
    assert [name for x, name in sorted(dots, key=lambda dot: float(dot[0]))] == ["1", "3", "2", "0"]


def test_sets_that_tell_nothing_say_so():
    result, collectors = evaluation(3, unlabelled=[0, 1, 2])
    assert "nothing was scored" in report(result, collectors)
    result, collectors = evaluation(5)
    assert "equally bright" not in report(result, collectors) and "nothing was scored" not in report(
        result, collectors
    )
    for group in result["sets"]["val"]["brightness"]:
        group["from"] = group["to"] = 7.0
    assert "equally bright" in report(result, collectors)


def test_the_tables_show_what_the_file_holds():
    result, collectors = evaluation(9)
    scores, page = result["sets"]["val"], report(result, collectors)
    rows = [re.findall(r">([^<]*)</t[hd]>", row) for row in page.split("<tr>")]
    for one in scores["calibration"]["bins"]:
        span = f"{100 * one['from']:.1f} to {100 * one['to']:.1f}"
        assert [span, percent(one["accuracy"]), percent(one["confidence"]), f"{one['pixels']:,}"] in rows
    for name, one in zip(("darkest", "darker", "brighter", "brightest"), scores["brightness"], strict=True):
        span = f"{one['from']:.1f} to {one['to']:.1f}"
        assert [name, span, str(one["images"]), percent(one["miou"])] in rows
    each = sorted(image["miou"] for image in scores["image_wise"]["images"])
    assert ["worst image", percent(each[0])] in rows and ["median", percent(each[4])] in rows
    assert ["best image", percent(each[-1])] in rows


def test_the_confusion_matrix_shows_rows_in_percent():
    result, collectors = evaluation()
    matrix = np.array(result["sets"]["val"]["confusion_matrix"])
    page = report(result, collectors)
    shares = [float(p) for p in re.findall(r'style="--p:([\d.]+)%"', page)]
    np.testing.assert_allclose(shares, (100 * matrix / matrix.sum(1, keepdims=True)).ravel(), atol=0.051)
    assert percent(result["sets"]["val"]["miou"]) in page
