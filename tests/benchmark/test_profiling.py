"""Traces of a call."""

from __future__ import annotations

import json

import pytest
import torch
from benchmark_runs import run_benchmark

from icda.benchmark.profiling import free_path, profile_call


def test_trace_and_table_name_the_operators(tmp_path):
    a = torch.randn(64, 64)
    path = tmp_path / "made" / "trace.json"
    table = profile_call(lambda: torch.mm(a, a).relu_(), torch.device("cpu"), path)
    names = {event["name"] for event in json.loads(path.read_text())["traceEvents"]}
    assert {"aten::mm", "aten::relu_"} <= names
    assert "aten::mm" in table and "Self CPU" in table


def test_at_most_15_operators_are_listed(tmp_path):
    x = torch.rand(8) + 1
    names = ["abs", "neg", "exp", "log", "sqrt", "sin", "cos", "tan", "tanh", "sigmoid", "floor", "ceil", "round"]
    names += ["sign", "square", "erf", "relu", "asinh", "atan", "log1p"]
    table = profile_call(lambda: [getattr(torch, n)(x) for n in names], torch.device("cpu"), tmp_path / "t.json")
    assert sum("aten::" in line for line in table.splitlines()) == 15


def test_a_trace_replaces_none(tmp_path):
    names = []
    for _ in range(3):
        path = free_path(tmp_path, "trace_train")
        path.touch()
        names.append(path.name)
    assert names == ["trace_train.json", "trace_train_2.json", "trace_train_3.json"]


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        profile_call(lambda: None, torch.device("cpu"), tmp_path / "file" / "trace.json")


def test_a_benchmark_writes_one_and_says_where(tmp_path):
    _, lines = run_benchmark(tmp_path, "what=infer", "profile=true", "steps=1")
    path = tmp_path / "trace_infer.json"
    assert f"trace of a call: {path}; https://ui.perfetto.dev shows it" in lines
    assert any(event["name"] == "aten::convolution" for event in json.loads(path.read_text())["traceEvents"])
    assert json.loads(lines[-1])["what"] == "infer"
