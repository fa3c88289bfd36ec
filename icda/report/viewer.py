"""The viewer of the evaluation page: buttons for the images, the layers of each, and what the script works on."""

from __future__ import annotations

from typing import Any

from icda.report.collect import Collector
from icda.report.html import data_block, data_uri, text
from icda.scores import percent

LAYERS = (
    ("image", "Image"),
    ("prediction", "Prediction"),
    ("truth", "Ground truth"),
    ("error", "Errors"),
    ("confidence", "Confidence"),
)
_LEFT, _RIGHT = "image", "prediction"


def viewer(place: int, scores: dict[str, Any], collected: Collector, shown: dict[str, list[int]]) -> str:
    """The viewer of one set.

    Args:
        place: Of the set in the page.
        scores: Of the set, as in ``eval.json``.
        collected: What was gathered of it.
        shown: Places of the images with layers, by kind.
    """
    if not any(shown.values()):
        return "<p>No image can be looked at: report_images is 0, or none has a labelled pixel.</p>"
    images = scores["image_wise"]["images"]
    groups = []
    for kind, indices in shown.items():
        if indices:
            picks = "".join(_pick(index, images[index], collected.thumbnails[index]) for index in indices)
            groups.append(f'<div role="group" aria-label="{kind}"><h3>{kind.capitalize()}</h3>{picks}</div>')
    ignore = collected.classes.ignore_index
    blocks = "".join(
        data_block(f"layers-{place}-{index}", collected.layers[index].plain(ignore))
        for indices in shown.values()
        for index in indices
    )
    picks = f'<div class="picks">{"".join(groups)}</div>'
    return f'<div class="viewer">{picks}{_stage(place)}</div>{blocks}'


def _pick(index: int, image: dict[str, Any], thumbnail: bytes) -> str:
    """A button that opens an image."""
    return (
        f'<button type="button" class="pick" data-image="{index}" aria-pressed="false" title="{text(image["name"])}" '
        f'data-miou="{percent(image["miou"])}">'
        f'<img alt="" loading="lazy" decoding="async" src="{data_uri(thumbnail, "image/jpeg")}">'
        f'<span><span class="unseen">{text(image["name"])}, mIoU </span>{percent(image["miou"])}'
        '<span class="unseen"> percent</span></span></button>'
    )


def _stage(place: int) -> str:
    """The picture with its controls; the script fills in the legend."""
    return f"""<div class="stage">
<p class="shown-name"><strong><bdi class="image-name"></bdi></strong> <span class="image-facts muted"></span></p>
<div class="sides">{_choice(place, "left", "Left", _LEFT)}{_choice(place, "right", "Right", _RIGHT)}</div>
<div class="frame">
<canvas class="view" width="16" height="9" role="img" aria-label="The image with its layers"></canvas>
<div class="divider" aria-hidden="true"></div></div>
<div class="sliders">
<label>Divider <input type="range" class="wipe" min="0" max="100" value="50" step="1"
 aria-label="Divider between the left and the right layer, percent"></label>
<label>Opacity <input type="range" class="opacity" min="0" max="100" value="65" step="1"
 aria-label="Opacity of the layers over the image, percent"></label>
<label><input type="checkbox" class="brighten"> Brighten the image</label>
</div>
<p class="pixel muted" aria-live="off">Point at the picture to read a pixel.</p>
<div class="scale" aria-hidden="true"><span>confidence 0 %</span>
<canvas width="101" height="1"></canvas><span>100 %</span></div>
<p class="muted">Errors: wrong pixels are magenta over the image in grey; pixels without a label are black. A class
 that is switched off leaves prediction and ground truth; an error stays while its label or its prediction is on.</p>
</div>
<div class="legend-box"><div class="legend-head"><h3>Classes</h3>
<button type="button" class="all">All</button> <button type="button" class="none">None</button></div>
<div class="scroll legend-rows" tabindex="0" role="region" aria-label="Classes of the image">
<table class="legend"><thead><tr><th scope="col">class</th><th scope="col" class="number">labelled</th>
<th scope="col" class="number">predicted</th><th scope="col" class="number">IoU, %</th></tr></thead>
<tbody></tbody></table></div>
<p class="muted">Pixels of this image at its label's own size.</p></div>"""


def _choice(place: int, side: str, title: str, chosen: str) -> str:
    """Which layer stands on a side: one of a group of radio buttons."""
    options = "".join(
        f'<label><input type="radio" name="{side}-{place}" value="{value}"{" checked" if value == chosen else ""}>'
        f"<span>{words}</span></label>"
        for value, words in LAYERS
    )
    return f'<fieldset class="side" data-side="{side}"><legend>{title}</legend>{options}</fieldset>'
