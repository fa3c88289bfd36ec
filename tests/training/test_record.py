"""The record of a run's parts: what it holds, how parts are appended and ended, and what git says."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from icda.errors import UserError
from icda.training import record as module
from icda.training.record import Record, failed, git_facts

CPU = torch.device("cpu")
START = {"device": CPU, "world_size": 1, "precision": "fp32", "seed": 3, "step": 0, "images_per_step": 4}
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def parts(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def test_a_part_that_has_begun_says_where_and_with_what(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "hydra.run.dir=my runs/a", "schedule.lr=1e-4"])
    monkeypatch.setenv("SOME_TOKEN", "hunter2-secret")
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    record = Record(tmp_path / "run" / "record.json")
    record.start(**{**START, "resumed_from": Path("runs/x/checkpoints/last.pt"), "step": 7})
    (part,) = parts(record.path)
    assert before <= datetime.fromisoformat(part["started"]) <= datetime.now(timezone.utc)
    assert part["started"].endswith("+00:00")
    assert part["host"] == socket.gethostname() and part["folder"] == str(Path.cwd())
    assert part["command"] == "scripts/train.py 'hydra.run.dir=my runs/a' schedule.lr=1e-4"
    assert shlex.split(part["command"]) == sys.argv
    assert part["versions"]["numpy"] == np.__version__
    assert cv2.__version__.startswith(part["versions"]["opencv-python-headless"][:5])
    assert part["torch_build"] == torch.__version__ and part["cuda"] == torch.version.cuda
    assert part["device"] == "cpu" and part["device_count"] == torch.cuda.device_count()
    assert part["cpu"]["threads"] == torch.get_num_threads() and part["cpu"]["cores"] == os.cpu_count()
    assert part["cpu"]["model"]
    assert (part["world_size"], part["precision"], part["seed"]) == (1, "fp32", 3)
    assert part["first_step"] == part["step"] == 7 and part["resumed_from"] == "runs/x/checkpoints/last.pt"
    assert part["ended"] is None and part["outcome"] is None and part["skipped"] == 0
    assert "hunter2-secret" not in record.path.read_text()


def test_speed_seconds_and_memory(tmp_path, monkeypatch):
    clock = iter([100.0, 100.5, 110.0, 120.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module, "peak_memory", lambda device: {"process": 1.23456})
    record = Record(tmp_path / "record.json")
    record.start(**{**START, "step": 10})
    (part,) = parts(record.path)
    assert part["seconds"] == 0.5 and part["images_per_second"] == 0
    record.update(15)
    (part,) = parts(record.path)
    assert (part["step"], part["seconds"], part["images_per_second"]) == (15, 10.0, 5 * 4 / 10)
    assert part["outcome"] is None and part["peak_memory_gb"] == {"process": 1.235}
    record.end("stopped by SIGTERM", 16)
    (part,) = parts(record.path)
    assert (part["step"], part["seconds"], part["images_per_second"]) == (16, 20.0, 6 * 4 / 20)
    assert part["outcome"] == "stopped by SIGTERM" and datetime.fromisoformat(part["ended"])


def test_steps_that_were_left_out(tmp_path):
    record = Record(tmp_path / "record.json")
    record.start(**START, skipped=1)
    assert parts(record.path)[0]["skipped"] == 1
    record.update(5, 2)
    assert parts(record.path)[0]["skipped"] == 2
    record.end("finished", 9, skipped=3)
    assert (parts(record.path)[0]["skipped"], parts(record.path)[0]["step"]) == (3, 9)


def test_a_resumed_run_appends_and_a_killed_part_has_no_end(tmp_path):
    path = tmp_path / "record.json"
    first = Record(path)
    first.start(**START)
    first.update(5)  # and no end: killed
    second = Record(path)
    second.start(**{**START, "step": 5, "resumed_from": tmp_path / "last.pt"})
    second.end("finished", 9)
    killed, finished = parts(path)
    assert (killed["first_step"], killed["step"], killed["outcome"], killed["ended"]) == (0, 5, None, None)
    assert (finished["first_step"], finished["step"], finished["outcome"]) == (5, 9, "finished")
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("content", [b"", b'[{"step": 3', b'{"step": 3}', b"[1]", b"\xff\xfe\0", b"[" * 100_000])
def test_a_damaged_or_foreign_file_is_set_aside(tmp_path, caplog, content):
    path = tmp_path / "record.json"
    for number in (1, 2):
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            Record(path).start(**START)
        assert len(parts(path)) == 1
        assert (tmp_path / f"record.damaged_{number}.json").read_bytes() == content
    assert "record.damaged_2.json" in caplog.text


def test_a_file_that_cannot_be_written_is_an_error_first_and_then_a_warning(tmp_path, monkeypatch, caplog):
    record = Record(tmp_path / "record.json")
    record.start(**START)

    def full(path: Path, write: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_whole", full)
    record.end("finished", 2)
    assert "record.json cannot be written: No space left on device" in caplog.text
    with pytest.raises(OSError):
        Record(tmp_path / "record.json").start(**START)
    assert parts(record.path)[0]["step"] == 0


def test_arguments_that_are_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", os.fsdecode(b"data_dir=\xff")])
    record = Record(tmp_path / "record.json")
    record.start(**START)
    assert os.fsencode(shlex.split(parts(record.path)[0]["command"])[1]) == b"data_dir=\xff"


def test_a_working_folder_that_was_deleted(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    record = Record(tmp_path / "record.json")
    record.start(**START)
    assert parts(record.path)[0]["folder"] is None


def test_errors_in_one_line():
    assert failed(UserError("the loss is\n not finite")) == "failed: UserError: the loss is not finite"
    assert failed(KeyboardInterrupt()) == "failed: KeyboardInterrupt"
    assert len(failed(RuntimeError("x " * 5000))) == 500


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package in a repository with one commit, with no settings of the person who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("a = 1\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", "package")
    git(folder.parent, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@needs_git
def test_git_clean_dirty_and_files_that_it_does_not_know(package, monkeypatch):
    commit = git(package, "rev-parse", "HEAD")
    assert len(commit) == 40 and git_facts(package) == {"commit": commit, "clean": True}
    (package / "notes.txt").write_text("not known")
    assert git_facts(package) == {"commit": commit, "clean": True}
    (package / "__init__.py").write_text("a = 2\n")
    assert git_facts(package) == {"commit": commit, "clean": False}
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as within a hook of another repository
    assert git_facts(package) == {"commit": commit, "clean": False}


@needs_git
def test_git_none(package, tmp_path):
    installed = package.parent / "venv" / "icda"  # below a repository, but no part of it
    bare = tmp_path / "bare"
    unborn = tmp_path / "unborn" / "icda"
    for folder in (installed, bare, unborn):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    git(unborn, "init", "-q")
    git(unborn, "add", "__init__.py")
    assert git_facts(installed) is git_facts(bare) is git_facts(unborn) is git_facts(tmp_path / "no") is None


@needs_git
def test_git_refuses_a_repository_of_another_user(package, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(subprocess.CalledProcessError):
        git(package, "status")
    assert git_facts(package) is None


def test_git_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_facts(Path(module.__file__).parents[1]) is None


@pytest.mark.skipif(os.name != "posix", reason="needs a shell script")
def test_git_that_hangs_or_breaks(tmp_path, monkeypatch):
    script = tmp_path / "git"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for content, seconds in (("exec sleep 60", 0.3), ("cat; exit 3", 30), ("kill -9 $$", 30)):
        monkeypatch.setattr(module, "_GIT_SECONDS", seconds)
        script.write_text(f"#!/bin/sh\n{content}\n")
        script.chmod(0o755)
        started = time.monotonic()
        assert git_facts(tmp_path) is None and time.monotonic() - started < 20
    script.write_text('#!/bin/sh\ncase "$*" in *status*) exec sleep 60;; *) echo abc;; esac\n')
    ask = module._git

    def ask_within(folder: Path, *arguments: str) -> str | None:
        monkeypatch.setattr(module, "_GIT_SECONDS", 0.3 if "status" in arguments else 30)  # short where it hangs
        return ask(folder, *arguments)

    monkeypatch.setattr(module, "_git", ask_within)
    assert git_facts(tmp_path) == {"commit": "abc", "clean": None}
