"""The benchmarks: what they time, the line they end with, and the breakdown of a batch."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from conftest import CONF, TINY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from icda.benchmark import BENCHMARKS, Result, Timing, benchmark, measure
from icda.benchmark.timing import process_memory_gb, threads
from icda.errors import UserError

PACKAGE = Path(__file__).parents[1] / "icda" / "benchmark"
COMMON = {
    "what",
    "seconds",
    "images_per_second",
    "peak_memory_gb",
    "gflop",
    "peak_gflops",
    "share_of_peak",
}
SMALL = (
    "dataset=demo",
    *(option for option in TINY if option.startswith("dataset.")),
    "warmup=1",
    "repeats=3",
    "images=2",
    "workers=0",
    "progress=false",
)


@pytest.fixture
def run(tmp_path: Path, caplog) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """Runs a small benchmark; returns its summary and the lines it printed."""

    def run_with(*overrides: str) -> tuple[dict[str, Any], list[str]]:
        caplog.clear()
        with initialize_config_dir(str(CONF), version_base="1.3"), caplog.at_level(logging.INFO):
            summary = benchmark(compose("benchmark", [*SMALL, *overrides]), tmp_path)
        return summary, "\n".join(caplog.messages).splitlines()

    return run_with


def rows(lines: list[str]) -> dict[str, list[float]]:
    found = [re.match(r"(\S.*?|  \S+)((?:\s+-?\d+\.\d\d)+)$", line) for line in lines]
    return {match[1].strip(): [float(value) for value in match[2].split()] for match in found if match}


def test_measure_counts_calls_and_tells_work_from_waiting():
    calls = []
    timing = measure(lambda: (calls.append(0), time.sleep(0.02)), warmup=2, repeats=3)
    assert len(calls) == 5 and len(timing.wall) == len(timing.cpu) == 3
    assert min(timing.wall) >= 0.02 and min(timing.cpu) < 0.01
    waits = []
    measure(calls.clear, warmup=0, repeats=2, synchronize=lambda: waits.append(0))
    assert len(waits) == 4


def test_summary_by_hand():
    timing = Timing(wall=[0.5, 0.1, 0.2], cpu=[0.2, 0.05, 0.1])
    result = Result("h", timing, images=4, rows={"a": timing}, peak_memory_gb=1.5)
    assert result.summary("data") == {
        "what": "data",
        "seconds": {"median": 0.2, "min": 0.1, "max": 0.5},
        "images_per_second": 20.0,
        "peak_memory_gb": 1.5,
        "gflop": None,
        "peak_gflops": None,
        "share_of_peak": None,
        "cpu_seconds": {"median": 0.1, "min": 0.05, "max": 0.2},
        "rows": {"a": 0.2},
    }
    of_peak = replace(result, gflop=30.0, peak_gflops=600.0).summary("train")
    assert of_peak["share_of_peak"] == pytest.approx(30 / 0.2 / 600)
    assert replace(result, gflop=30.0).summary("train")["share_of_peak"] is None


def test_table_by_hand():
    timing = Timing(wall=[0.5, 0.1, 0.2], cpu=[0.2, 0.05, 0.1])
    text = Result("what", timing, 1, {"a": timing}, {"part": {"a": 3.0}}).table()
    assert text.splitlines() == [
        "what",
        "",
        "ms      median         min         max  CPU median",
        "a       200.00      100.00      500.00      100.00",
        "",
        "CPU ms of which           a",
        "part                   3.00",
    ]


def test_threads_are_put_back():
    before = torch.get_num_threads(), cv2.getNumThreads()
    with threads(1):
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before


def test_memory_is_in_gigabytes():
    assert 0.05 < process_memory_gb() < 50  # PyTorch alone takes more than the first


@pytest.mark.parametrize("data", ["drawn", "on disk"])
def test_data(run, demo_data, data):
    summary, lines = run(*([] if data == "drawn" else [f"data_dir={demo_data}"]))
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


def test_data_with_made_references(run):
    table = rows(run("dataset.reference=enhanced", "cem=relight")[1])
    assert min(table["day from night"]) > 0 and min(table["illumination"]) > 0


def test_nothing_is_written_beside_the_data(run, demo_data):
    before = sorted(demo_data.rglob("*"))
    run(f"data_dir={demo_data}")
    assert sorted(demo_data.rglob("*")) == before


def test_cem(run):
    summary, lines = run("what=cem", "cem=relight")
    assert json.loads(lines[-1]) == summary and set(summary) >= COMMON
    names = ["spatial", "homography", "tps", "affine_tps", "translated", "style", "relight"]
    names += ["jitter", "blur", "normalise", "whole, relight", "day from night"]
    assert list(summary["rows"]) == list(rows(lines)) == names
    assert summary["rows"]["spatial"] == summary["seconds"]["median"]
    assert summary["rows"]["whole, relight"] > summary["rows"]["normalise"]


def test_every_benchmark_is_documented():
    line = re.search(r"^what: .*$", (CONF / "benchmark.yaml").read_text(), re.M)[0]
    assert all(f"{name} (" in line for name in BENCHMARKS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("what=speed", r"^what=speed is out of range; expected one of data, cem"),
        ("repeats=0", r"1 or more"),
        ("warmup=-1", r"0 or more"),
        ("threads=0", r"1 or more"),
        ("dataset.sampling.crop=[64]", r"\[height, width\]"),
        ("dataset.target=null", r"dataset=demo has no target"),
        ("cem=translated", r"no pictures can be drawn for dataset=demo cem=translated; give data_dir="),
        ("dataset.source._target_=icda.data.CamVid", r"no pictures can be drawn"),
        ("data_dir=/nowhere", r"no folder /nowhere/demo/Cityscapes"),
    ],
)
def test_mistakes(run, override, message):
    with pytest.raises(UserError, match=message) as error:
        run(override)
    assert "\n" not in str(error.value)


def test_keys_are_documented_and_read():
    text = (CONF / "benchmark.yaml").read_text().split("hydra:")[0]
    keys = re.findall(r"^([a-z_]+):(.*)$", text, re.M)
    assert [key for key, rest in keys if key != "defaults" and "#" not in rest] == []
    code = "".join(path.read_text() for path in PACKAGE.glob("*.py"))
    names = [key for key in OmegaConf.load(CONF / "benchmark.yaml") if key not in ("defaults", "hydra")]
    assert [name for name in names if f"config.{name}" not in code] == []
