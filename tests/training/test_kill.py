"""Runs that are killed, stopped, or find the disk full end as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from training_runs import assert_same_run, finish, settings, start

pytestmark = pytest.mark.slow

STEPS = ("schedule.max_steps=40", "schedule.val_every=10", "schedule.save_every=3", "logger=csv")


def run_of(demo_data: Path, folder: Path, *overrides: str) -> list[str]:
    return settings(demo_data, folder, *STEPS, "model.encoder.name=test_efficientnet", *overrides)


@pytest.fixture(scope="module")
def whole(demo_data, tmp_path_factory) -> Path:
    """The folder of a run of 40 steps that nothing disturbed, read by this many workers: none."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(run_of(demo_data, folder, "workers=0")))
    return folder


def wait_for(condition, process, seconds=200) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


def logged_step(folder: Path) -> int:
    """The last step in ``scalars.csv``; 0 if there is none."""
    path = folder / "scalars.csv"
    lines = path.read_text().splitlines() if path.exists() else []
    numbers = [line.partition(",")[0] for line in lines]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def test_killed_at_ten_random_moments(whole, demo_data, tmp_path):
    generator = random.Random(7)
    for kill in range(10):
        process = start(run_of(demo_data, tmp_path, "workers=2", "resume=auto"))
        if kill in (3, 6):  # while it starts
            time.sleep(generator.uniform(0, 5))
        else:  # some steps on, but not to the end
            goal = min(logged_step(tmp_path) + generator.randint(1, 4), 39)
            wait_for(lambda goal=goal: logged_step(tmp_path) >= goal, process)
            time.sleep(generator.uniform(0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    finish(start(run_of(demo_data, tmp_path, "workers=1", "resume=auto")))
    assert_same_run(whole, tmp_path)
    for folder in (whole, tmp_path):
        with (folder / "scalars.csv").open() as file:
            logged = Counter((row["name"], row["step"]) for row in csv.DictReader(file))
        assert set(logged.values()) == {1} and ("train/total", "40") in logged
    parts = json.loads((tmp_path / "record.json").read_text())
    assert len(parts) >= 9 and parts[-1]["outcome"] == "finished" and parts[0]["outcome"] is None


def test_killed_while_files_are_written(whole, demo_data, tmp_path):
    """At the n-th call of a function of the system that writing whole files makes: checkpoints, scores, records."""
    before = """
        import os, signal
        calls, real = 0, os.{call}
        def killing(*arguments, **options):
            global calls
            name = str(arguments[-1]) if "{call}" != "fsync" else os.readlink(f"/proc/self/fd/{{arguments[0]}}")
            calls += {folder!r} in name
            if calls == {number}:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        os.{call} = killing
    """
    calls = (("fsync", 9), ("link", 1), ("replace", 6), ("fsync", 14))
    for call, number in calls:
        lines = before.format(call=call, number=number, folder=str(tmp_path))
        finish(start(run_of(demo_data, tmp_path, "resume=auto"), lines), -signal.SIGKILL)
    finish(start(run_of(demo_data, tmp_path, "resume=auto")))
    assert_same_run(whole, tmp_path)
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(left) == ["best.pt", "last.pt", "step_000039.pt"]
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_signal_saves_and_leaves_with_a_code_of_its_own(whole, demo_data, tmp_path):
    number = signal.SIGINT
    process = start(run_of(demo_data, tmp_path, "workers=2", "schedule.save_every=1000"))
    wait_for(lambda: logged_step(tmp_path) > 0, process)
    os.killpg(process.pid, number)  # as a terminal and SLURM do: to the workers as well
    out, err = finish(process, 75)
    assert f"stopped by {number.name} at step " in out and "Traceback" not in err
    part = json.loads((tmp_path / "record.json").read_text())[-1]
    assert part["outcome"] == f"stopped by {number.name}" and 0 < part["step"] < 40
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["step"] == part["step"]
    finish(start(run_of(demo_data, tmp_path, "resume=auto")))
    assert_same_run(whole, tmp_path)


def test_a_signal_during_a_validation(whole, demo_data, tmp_path):
    """The validation that was cut off is made up for."""
    before = """
        import os, signal
        import icda.training.validation as validation
        real = validation.evaluate
        def signalled(*arguments, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*arguments, **options)
        validation.evaluate = signalled
    """
    finish(start(run_of(demo_data, tmp_path), before), 75)
    assert json.loads((tmp_path / "record.json").read_text())[-1]["step"] == 10
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    finish(start(run_of(demo_data, tmp_path, "resume=auto")))
    assert_same_run(whole, tmp_path)


def test_a_full_disk_ends_the_run_cleanly(whole, demo_data, tmp_path):
    """Files that may not grow, as on a disk without room, from the second checkpoint on."""
    finish(start(run_of(demo_data, tmp_path, "schedule.val_every=1000", "schedule.max_steps=3")))
    before = (tmp_path / "checkpoints" / "last.pt").read_bytes()
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, -1))"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == -1
    out, err = finish(start(run_of(demo_data, tmp_path, "resume=auto"), limit), 1)
    assert "Traceback" not in err and "Traceback" not in out
    message = err.splitlines()[-1]
    assert message.startswith("error: ") and "File too large; the last good checkpoint is " in message, err
    assert (tmp_path / "checkpoints" / "last.pt").read_bytes() == before
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert json.loads((tmp_path / "record.json").read_text())[-1]["outcome"].startswith("failed: OSError")
