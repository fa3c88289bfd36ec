"""The shell of all pages."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from report_pages import HOSTILE

from icda.report.html import asset, data_block, data_uri, document, jpeg, png, text


class Parsed(HTMLParser):
    """Texts, elements and attributes of a page, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("name", HOSTILE)
def test_texts_stay_texts_in_bodies_and_attributes(name):
    page = Parsed(f'<p title="{text(name)}">{text(name)}</p>')
    assert page.elements == [("p", {"title": name})] and "".join(page.texts) == name


def test_what_is_no_text_is_shown_as_escapes():
    assert text("a\udcffb\x00\x1b\x85") == "a\\udcffb\\x00\\x1b\\x85"
    text("a\udcff").encode("utf-8")


@pytest.mark.parametrize("name", [*HOSTILE, "\u2028", "\udcff"])
def test_data_come_back_and_cannot_end_their_element(name):
    block = data_block("x", {"names": [name]})
    inner = re.fullmatch(r"<script [^>]*>(.*)</script>", block, re.S)[1]
    assert json.loads(inner) == {"names": [name]} and not set("<>&") & set(inner)
    with pytest.raises(ValueError):
        data_block("x", float("nan"))


def test_a_page_runs_its_own_scripts_alone_and_fetches_nothing():
    script = 'const a = "ü";\r\nconst b = 1;\n'
    page = document("A & <b>", "<main>body</main>", [script], ["p { color: red; }"])
    parsed = Parsed(page)
    policy = next(a["content"] for _, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    inner = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "\r" not in page and "<title>A &amp; &lt;b&gt;</title>" in page and "p { color: red; }" in page
    assert "--ground" in page and "prefers-color-scheme: dark" in page
    assert not re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"//.*", "", page.replace(inner, "")))


@pytest.mark.parametrize("script", ["x = '</SCRIPT>'", "<!-- x"])
def test_scripts_that_would_end_their_element_are_refused(script):
    with pytest.raises(ValueError, match="would cut it"):
        document("t", "", [script])
    with pytest.raises(ValueError, match="would cut it"):
        document("t", "", [], ["</style>"])


def test_pictures():
    picture = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    back = cv2.imdecode(np.frombuffer(png(picture), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(back, picture)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    decoded = cv2.imdecode(np.frombuffer(jpeg(red), np.uint8), cv2.IMREAD_COLOR)
    assert decoded[8, 8, 2] > 240 and decoded[8, 8, :2].max() < 20
    assert len(jpeg(picture, 20)) < len(jpeg(picture, 95))
    assert data_uri(b"abc", "image/png") == "data:image/png;base64,YWJj"


@pytest.mark.parametrize("name", ["page.css", "report.css", "report.js", "tables.js", "viewer.js"])
def test_assets_come_with_the_package_and_name_no_network(name):
    content = asset(name)
    assert content and not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|WebSocket", content)
    if name.endswith(".js"):
        assert content.startswith('"use strict";') and "innerHTML" not in content and "eval(" not in content
