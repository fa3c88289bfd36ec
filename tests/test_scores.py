"""Scores as text and as plain values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from icda.metrics import UncertaintyIoU
from icda.scores import readable, uncertainty_scores, uncertainty_text


def metric(thresholds: list[float] | None, filled: bool = True) -> UncertaintyIoU:
    """Two classes; class 0 has 3 pixels and class 1 has 1, all predicted as class 0.

    Of class 0 confidences are 0.6 (invalid to people), 0.9 and 0.9; that of class 1 is 0.7 (invalid too).
    """
    result = UncertaintyIoU(2, 255, thresholds)
    if filled:
        confidence = np.array([[0.6, 0.9, 0.9, 0.7]], np.float32)
        invalid = np.array([[True, False, False, True]])
        result.update(np.zeros((1, 4), int), confidence, np.array([[0, 0, 0, 1]]), invalid)
    return result


# By hand: at 0.5 class 0 has 3/4, class 1 has 0. At 0.65 the first is invalidated (TI): the same. At 0.8 both that
# are invalid to people are: 1 and 1. At 1 class 0 has 1/3, class 1 has 1.
THRESHOLDS, UIOU = [0.5, 0.65, 0.8, 1.0], [0.375, 0.375, 1.0, 2 / 3]


def test_uncertainty_scores_by_hand():
    result = uncertainty_scores(metric(THRESHOLDS))
    assert list(result) == ["thresholds", "uiou", "average_uiou", "best"]
    assert result["thresholds"] == THRESHOLDS
    assert result["uiou"] == pytest.approx(UIOU)
    assert result["average_uiou"] == pytest.approx(sum(UIOU) / 4)
    assert result["best"] == {"threshold": 0.8, "uiou": 1.0}
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_lowest_of_equal_thresholds_is_the_best():
    assert uncertainty_scores(metric([0.5, 0.65]))["best"] == {"threshold": 0.5, "uiou": pytest.approx(0.375)}


def test_uncertainty_scores_of_nothing_are_none():
    result = uncertainty_scores(metric([0.5, 1.0], filled=False))
    assert result == {
        "thresholds": [0.5, 1.0],
        "uiou": [None, None],
        "average_uiou": None,
        "best": {"threshold": None, "uiou": None},
    }
    json.dumps(result, allow_nan=False)


def test_uncertainty_text():
    assert uncertainty_text(metric(THRESHOLDS)).splitlines() == [
        "average UIoU   60.42  over 4 thresholds, 0.5000 to 1.0000",
        "best UIoU     100.00  at threshold 0.8000, chosen on these labels",
        "UIoU at 1/C    37.50  nothing is invalidated: the mIoU",
    ]


def test_uncertainty_text_of_other_grids():
    assert "over 101 thresholds, 0.5000 to 1.0000 in equal steps" in uncertainty_text(metric(None))
    single = uncertainty_text(metric([0.8])).splitlines()
    assert single[0].endswith("over 1 threshold, 0.8000") and len(single) == 2  # the grid has no 1/C
    assert "best UIoU          -  at threshold -" in uncertainty_text(metric(None, filled=False))


@pytest.mark.parametrize(
    "value",
    [
        {"a": [], "b": {}, "c": [[]], "d": [1, -2.5e-07, None], "e": [[1], [2, 3]], "f": ["x", 1], "g": [{"h": 1}]},
        {"[\n  1\n  ]": "[\n    1\n  ]", "rows": [0.1, 0.2]},
    ],
)
def test_readable_json_is_the_same_json(value):
    assert json.loads(readable(value)) == value


def test_rows_of_numbers_stand_on_one_line():
    assert '"d": [1, 2.5, null]' in readable({"d": [1, 2.5, None]})
    assert readable({"m": [[1, 2], [3, 4]]}).splitlines()[2].strip() == "[1, 2],"
