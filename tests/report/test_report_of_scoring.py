"""What scripts/eval.py writes beside the scores: figures and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from test_page import figures

from icda.errors import UserError
from icda.scoring import score, validate_eval
from icda.training.loop import train


@pytest.fixture(scope="module")
def checkpoint(demo_data, tmp_path_factory) -> Path:
    from conftest import TINY

    folder = tmp_path_factory.mktemp("run")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*TINY, f"data_dir={demo_data}", "loss=source_only"])
    train(cfg, folder)
    return folder / "checkpoints" / "last.pt"


def composed(checkpoint: Path, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("eval", [f"ckpt='{checkpoint}'", "workers=0", "device=cpu", "progress=false", *overrides])


def test_the_page_shows_what_the_file_holds(checkpoint, tmp_path):
    first = score(composed(checkpoint, "report_images=1"), tmp_path / "a")
    again = score(composed(checkpoint, f"compare={tmp_path / 'a'}", "temperature=3"), tmp_path / "b")
    written = json.loads((tmp_path / "a" / "eval.json").read_text())
    assert written == first
    scores = written["sets"]["val"]
    shown = figures((tmp_path / "a" / "report" / "index.html").read_text(encoding="utf-8"))
    assert float(shown["miou"]) == scores["miou"] and float(shown["calibration.ece"]) == scores["calibration"]["ece"]
    assert len(scores["image_wise"]["images"]) == scores["images"] == 3
    matrix = np.array(scores["confusion_matrix"])
    assert matrix.sum() == scores["labelled_pixels"] and len(scores["brightness"]) == 3
    for key in ("miou", "image_wise", "brightness"):  # a temperature changes confidences alone
        assert again["sets"]["val"][key] == scores[key]
    assert again["sets"]["val"]["calibration"] != scores["calibration"]
    page = (tmp_path / "b" / "report" / "index.html").read_text(encoding="utf-8")
    assert "The other run" not in page
    assert "before, %" in page and "= 0.00" in page


def test_without_a_page_the_figures_are_the_same(checkpoint, tmp_path):
    result = score(composed(checkpoint, "report=false"), tmp_path / "a")
    assert not (tmp_path / "a" / "report").exists()
    assert result == score(composed(checkpoint, "report_images=0"), tmp_path / "b")
    assert "No image can be looked at" in (tmp_path / "b" / "report" / "index.html").read_text(encoding="utf-8")


def test_another_run_of_other_classes_is_told_before_and_on_the_page(checkpoint, tmp_path, caplog):
    folder = tmp_path / "old"
    folder.mkdir()
    entry = {
        "miou": 0.5,
        "pixel_accuracy": 0.5,
        "frequency_weighted_iou": None,
        "iou": {"a": 0.5},
        "pixels": {"a": 3},
    }
    (folder / "eval.json").write_text(json.dumps({"sets": {"val": entry}}))
    with caplog.at_level("WARNING"):
        score(composed(checkpoint, f"compare={folder}"), tmp_path)
    assert "eval.json has no scores of val for the same classes" in caplog.text
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "scored this set for other classes: nothing to compare" in page and "before, %" not in page


def test_a_page_that_cannot_be_written_leaves_the_scores(checkpoint, tmp_path):
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(OSError) as raised:
        score(composed(checkpoint), tmp_path)
    assert raised.value.errno is not None and raised.value.filename == str(tmp_path / "report" / "index.html")
    assert json.loads((tmp_path / "eval.json").read_text())["sets"]["val"]["images"] == 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("report_images=-1", "report_images=-1 is out of range; expected 0 or more"),
        ("report_side=3", "report_side=3 is out of range; expected 16 or more"),
        ("compare=runs/other report=false", "compare=runs/other is given, but report=false; the page is what"),
        ("report=maybe", "report=maybe has the wrong type"),
        ("temperature=0", "temperature=0"),
        ("scales=[]", "scales"),
    ],
)
def test_settings_that_are_none_are_named(override, expected):
    with pytest.raises(UserError) as raised:
        validate_eval(composed(Path("x"), *override.split()))
    assert expected in str(raised.value)


def test_what_to_compare_with_is_looked_at_before_anything_is_scored(tmp_path):
    with pytest.raises(UserError, match="compare: there is no file"):
        score(composed(Path("nowhere.pt"), f"compare={tmp_path / 'no'}"), tmp_path)
