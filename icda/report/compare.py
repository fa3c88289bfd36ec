"""Another scoring to compare with: what an earlier run of ``scripts/eval.py`` wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icda.errors import UserError

EVAL_JSON = "eval.json"
_FIGURES = ("miou", "pixel_accuracy", "frequency_weighted_iou")


@dataclass(frozen=True)
class Other:
    """The other scoring.

    Args:
        path: Its ``eval.json``.
        sets: As in ``eval.json``.
    """

    path: Path
    sets: dict[str, dict[str, Any]]

    def matching(self, name: str, classes: Sequence[str]) -> dict[str, Any] | None:
        """The other's scores of a set, to be compared with this run's; None if it has none for the same classes.

        Args:
            name: Of the set.
            classes: Names of this run's classes in their order.
        """
        theirs = self.sets.get(name)
        return theirs if theirs is not None and list(theirs["iou"]) == list(classes) else None

    def remark(self, name: str, scores: dict[str, Any]) -> str:
        """What speaks against comparing a set, in a sentence of plain text; empty where nothing does.

        Args:
            name: Of the set.
            scores: Of this run on the set, as in ``eval.json``.
        """
        if name not in self.sets:
            return "The other run has no scores of this set: nothing to compare."
        theirs = self.matching(name, list(scores["iou"]))
        if theirs is None:
            return "The other run scored this set for other classes: nothing to compare."
        if theirs.get("dataset", scores["dataset"]) != scores["dataset"]:
            return f"The other run scored another data set, {theirs['dataset']}: differences say little."
        count, mine = theirs.get("images", scores["images"]), image_names(scores)
        shared = len(mine & image_names(theirs)) if image_names(theirs) else None
        if count != scores["images"] or (shared is not None and shared != len(mine)):
            among = "" if shared is None else f", {shared} of them among these {scores['images']}"
            return f"The other run scored other images ({count}{among}): differences are not of the network alone."
        return ""


def load_other(given: str) -> Other:
    """Read another scoring.

    Args:
        given: A run folder of ``scripts/eval.py``, or its ``eval.json``.

    Raises:
        UserError: If there is none, or it is not what ``scripts/eval.py`` writes.
    """
    path = Path(given).expanduser()
    path = path / EVAL_JSON if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"compare: there is no file {path}; give a run folder of scripts/eval.py, or its {EVAL_JSON}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sets = content["sets"]
        whole = bool(sets) and all(_is_scores(scores) for scores in sets.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"compare: {path} is not what scripts/eval.py writes; give a run folder of it")
    return Other(path, sets)


def _is_scores(scores: dict[str, Any]) -> bool:
    iou, pixels = scores["iou"], scores["pixels"]
    figures = [*(scores[key] for key in _FIGURES), *iou.values()]
    return bool(iou) and list(pixels) == list(iou) and all(value is None or _is_share(value) for value in figures)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1  # nan is neither


def change(value: float | None, before: float | None) -> float | None:
    """How much a figure has grown; None where one of the two is not known."""
    return None if value is None or before is None else value - before


def figure(values: object, *keys: str) -> float | None:
    """A share 0..1 inside groups of values of another scoring; None where it is missing or no share.

    Args:
        values: Of one set, as in its ``eval.json``, which may be older than some of the keys.
        keys: Of the groups, the outermost first, and of the figure.
    """
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return float(values) if _is_share(values) else None


def image_names(scores: dict[str, Any]) -> set[str]:
    """Names of the images of a scoring; empty where it does not tell them, as an older one.

    Args:
        scores: Of one set.
    """
    try:
        return {image["name"] for image in scores["image_wise"]["images"]}
    except (KeyError, TypeError):
        return set()


def image_scores(scores: dict[str, Any] | None) -> dict[str, float]:
    """mIoU of the images of a scoring by their names; empty where it does not tell them.

    A name that two images have tells of neither.

    Args:
        scores: Of one set; None has none.
    """
    try:
        images = scores["image_wise"]["images"]
        count = Counter(image["name"] for image in images)
        found = {image["name"]: image["miou"] for image in images if count[image["name"]] == 1}
    except (KeyError, TypeError):  # written before images were scored one by one
        return {}
    return {name: value for name, value in found.items() if _is_share(value)}
