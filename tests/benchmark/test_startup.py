"""How long commands take to start: which are run, what counts, and the large tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_runs import COMMON, run_benchmark

from icda.benchmark import startup
from icda.benchmark.startup import make_large_tree, open_tree, run_command
from icda.errors import UserError


@pytest.mark.parametrize("files", [101, 102, 103, 104])
def test_large_tree(tmp_path, demo_data, files):
    tree = make_large_tree(tmp_path / "tree", demo_data / "demo", files)
    found = [path for path in tree.rglob("*") if path.is_file()]
    assert files - 1 <= len(found) <= files  # pairs come by two
    assert sum(path.suffix == ".csv" for path in found) == 1
    source, target = open_tree(tree)
    assert len(source) == files // 4 and len(target) == (len(found) - 1 - 2 * len(source)) // 2
    assert all(sample.label is not None for sample in source.samples)
    assert all(sample.reference is not None for sample in target.samples) and target.unpaired == 0
    index = len(source) - 1
    assert source.image(index).shape[:2] == source.label(index).shape  # whole files, not empty ones
    assert target.image(0).shape == target.reference(0).shape


def test_links_where_the_file_system_has_none(tmp_path, demo_data, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(startup.os, "link", refuse)
    source, target = open_tree(make_large_tree(tmp_path / "tree", demo_data / "demo", 21))
    assert source.image(0).shape == target.image(0).shape


def test_only_a_checkout_can_be_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "SCRIPTS", tmp_path)
    with pytest.raises(UserError, match=r"there is no .*train\.py; clone the repository") as error:
        run_benchmark(tmp_path, "what=startup")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_work_counts_as_the_childs(tmp_path):
    work = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    wall, cpu = run_command(["-c", work], 1, tmp_path)
    assert wall >= 0.3 and 0.3 <= cpu < 0.3 + wall
    wall, cpu = run_command(["-c", "import time; time.sleep(0.5)"], 1, tmp_path)
    assert wall >= 0.5 > cpu
    with pytest.raises(UserError, match=r"failed: ZeroDivisionError"):
        run_command(["-c", "1 / 0"], 1, tmp_path)
    run_command(["-c", "import sys; sys.exit('error: batch=0 is out of range; expected 1')"], 1, tmp_path)
    run_command(
        ["-c", "import os; assert os.environ['OMP_NUM_THREADS'] == '3'; assert not os.listdir()"], 3, tmp_path
    )


@pytest.mark.slow
def test_summary(tmp_path, monkeypatch):
    seen: list[list[str]] = []

    def run(arguments: list[str], threads: int | None, folder: Path) -> tuple[float, float]:
        seen.append(arguments)
        return run_command(arguments, threads, folder)

    monkeypatch.setattr(startup, "run_command", run)
    monkeypatch.setattr(startup, "FILES", 200)
    summary, lines = run_benchmark(tmp_path, "what=startup", "steps=1", "warmup=0", "threads=1")
    assert json.loads(lines[-1]) == summary and set(summary) >= COMMON and summary["what"] == "startup"
    assert list(summary["rows"]) == ["import icda", "refused setting", "first step", "prediction", "open 200 files"]
    assert summary["rows"]["first step"] == summary["seconds"]["median"]
    assert summary["peak_memory_gb"] > 0.1
    assert [Path(arguments[0]).name for arguments in seen] == ["-c", "train.py", "train.py", "predict.py"]
    assert list(tmp_path.iterdir()) == []
