"""The benchmark of reading and preparing batches: what it times, and the breakdown of a batch."""

from __future__ import annotations

import json
import re

import pytest
from benchmark_runs import COMMON, run_benchmark

from icda.errors import UserError


def rows(lines: list[str]) -> dict[str, list[float]]:
    """The numbers of a table's lines, by their names."""
    found = [re.match(r"(\S.*?|  \S+)((?:\s+-?\d+\.\d\d)+)$", line) for line in lines]
    return {match[1].strip(): [float(value) for value in match[2].split()] for match in found if match}


@pytest.mark.parametrize("data", ["drawn", "on disk"])
def test_data(tmp_path, demo_data, data):
    given = [] if data == "drawn" else [f"data_dir={demo_data}"]
    summary, lines = run_benchmark(tmp_path, "what=data", "batch=2", "steps=3", *given)
    assert json.loads(lines[-1]) == summary
    assert set(summary) >= COMMON and summary["what"] == "data"
    seconds = summary["seconds"]
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert summary["images_per_second"] == pytest.approx(4 / seconds["median"])
    assert set(summary["rows"]) == {"files", "cache"} and summary["rows"]["cache"] == seconds["median"]
    table = rows(lines)
    assert len(table["files"]) == len(table["cache"]) == 4
    parts = {name: values for name, values in table.items() if len(values) == 2}
    needed = ("read", "window, crop", "illumination", "jitter", "normalise", "spatial", "collate", "other")
    assert all(min(parts[name]) > 0 for name in needed), parts
    assert parts["resize"][1] == 0  # stored at training size
    assert data == "on disk" or parts["resize"][0] > 0  # drawn twice as large
    assert parts["day from night"] == [0, 0]


def test_data_with_made_references(tmp_path):
    table = rows(run_benchmark(tmp_path, "what=data", "dataset.reference=enhanced", "cem=relight")[1])
    assert min(table["day from night"]) > 0 and min(table["illumination"]) > 0


def test_nothing_is_written_beside_the_data(tmp_path, demo_data):
    before = sorted(demo_data.rglob("*"))
    run_benchmark(tmp_path, "what=data", f"data_dir={demo_data}")
    assert sorted(demo_data.rglob("*")) == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.target=null", r"dataset=demo has no target"),
        ("cem=translated", r"no pictures can be drawn for dataset=demo cem=translated; give data_dir="),
        ("dataset.source._target_=icda.data.CamVid", r"no pictures can be drawn"),
        ("data_dir=/nowhere", r"no folder /nowhere/demo/Cityscapes"),
    ],
)
def test_mistakes(tmp_path, override, message):
    with pytest.raises(UserError, match=message) as error:
        run_benchmark(tmp_path, "what=data", override)
    assert "\n" not in str(error.value)
