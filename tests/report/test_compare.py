"""Reading another scoring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_pages import evaluation

from icda.errors import UserError
from icda.report.compare import Other, change, figure, image_names, image_scores, load_other


def test_a_run_folder_and_its_file_are_the_same(tmp_path):
    result, _ = evaluation(3)
    (tmp_path / "eval.json").write_text(json.dumps(result))
    for given in (tmp_path, tmp_path / "eval.json"):
        other = load_other(str(given))
        assert other.sets == result["sets"] and other.path == tmp_path / "eval.json"
    classes = list(result["sets"]["val"]["iou"])
    assert other.matching("val", classes) == result["sets"]["val"]
    assert other.matching("test", classes) is None
    assert other.matching("val", ["another class"]) is None and other.matching("val", classes[::-1]) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"sets": {}}',
        '{"sets": {"val": 3}}',
        '{"sets": {"val": {"iou": {"a": "x"}}}}',
        '{"sets": [1]}',
    ],
)
def test_other_files_are_refused_in_one_line(content, tmp_path):
    (tmp_path / "eval.json").write_text(content)
    with pytest.raises(
        UserError, match=r"compare: .*eval.json is not what scripts/eval.py writes; give a run folder"
    ):
        load_other(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), 2, "<b>"])
def test_scores_that_are_none_are_refused(value, tmp_path):
    result, _ = evaluation(1)
    result["sets"]["val"]["miou"] = value
    (tmp_path / "eval.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match="is not what"):
        load_other(str(tmp_path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nowhere; give a run folder"):
        load_other(str(tmp_path / "nowhere"))


def test_changes_and_scores_of_images():
    assert change(0.5, 0.25) == 0.25 and change(None, 0.5) is None and change(0.5, None) is None
    result, _ = evaluation(2, unlabelled=[1])
    scores = result["sets"]["val"]
    assert image_scores(scores) == {"drive/frame_0000": scores["image_wise"]["images"][0]["miou"]}
    twins = {"image_wise": {"images": [{"name": n, "miou": v} for n, v in (("a", 0.1), ("a", 0.2), ("b", 0.3))]}}
    assert image_scores(twins) == {"b": 0.3}
    assert image_scores({"miou": 0.5}) == {} and image_scores(None) == {}


def test_what_speaks_against_a_comparison_is_said():
    result, _ = evaluation(3)
    scores = result["sets"]["val"]

    def remark(**changes: object) -> str:
        return Other(Path("x"), {"val": {**scores, **changes}}).remark("val", scores)

    assert remark() == ""
    assert remark(iou={"another class": 0.5}).startswith("The other run scored this set for other classes")
    assert (
        Other(Path("x"), {}).remark("val", scores) == "The other run has no scores of this set: nothing to compare."
    )
    assert remark(dataset="<b>").startswith("The other run scored another data set, <b>:")
    assert remark(images=9, image_wise=None).startswith("The other run scored other images (9): ")
    others = [{**image, "name": f"moved/{k}" if k else image["name"]} for k, image in enumerate(_images(scores))]
    assert "other images (3, 1 of them among these 3)" in remark(image_wise={"images": others})
    old = {key: value for key, value in scores.items() if key not in ("images", "dataset", "image_wise")}
    assert Other(Path("x"), {"val": old}).remark("val", scores) == ""  # nothing is known of its images


def _images(scores: dict) -> list[dict]:
    return scores["image_wise"]["images"]


@pytest.mark.parametrize("value", [None, "0.5", 7, float("nan"), [], {}])
def test_figures_that_are_none_are_not_compared(value):
    assert figure({"a": {"b": 0.5}}, "a", "b") == 0.5
    assert figure({"a": {"b": value}}, "a", "b") is None
    assert figure({"a": value}, "a", "b") is None and figure(None, "a") is None
    assert image_names({"image_wise": value}) == set() == image_names({"image_wise": {"images": [value]}})
