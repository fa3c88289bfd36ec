"""What a run writes for people: kept up to a step, whole at every moment, and read however damaged it is."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from icda.errors import UserError
from icda.training import durable
from icda.training.results import Results, finished

CFG = OmegaConf.create({"seed": 3, "schedule": {"max_steps": 8}})
SCORES = {"miou": 0.25, "iou": {"road": 0.5, "sky": None}, "pixels": {"road": 4, "sky": 0}}
SCORES |= {"frequency_weighted_iou": 0.5, "pixel_accuracy": 0.5, "mean_class_accuracy": 0.5}


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path / "run", "night")


def filled(results: Results, *steps: int) -> Results:
    results.begin(0, None)
    for step in steps:
        results.validation(step, step / 2, {"miou": step / 100})
    return results


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in lines(folder)]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_lines_up_to_a_step_stay_as_they_are(results):
    filled(results, 2, 4, 6)
    before = lines(results.folder)
    assert before[1] == {"step": 4, "seconds": 2.0, "miou": 0.04}
    results.begin(5, results.folder)
    assert lines(results.folder) == before[:2]
    results.begin(4, results.folder)
    assert lines(results.folder) == before[:2]
    results.begin(0, results.folder)
    assert steps(results.folder) == []


def test_a_validation_that_was_cut_off_goes_and_is_there_once_when_made_up_for(results):
    filled(results, 2, 4)
    results.begin(4, results.folder, validated=False)
    assert steps(results.folder) == [2]
    results.validation(4, 9.0, {"miou": 0.5})
    assert [line["miou"] for line in lines(results.folder)] == [0.02, 0.5]


def test_the_lines_of_a_run_in_another_folder_are_taken_over(results, tmp_path):
    filled(results, 2, 4)
    other = Results(tmp_path / "other" / "run", "night")
    other.begin(2, results.folder)
    assert steps(other.folder) == [2] and steps(results.folder) == [2, 4]
    other.begin(2, tmp_path / "nothing")
    assert steps(other.folder) == []


def test_a_disk_that_is_full_at_the_start_leaves_lines_and_summary(results):
    filled(results, *range(1, 20))
    summary = results.folder / "summary.json"
    summary.write_text("{}")
    before = (results.folder / "metrics.jsonl").read_bytes()
    with files_of_at_most(60), pytest.raises(OSError) as caught:
        results.begin(18, results.folder)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(results.folder / "metrics.jsonl")
    assert (results.folder / "metrics.jsonl").read_bytes() == before and summary.read_text() == "{}"
    assert {path.name for path in results.folder.iterdir()} == {"metrics.jsonl", "summary.json"}
    results.begin(18, results.folder)
    assert steps(results.folder) == list(range(1, 19)) and not summary.exists()


def test_a_disk_that_is_full_at_a_validation_leaves_whole_lines(results):
    filled(results, 2)
    path = results.folder / "metrics.jsonl"
    before = path.read_bytes()
    with files_of_at_most(len(before) + 5), pytest.raises(OSError) as caught:
        results.validation(4, 1.0, {"miou": 0.5})
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert path.read_bytes() == before
    results.validation(6, 1.0, {"miou": 0.5})
    assert steps(results.folder) == [2, 6]


def test_a_validation_is_on_the_disk_when_it_returns(results, monkeypatch):
    filled(results, 2)
    flushed, fsync = [], os.fsync

    def look(descriptor: int) -> None:
        assert stat.S_ISREG(os.fstat(descriptor).st_mode)
        flushed.append((results.folder / "metrics.jsonl").read_text().count("\n"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    results.validation(4, 1.0, {"miou": 0.5})
    assert flushed == [2]


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 3, "miou": 0.\n',
        b"\xff\xfe\x80\n",
        b'{"step": 3, "iou": {"ro\xffd": 1}}\n',
        b"\0" * 50 + b"\n",
        b"[" * 100_000 + b"\n",
        b'{"step": ' + b"9" * 5000 + b"}\n",
        b'{"step": true}\n{"step": "3"}\n{"step": null}\n[3]\n3\n\n',
    ],
)
def test_damaged_lines_cost_only_themselves(results, damage):
    filled(results, 2, 4)
    path = results.folder / "metrics.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(damage + first + damage + second + damage.rstrip(b"\n"))
    results.begin(9, results.folder)
    assert path.read_bytes() == first + second


def test_what_killed_processes_left_in_the_folder_goes(results):
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    filled(results, 2)
    files = ("record.json", "scalars.csv", "metrics.jsonl", "summary.json")
    for name in files:
        (results.folder / f".{name}.{durable.host()}.{child.pid}.tmp").write_text("half")
    writing = results.folder / f".record.json.{durable.host()}.{os.getppid()}.tmp"
    writing.write_text("half")
    results.begin(2, results.folder)
    assert {path.name for path in results.folder.iterdir()} == {"metrics.jsonl", writing.name}


@pytest.mark.parametrize("skipped", [0, 2])
def test_the_summary_of_a_finished_run(results, caplog, skipped):
    filled(results, 2)
    with caplog.at_level(logging.INFO):
        summary = results.finish(CFG, 8, 12.3456, 0.75, SCORES, skipped)
    assert json.loads((results.folder / "summary.json").read_text()) == summary
    assert {path.name for path in results.folder.iterdir()} == {"metrics.jsonl", "summary.json"}
    expected = {"best_miou": 0.75, "last_miou": 0.25, "steps": 8, "seconds": 12.346, "skipped": skipped}
    assert {name: summary[name] for name in expected} == expected and summary["config"] == CFG
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == bool(skipped)
    assert all("left out 2 of the 8 steps" in warning and "\n" not in warning for warning in warnings)
    assert finished(results.folder, CFG, 8) == summary
    assert finished(results.folder, CFG, 9) is None
    other = OmegaConf.merge(CFG, {"seed": 4})
    with pytest.raises(UserError, match=r"the finished run in .* was trained with seed=3, now it is 4"):
        finished(results.folder, other, 8)


def test_a_disk_that_is_full_at_the_end_leaves_no_summary(results):
    filled(results)
    with files_of_at_most(20), pytest.raises(OSError) as caught:
        results.finish(CFG, 8, 1.0, 0.75, SCORES)
    assert caught.value.filename == str(results.folder / "summary.json")
    assert [path.name for path in results.folder.iterdir()] == ["metrics.jsonl"]


WHOLE = {"steps": 8, "last_miou": None, "config": {"seed": 3}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\0",
        b"[" * 100_000,
        b"[]",
        b'"steps"',
        *(json.dumps({k: v for k, v in WHOLE.items() if k != name}).encode() for name in WHOLE),
        *(
            json.dumps({**WHOLE, **change}).encode()
            for change in ({"steps": 8.0}, {"steps": "8"}, {"last_miou": "0.5"}, {"config": None}, {"config": [1]})
        ),
    ],
)
def test_what_is_no_summary_is_no_finished_run(tmp_path, content):
    assert finished(tmp_path, CFG, 8) is None
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(WHOLE))
    assert finished(tmp_path, CFG, 8) == WHOLE
    path.write_bytes(content)
    assert finished(tmp_path, CFG, 8) is None


def test_held_out_scores_stand_in_the_summary_and_behind_the_validations(results):
    filled(results, 8)
    held_out = {"report": {**SCORES, "miou": 0.125}}
    summary = results.finish(CFG, 8, 12.0, 0.75, SCORES, held_out=held_out)
    brief = {"report": {"miou": 0.125, "iou": {"road": 0.5, "sky": None}}}
    assert summary["score_last"] == brief and summary["last_miou"] == 0.25
    assert lines(results.folder)[1:] == [{"step": 8, "seconds": 12.0, "score_last": brief}]


def test_a_run_that_goes_on_is_rid_of_held_out_scores(results):
    """They were written, but no summary; they will be made again, at this step or a later one."""
    filled(results, 8)
    results.finish(CFG, 8, 12.0, 0.75, SCORES, held_out={"report": SCORES})
    results.begin(8, results.folder)
    assert lines(results.folder) == [{"step": 8, "seconds": 4.0, "miou": 0.08}]


def test_without_held_out_sets_there_is_no_line_of_them(results):
    filled(results, 8)
    assert results.finish(CFG, 8, 12.0, 0.75, SCORES)["score_last"] == {}
    assert len(lines(results.folder)) == 1


@pytest.mark.parametrize(
    ("scored", "asked", "ends"),
    [
        ({}, [], True),
        ({"a": {}}, [], True),
        ({"a": {}, "b": {}}, ["a"], True),
        ({"a": {}}, ["a", "b"], False),
        (None, ["a"], False),
        ([3], ["a"], False),
    ],
)
def test_a_run_is_finished_if_all_that_was_asked_for_was_scored(tmp_path, scored, asked, ends):
    summary = {"steps": 8, "last_miou": 0.5, "score_last": scored, "config": OmegaConf.to_container(CFG)}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    found = finished(tmp_path, OmegaConf.merge(CFG, {"score_last": asked}), 8)
    assert found == (summary if ends else None)
