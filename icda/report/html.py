"""A self-contained HTML page: everything in one file, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files

import cv2
import numpy as np

ENCODING = "utf-8"


def asset(name: str) -> str:
    """The text of a file that comes with this package.

    Args:
        name: Its name in ``icda/report/assets``, such as ``page.css``.
    """
    return files("icda.report").joinpath("assets", name).read_text(ENCODING)


def document(title: str, body: str, scripts: Sequence[str] = (), styles: Sequence[str] = ()) -> str:
    """A whole page in the house style: light and dark as the reader's system is set, with system fonts.

    A content security policy in the page forbids whatever would need a network, and runs the given scripts alone: a
    name that contains HTML could not start another, even if it were not escaped.

    Args:
        title: Of the page, plain text.
        body: HTML, with its texts escaped by :func:`text`.
        scripts: JavaScript, put at the end of the page in this order.
        styles: CSS, put behind the common one (``assets/page.css``).

    Returns:
        The page, to be written in UTF-8.

    Raises:
        ValueError: If a script or a style would end its own element.
    """
    scripts = [_checked(script, "script") for script in scripts]
    style = "\n".join(_checked(text, "style") for text in (asset("page.css"), *styles))
    # Browsers hash what they parsed, in which every line ends with a line feed.
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts) or "'none'"
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}"
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{text(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            body,
            *(f"<script>{script}</script>" for script in scripts),
            "</body>",
            "</html>\n",
        )
    )


def _checked(content: str, element: str) -> str:
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if re.search(rf"</{element}|<!--", content, re.IGNORECASE):
        raise ValueError(f"a {element} of the page contains </{element} or <!--, at which a browser would cut it")
    return content


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode(ENCODING)).digest()).decode("ascii")


def text(value: object) -> str:
    """A value as text of a page, or as the value of an attribute in double or single quotes.

    Names of files need not be text: what is none is shown as escapes, as are control characters, which a browser
    would drop.

    >>> text('<b title="x">Tom & Jerry</b>')
    '&lt;b title=&quot;x&quot;&gt;Tom &amp; Jerry&lt;/b&gt;'
    """
    whole = str(value).encode(ENCODING, "backslashreplace").decode(ENCODING)
    whole = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", whole)
    return html.escape(whole, quote=True)


def data_block(name: str, value: object) -> str:
    """Values for a script: an element that a browser keeps as text until a script reads it.

    Args:
        name: The element's ``id``.
        value: Anything of which ``json`` makes JSON; no nan.

    Returns:
        HTML; no text inside can end the element.
    """
    content = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":  # inside JSON these stand in strings alone
        content = content.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{text(name)}">{content}</script>'


def data_uri(data: bytes, mime: str) -> str:
    """A file as an address that holds it.

    Args:
        data: Its content.
        mime: Its type, such as ``image/png``.
    """
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def png(image: np.ndarray) -> bytes:
    """A picture as a PNG file, lossless.

    Args:
        image: RGB (H, W, 3) uint8, or one channel (H, W) uint8.
    """
    return _encoded(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def jpeg(image: np.ndarray, quality: int = 85) -> bytes:
    """A picture as a JPEG file.

    Args:
        image: RGB (H, W, 3) uint8, or one channel (H, W) uint8.
        quality: 0 to 100.
    """
    return _encoded(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encoded(ending: str, image: np.ndarray, options: list[int]) -> bytes:
    assert image.dtype == np.uint8, image.dtype
    assert image.ndim == 2 or image.shape[2:] == (3,), image.shape
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    done, data = cv2.imencode(ending, bgr, options)
    assert done, (ending, image.shape)
    return data.tobytes()
