"""The checkpoints that a run keeps: there is one to go on with, whenever the process is killed.

Run as a program, this file is the process that is killed (``child``).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from icda.data.classes import CAMVID
from icda.training import checkpoint
from icda.training.checkpoint_folder import CheckpointFolder
from icda.training.start import read_newest

REPOSITORY = Path(__file__).parents[2]
CLASSES = {**asdict(CAMVID), "palette": [list(color) for color in CAMVID.palette]}


def content(step: int, run: str = "own", size: int = 64) -> dict[str, Any]:
    """A checkpoint whose weights tell its step, of a run that its configuration names."""
    return {
        "config": {"model": {"encoder": {"name": run}}, "dataset": {}},
        "classes": CLASSES,
        "step": step,
        "student": {"w": torch.full((size,), float(step))},
        "teacher": None,
        "training": {
            "frozen": None, "pca": None, "optimizer": {"state": {}, "param_groups": []},
            "best_miou": 0.0, "seconds": 0.0, "scaler": None, "skipped": 0,
        },
    }  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints to go on with, the newest first, read from the files themselves."""
    found = []
    for path in checkpoint.resumable(folder):
        step = checkpoint.read_file(path)["step"]
        assert path.name in ("last.pt", f"step_{step:06d}.pt")
        found.append(step)
    return found


def newest(folder: Path) -> tuple[int, str]:
    """Step and run of the checkpoint that a run would go on with, which must be whole."""
    start = read_newest(folder)
    assert (start.student["w"] == start.step).all() and start.path.parent == folder
    return start.step, start.config["model"]["encoder"]["name"]


@pytest.mark.parametrize(
    ("keep", "expected"), [(1, [[100], [200], [300], [400]]), (2, [[100], [200, 100], [300, 200], [400, 300]]),
                           (3, [[100], [200, 100], [300, 200, 100], [400, 300, 200]])],
)  # fmt: skip
def test_the_newest_stay(tmp_path, keep, expected):
    folder = CheckpointFolder(tmp_path / "checkpoints", keep)
    assert "no checkpoint" in folder.describe_newest()
    for step, kept in zip((100, 200, 300, 400), expected, strict=True):
        folder.save_last(content(step))
        assert steps(folder.folder) == kept
        assert folder.describe_newest() == f"the last good checkpoint is {folder.last}, of step {step}"
    folder.save_best(content(150))
    assert checkpoint.read_file(folder.best)["step"] == 150
    assert len(names(folder.folder)) == keep + 1


def test_steps_count_as_numbers(tmp_path):
    folder = CheckpointFolder(tmp_path, 3)
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        folder.save_last(content(step))
    assert steps(tmp_path) == [1_000_001, 1_000_000, 999_999]


def test_a_resumed_run_goes_on_with_the_names(tmp_path):
    folder = CheckpointFolder(tmp_path, 3)
    for step in (100, 200):
        folder.save_last(content(step))
    folder = CheckpointFolder(tmp_path, 3, last_step=200)
    folder.save_last(content(200))  # nothing was left to do
    assert steps(tmp_path) == [200, 100]
    folder.save_last(content(300))
    assert steps(tmp_path) == [300, 200, 100]
    CheckpointFolder(tmp_path, 2, last_step=300).save_last(content(400))
    assert steps(tmp_path) == [400, 300]
    CheckpointFolder(tmp_path, 1, last_step=400).save_last(content(400))
    assert names(tmp_path) == ["last.pt"]


def test_saved_twice_at_one_step(tmp_path):
    folder = CheckpointFolder(tmp_path, 3)
    for step in (100, 200, 200):
        folder.save_last(content(step))
    assert steps(tmp_path) == [200, 100]


def test_another_runs_checkpoints_go_once_there_is_an_own_one(tmp_path, monkeypatch):
    for name in ("last", "step_000900", "step_000050"):
        checkpoint.save(tmp_path / f"{name}.pt", content(900, "other"))
    folder = CheckpointFolder(tmp_path, 3)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "fsync", failing)
        folder.save_last(content(100))
    assert names(tmp_path) == ["last.pt", "step_000050.pt", "step_000900.pt"] and newest(tmp_path) == (900, "other")
    folder.save_last(content(100))
    assert names(tmp_path) == ["last.pt"] and newest(tmp_path) == (100, "own")
    folder.save_last(content(200))
    assert steps(tmp_path) == [200, 100]


def test_a_run_that_goes_on_with_an_earlier_checkpoint(tmp_path):
    """The later ones are of a course that it left; a last one that is damaged gets no step's name."""
    folder = CheckpointFolder(tmp_path, 4)
    for step in (100, 200, 300, 400):
        folder.save_last(content(step))
    folder.last.write_bytes(folder.last.read_bytes()[:-100])
    folder = CheckpointFolder(tmp_path, 4, start_step=200)
    assert folder.describe_newest() == f"the last good checkpoint is {tmp_path / 'step_000200.pt'}, of step 200"
    folder.save_last(content(250))
    assert steps(tmp_path) == [250, 200, 100]
    folder.save_last(content(400))
    assert steps(tmp_path) == [400, 250, 200, 100]


def failing(*_arguments: object) -> None:
    raise OSError(1, "Operation not permitted")


@pytest.fixture(params=[True, False], ids=["links", "no_links"])
def links(request, monkeypatch) -> bool:
    """A file system with hard links, or one without."""
    if not request.param:
        monkeypatch.setattr(os, "link", failing)
        monkeypatch.setattr(Path, "hardlink_to", failing)
    return request.param


def test_a_file_system_without_links(tmp_path, links):
    folder = CheckpointFolder(tmp_path, 3)
    for step in (100, 200, 300, 400):
        folder.save_last(content(step))
    assert steps(tmp_path) == [400, 300, 200]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_whichever_call_of_the_system_fails_there_is_a_checkpoint(tmp_path, monkeypatch, links, keep):
    """As on a disk that is full or gone: afterwards the run can be gone on with, or itself goes on to save."""
    for number in range(30):
        folder = CheckpointFolder(tmp_path / str(number), keep)
        for step in (100, 200, 300, 400):
            folder.save_last(content(step))
        calls = Calls(number, failing)
        with monkeypatch.context() as patch:
            calls.watch(patch.setattr)
            try:
                folder.save_last(content(500))
                saved = True
            except OSError as error:
                saved = False
                assert error.errno == 1 and error.filename == str(folder.last)
        assert newest(folder.folder) == (500 if saved else 400, "own")
        assert folder.describe_newest().endswith(
            f"{read_newest(folder.folder).path}, of step {newest(folder.folder)[0]}"
        )
        folder.save_last(content(600))
        assert newest(folder.folder)[0] == 600 and len(steps(folder.folder)) == keep
        if calls.count <= number:
            break
    assert number == calls.count >= (3 if keep == 1 else 5)


class Calls:
    """Counts the calls of the system that saving makes, and does something at one of them.

    Args:
        number: At which call, counted from 0.
        act: What is done, before the call or in its place where it raises.
        after: Whether it is done after the call.
    """

    WATCHED = ((os, "fsync"), (Path, "hardlink_to"), (Path, "replace"), (Path, "unlink"))

    def __init__(self, number: int, act: Callable[[], None], after: bool = False) -> None:
        self.number, self.act, self.after, self.count = number, act, after, 0

    def watch(self, set_attribute: Callable[[object, str, object], None]) -> None:
        """Take the places of the calls."""
        for owner, name in self.WATCHED:
            set_attribute(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, call: Callable) -> Callable:
        def watched(*args: Any, **options: Any) -> Any:
            now = self.count == self.number
            self.count += 1
            if now and not self.after:
                self.act()
            try:
                return call(*args, **options)
            finally:
                if now and self.after:
                    self.act()

        return watched


def test_the_best_checkpoint_of_a_run_in_another_folder(tmp_path, caplog):
    first, second = (CheckpointFolder(tmp_path / name, 2) for name in ("first", "second"))
    first.save_last(content(300))
    assert not second.adopt(first.last, 300)
    first.save_best(content(200))
    assert not second.adopt(first.last, 100) and "is of step 200, later than the step 100" in caplog.text
    assert second.adopt(first.last, 300) and first.adopt(first.last, 300)
    assert checkpoint.read_file(second.best)["step"] == 200 and names(second.folder) == ["best.pt"]
    first.best.write_bytes(first.best.read_bytes()[:500])
    assert not first.adopt(first.last, 300) and "cut short" in caplog.text
    torch.save({"state_dict": {}}, first.best)
    assert not first.adopt(first.last, 300) and "neither a checkpoint of icda nor" in caplog.text


def child() -> None:
    """Fork a process for each line of JSON that comes in, which saves and is killed, or kills itself."""
    for line in sys.stdin:
        order = json.loads(line)
        if (pid := os.fork()) == 0:
            folder = CheckpointFolder(Path(order["folder"]), order["keep"], order["last_step"])
            if order["links"] is False:
                Path.hardlink_to = failing
            if order["call"] is None:
                for step in range(order["step"], 10**6):
                    folder.save_last(content(step, size=order["size"]))
                    os.write(1, b"saved %d\n" % step)
            calls = Calls(order["call"], lambda: os.kill(os.getpid(), signal.SIGKILL), order["after"])
            calls.watch(setattr)
            folder.save_last(content(order["step"]))
            os.write(1, b"done\n")
            os._exit(0)
        if order["call"] is None:
            os.write(1, b"pid %d\n" % pid)
        os.waitpid(pid, 0)
        os.write(1, b"dead\n")


@pytest.fixture(scope="module")
def killed() -> Iterator[subprocess.Popen]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])}
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.stdin.close()


def order(process: subprocess.Popen, folder: Path, step: int, **changes: Any) -> None:
    given = {"folder": str(folder), "keep": 3, "last_step": None, "step": step, "call": None, "after": False}
    process.stdin.write(json.dumps({**given, "links": True, "size": 64, **changes}) + "\n")
    process.stdin.flush()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fresh", "keep", "has_links"), [(True, 1, True), (True, 3, False), (False, 3, True), (False, 1, False)]
)
def test_killed_before_and_after_each_call_of_the_system(tmp_path, killed, has_links, keep, fresh):
    """``fresh``: the folder holds another run's checkpoints, of later and of earlier steps."""
    template = CheckpointFolder(tmp_path / "template", 3)
    for step in (100, 200, 300):
        template.save_last(content(step, "other" if fresh else "own"))
    step = 250 if fresh else 400
    old, new = (300, "other" if fresh else "own"), (step, "own")
    found = []
    for number in range(40):
        folder = Path(shutil.copytree(template.folder, tmp_path / str(number)))
        last_step = None if fresh else 300
        order(
            killed,
            folder,
            step,
            keep=keep,
            last_step=last_step,
            links=has_links,
            call=number // 2,
            after=number % 2 == 1,
        )
        answer = killed.stdout.readline()
        found.append(newest(folder))
        assert found[-1] in (old, new)
        if answer == "done\n":
            assert killed.stdout.readline() == "dead\n" and found[-1] == new
            break
        start = read_newest(folder)
        is_last = start.path.name == "last.pt"
        resumed = CheckpointFolder(folder, 3, last_step=start.step if is_last else None, start_step=start.step)
        resumed.save_last(content(500))
        resumed.save_last(content(600))
        assert steps(folder)[:2] == [600, 500] and len(steps(folder)) == 3
        assert not [name for name in names(folder) if name.endswith(".tmp")]
    assert answer == "done\n" and number >= 6
    assert old in found and found == sorted(found, key=lambda one: one == new)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path, killed):
    """In every third round after a checkpoint, so that it comes forward, and in every third while one is written."""
    rng, last_step, mid_write, save_seconds = random.Random(0), None, 0, 0.0
    for number in range(30):
        order(killed, tmp_path, (last_step or 0) + 1, last_step=last_step, size=500_000)
        pid, saved, started = int(killed.stdout.readline().split()[1]), last_step or 0, time.monotonic()
        if number % 3 == 0:
            saved = int(killed.stdout.readline().split()[1])
            save_seconds = time.monotonic() - started  # however fast the disk is
        if number % 3 == 1:
            while not any(name.endswith(f".{pid}.tmp") for name in names(tmp_path)):
                assert time.monotonic() - started < 60
        else:
            time.sleep(rng.uniform(0, 2 * save_seconds))
        os.kill(pid, signal.SIGKILL)
        while (line := killed.stdout.readline()) != "dead\n":
            saved = int(line.split()[1])
        mid_write += any(name.endswith(f".{pid}.tmp") for name in names(tmp_path))
        last_step, run = newest(tmp_path)
        assert last_step in (saved, saved + 1) and run == "own"
        assert steps(tmp_path) == sorted(steps(tmp_path), reverse=True)
    assert mid_write > 5 and last_step >= 10  # kills came while it wrote, and it came forward


if __name__ == "__main__":
    child()
