"""The evaluation page in a browser, as a person uses it."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import HOSTILE, classes_of, evaluation, written

from icda.report.compare import Other
from icda.scores import percent

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
SHOWN = ".viewer[data-shown]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        launched = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser) -> Iterator[Any]:
    """Opens a page; at the end nothing may have been asked of a network, and nothing complained of."""
    contexts, wrong = [], []

    def visit_page(path: Path, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:", "blob:")) else wrong.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_selector(SHOWN, timeout=15_000)
        return page

    yield visit_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, Any], dict[str, Any]]:
    return evaluation(9, each=2, sets=("val", "source"))


def pixels(page: Any) -> np.ndarray:
    """The picture as drawn, RGB (h, w, 3)."""
    read = """() => {
        const canvas = document.querySelector(".set:not([hidden]) canvas.view");
        const copy = document.createElement("canvas");
        copy.width = canvas.width;
        copy.height = canvas.height;
        const context = copy.getContext("2d", { willReadFrequently: true });
        context.drawImage(canvas, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        let text = "";
        for (const value of data) text += String.fromCharCode(value);
        return [canvas.height, canvas.width, btoa(text)];
    }"""
    height, width, data = page.evaluate(read)
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[..., :3]


def choose(page: Any, left: str, right: str, divider: int, opacity: int = 100) -> None:
    viewer = page.locator(".set:not([hidden]) .viewer")
    for side, value in (("left", left), ("right", right)):
        viewer.locator(f'.side[data-side="{side}"] label:has(input[value="{value}"])').click()
    for kind, number in (("wipe", divider), ("opacity", opacity)):
        viewer.locator(f"input.{kind}").fill(str(number))


def test_label_maps_arrive_exactly_and_classes_can_be_switched(made, visit, tmp_path):
    result, collectors = made
    page = visit(written(tmp_path, result, collectors))
    collector = collectors["val"]
    best = collector.shown()["best"][0]
    layers, palette = collector.layers[best], np.array(collector.classes.palette, np.uint8)
    choose(page, "prediction", "prediction", 50)
    np.testing.assert_array_equal(pixels(page), palette[layers.prediction])
    choose(page, "truth", "truth", 50)
    drawn, known = pixels(page), layers.truth != collector.classes.ignore_index
    np.testing.assert_array_equal(drawn[known], palette[layers.truth[known]])
    choose(page, "prediction", "truth", 50, 0)
    plain = pixels(page)  # the image alone
    choose(page, "prediction", "truth", 50, 100)
    button = page.locator('.legend button[data-class="2"]').first
    assert button.get_attribute("aria-pressed") == "true"
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    middle = layers.truth.shape[1] // 2
    expected = np.where((layers.prediction == 2)[..., None], plain, palette[layers.prediction])
    np.testing.assert_array_equal(pixels(page)[:, :middle], expected[:, :middle])
    hidden = ~known | (layers.truth == 2)
    expected = np.where(hidden[..., None], plain, palette[np.where(known, layers.truth, 0)])
    np.testing.assert_array_equal(pixels(page)[:, middle:], expected[:, middle:])
    page.locator(".none").first.click()
    np.testing.assert_array_equal(pixels(page), plain)
    page.locator(".all").first.click()
    np.testing.assert_array_equal(pixels(page)[:, :middle], palette[layers.prediction][:, :middle])


def test_errors_and_confidence(made, visit, tmp_path):
    result, collectors = made
    page = visit(written(tmp_path, result, collectors))
    layers = collectors["val"].layers[collectors["val"].shown()["best"][0]]
    choose(page, "error", "error", 50)
    drawn, known = pixels(page), layers.truth != collectors["val"].classes.ignore_index
    wrong = known & (layers.truth != layers.prediction)
    assert (drawn[wrong] == (255, 0, 200)).all() and (drawn[~known] == 0).all()
    right = drawn[known & ~wrong].astype(int)
    assert np.ptp(right, axis=1).max() <= 1  # grey
    page.locator(".none").first.click()
    assert not (pixels(page)[wrong] == (255, 0, 200)).all(-1).any()
    page.locator('.legend button[data-class="1"]').first.click()  # errors that this class has a part in
    part = wrong & ((layers.truth == 1) | (layers.prediction == 1))
    np.testing.assert_array_equal((pixels(page) == (255, 0, 200)).all(-1), part)
    choose(page, "confidence", "confidence", 50)
    order = np.argsort(layers.confidence, axis=None, kind="stable")
    luma = (pixels(page) @ (0.299, 0.587, 0.114)).ravel()[order]
    assert (np.diff(luma) >= -1).all()  # the surer, the brighter


def test_the_divider_by_keyboard_and_pointer(made, visit, tmp_path):
    result, collectors = made
    page = visit(written(tmp_path, result, collectors))
    layers = collectors["val"].layers[collectors["val"].shown()["best"][0]]
    palette = np.array(collectors["val"].classes.palette, np.uint8)
    choose(page, "prediction", "image", 50)
    wipe = page.locator("input.wipe").first
    wipe.focus()
    page.keyboard.press("End")
    assert wipe.input_value() == "100"
    np.testing.assert_array_equal(pixels(page), palette[layers.prediction])
    page.keyboard.press("ArrowLeft")
    assert wipe.input_value() == "99"
    page.locator(".frame").first.scroll_into_view_if_needed()
    box = page.locator(".frame").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4 + 1, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert wipe.input_value() == "25"
    words = page.locator(".pixel").first.inner_text()
    row, column = 12, 10
    assert f"predicted class {layers.prediction[row, column]}, confidence {layers.confidence[row, column]} %" in words
    right = page.locator('.side[data-side="right"] input:checked').first
    right.focus()
    page.keyboard.press("ArrowRight")  # radio buttons move by arrows
    assert page.locator('.side[data-side="right"] input:checked').first.get_attribute("value") == "prediction"
    outline = page.locator('.side[data-side="right"] input:checked + span').first
    assert outline.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"


def test_tabs_sorting_and_the_confusion_matrix_by_keyboard(made, visit, tmp_path):
    result, collectors = made
    page = visit(written(tmp_path, result, collectors))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#tab-0").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#set-1").is_visible() and not page.locator("#set-0").is_visible()
    assert page.locator("#tab-1").get_attribute("aria-selected") == "true"
    page.keyboard.press("Home")
    table = page.locator("#set-0 table.classes")
    scores = result["sets"]["val"]
    head = table.locator("th", has_text="IoU, %")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    names = [name.strip() for name in table.locator("tbody th").all_inner_texts()]
    assert names == sorted(scores["iou"], key=lambda name: -scores["iou"][name])
    page.keyboard.press("Enter")
    assert [name.strip() for name in table.locator("tbody th").all_inner_texts()] == names[::-1]
    page.locator("#set-0 .confusion tbody td").first.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    count, total = scores["confusion_matrix"][1][2], sum(scores["confusion_matrix"][1])
    status = page.locator("#set-0 .cell-status").inner_text()
    share = f"{100 * count / total:.2f}"
    assert status == f"Of {total:,} pixels labelled class 1, {count:,} ({share} %) are predicted as class 2."
    page.locator("#set-0 .confusion tbody tr").nth(3).locator("td").nth(3).hover()
    assert "are predicted right" in page.locator("#set-0 .cell-status").inner_text()


def test_numbers_and_comparison(made, visit, tmp_path):
    result, collectors = made
    sets = {name: {**s, "iou": {n: v - 0.01 for n, v in s["iou"].items()}} for name, s in result["sets"].items()}
    page = visit(written(tmp_path, result, collectors, Other(tmp_path / "eval.json", sets)))
    scores = result["sets"]["val"]
    read = "es => es.map(e => [e.dataset.figure, e.dataset.value, e.innerText])"
    shown = {key: (value, words) for key, value, words in page.eval_on_selector_all("#set-0 .figure", read)}
    assert float(shown["miou"][0]) == scores["miou"] and shown["miou"][1] == f"{percent(scores['miou'])} %"
    assert float(shown["calibration.ece"][0]) == scores["calibration"]["ece"]
    rows = page.eval_on_selector_all(
        "#set-0 table.classes tbody tr",
        "rows => rows.map(r => Array.from(r.cells, c => [c.dataset.value, c.innerText]))",
    )
    for row, (name, iou) in zip(rows, scores["iou"].items(), strict=True):
        assert row[1][0] == name and float(row[3][0]) == iou and row[3][1] == percent(iou)
        assert row[5][1].startswith("▲ +1.00") and int(row[6][0]) == scores["pixels"][name]
    rows = page.eval_on_selector_all(
        "#set-0 table.images tbody tr", "rows => rows.map(r => Array.from(r.cells, c => c.dataset.value))"
    )
    for row, image in zip(rows, scores["image_wise"]["images"], strict=True):
        numbers = [image[key] for key in ("miou", "pixel_accuracy", "brightness", "labelled_pixels")]
        assert row[1] == image["name"] and [float(row[i]) for i in (2, 4, 5, 6)] == numbers
    legend = page.eval_on_selector_all(
        "#set-0 .legend tbody tr", "rs => rs.map(r => Array.from(r.cells, c => c.innerText))"
    )
    layers = collectors["val"].layers[collectors["val"].shown()["best"][0]]
    assert [int(row[1].replace(",", "")) for row in legend] == layers.counts.sum(1).tolist()


def test_images_open_from_the_list(made, visit, tmp_path):
    result, collectors = made
    page = visit(written(tmp_path, result, collectors))
    worst = collectors["val"].shown()["worst"][-1]
    button = page.locator(f'#set-0 button.open[data-image="{worst}"]')
    button.scroll_into_view_if_needed()
    page.wait_for_selector(f'#set-0 tr[data-row="{worst}"] td.thumbnail img')
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f'#set-0 .viewer[data-shown="{worst}"]')
    assert page.locator("#set-0 .image-name").inner_text() == f"drive/frame_{worst:04d}"
    assert page.locator(f'#set-0 .pick[data-image="{worst}"]').get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [700, 1400])
def test_light_and_dark_narrow_and_wide(scheme, width, made, visit, tmp_path):
    result, collectors = made
    path = written(tmp_path, result, collectors, Other(tmp_path / "eval.json", result["sets"]))
    page = visit(path, color_scheme=scheme, viewport={"width": width, "height": 900})
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    level = sum(int(part) for part in color[4:-1].split(","))
    assert level > 600 if scheme == "light" else level < 150
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll by themselves
    end = page.locator("footer").bounding_box()
    assert page.evaluate("document.documentElement.scrollHeight") <= end["y"] + end["height"] + 1  # nothing below
    for name in ("val", "source"):
        assert page.locator(".overview tbody th", has_text=name).bounding_box()["height"] < 60  # in one line


def test_hostile_names_are_harmless(visit, tmp_path):
    result, collectors = evaluation(5, classes_of(5, HOSTILE), HOSTILE, sets=HOSTILE[:2])
    page = visit(written(tmp_path, result, collectors))
    assert page.evaluate("window.hacked") is None
    assert page.locator("#set-0 table.classes tbody th").all_text_contents() == list(HOSTILE)
    assert page.locator("#set-0 .legend button").all_text_contents() == list(HOSTILE)
    page.locator("#set-0 .confusion tbody td").first.hover()
    assert HOSTILE[0] in page.locator("#set-0 .cell-status").inner_text()
    page.locator("#tab-1").click()
    page.wait_for_selector("#set-1 .viewer[data-shown]")


def test_a_page_of_many_images_is_small_and_opens_fast(visit, tmp_path):
    result, collectors = evaluation(500, classes_of(19), each=4, size=(360, 640), distinct=12)
    path = written(tmp_path, result, collectors)
    assert path.stat().st_size < 40e6
    seconds = []
    for _ in range(3):  # the machine may be busy with something else
        start = time.perf_counter()
        page = visit(path)
        seconds.append(time.perf_counter() - start)
        assert page.locator("table.images tbody tr").count() == 500
    assert min(seconds) < 3, seconds


def test_tall_pictures_and_many_classes_stay_on_the_screen(visit, tmp_path):
    names = [f"a name that is longer than most other names of classes, number {k}" for k in range(60)]
    made = evaluation(3, classes_of(60, names), size=(1200, 120))
    page = visit(written(tmp_path, *made), viewport={"width": 1400, "height": 900})
    for element in (".frame", ".legend-rows"):
        assert 100 < page.locator(element).bounding_box()["height"] <= 0.8 * 900 + 1
    assert page.locator(".confusion thead th").first.bounding_box()["height"] < 220
    box = page.locator(".frame").bounding_box()
    assert box["height"] / box["width"] == pytest.approx(10, abs=0.2)
    assert page.locator(".confusion tbody td").count() == 3600
    page.locator(".confusion tbody tr").nth(59).locator("td").nth(59).hover()
    assert "number 59" in page.locator(".cell-status").inner_text()
