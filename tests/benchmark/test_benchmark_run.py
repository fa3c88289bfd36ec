"""Choosing a benchmark, all of them, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stand_ins
from benchmark_runs import COMMON, SMALL, run_benchmark

from icda.benchmark import BENCHMARKS, Result, Timing, run
from icda.benchmark.settings import CALLS
from icda.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"
TIMING = Timing([0.1], [0.1], 1.0)


def command(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *args], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_names():
    assert tuple(BENCHMARKS) == tuple(CALLS) == ("train", "infer", "cem", "data", "metric", "peers", "startup")


@pytest.mark.parametrize("name", list(CALLS))
def test_a_benchmark_is_its_modules_function_imported_when_it_is_called(monkeypatch, name):
    asked = []

    class Module:
        def __getattr__(self, function):
            return lambda config: (function, config)

    monkeypatch.setattr(run, "import_module", lambda module: (asked.append(module), Module())[1])
    assert BENCHMARKS[name]("settings") == (f"measure_{name}", "settings")
    assert asked == [f"icda.benchmark.{name}"]


@pytest.mark.slow
def test_importing_the_benchmarks_imports_none_of_them():
    text = "import sys, icda.benchmark; print(sorted(m for m in sys.modules if m.startswith('icda.benchmark.')))"
    found = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=SCRIPT.parents[1]
    )
    assert not {f"icda.benchmark.{name}" for name in CALLS} & set(eval(found.stdout))


def test_summary_holds_the_settings_that_it_was_found_at(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(BENCHMARKS, "metric", lambda config: (seen.append(config), Result("h", TIMING, 1, {}))[1])
    summary, lines = run_benchmark(tmp_path, "what=metric", "threads=1", "steps=4", "precision=bf16")
    assert json.loads(lines[-1]) == summary and set(summary) >= COMMON
    assert {name: summary[name] for name in ("device", "precision", "threads", "warmup", "steps")} == {
        "device": "cpu",
        "precision": "bf16",
        "threads": 1,
        "warmup": 1,
        "steps": 4,
    }
    assert seen[0].threads == 1 and seen[0].what == "metric"


@pytest.mark.slow
def test_all_run_in_processes_of_their_own_and_one_that_fails_stops_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure_one", stand_ins.measure_one)
    monkeypatch.setattr(run, "BENCHMARKS", dict.fromkeys(("metric", "data", "peers", "startup")))
    message = r"^not measured: peers \(a package is missing\); startup \(its process was ended from outside"
    lines: list[str] = []
    monkeypatch.setattr(run.log, "info", lambda text, *args: lines.extend((text % args).splitlines()))
    with pytest.raises(UserError, match=message):
        run_benchmark(tmp_path, "what=all", "steps=null")
    found = json.loads(lines[-1])
    assert found["what"] == "all" and [one["what"] for one in found["results"]] == ["metric", "data"]
    assert [one["steps"] for one in found["results"]] == [CALLS["metric"][1], CALLS["data"][1]]
    processes = {one["process"] for one in found["results"]}
    assert len(processes) == 2 and os.getpid() not in processes
    assert "table of metric" in lines and any(line.startswith("data ") and "0.1" in line for line in lines)


@pytest.mark.slow
def test_several_settings_in_a_row_tell_each_its_own_memory_and_leave_nothing(tmp_path):
    overrides = [text for text in SMALL if not text.startswith("size=")]
    done = command(tmp_path, "-m", *overrides, "what=infer", "steps=1", "size=[1024,1024],[64,64]", "threads=1")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.stdout.splitlines()[-1].startswith("{")
    large, small = (one["peak_memory_gb"] for one in found)
    assert small < large - 0.05
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_mistake_is_told_in_a_line(tmp_path):
    done = command(tmp_path, "what=speed")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: what=speed is out of range; expected one of train, infer")
    assert list(tmp_path.iterdir()) == []
