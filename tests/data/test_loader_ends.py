"""How batches end: when a worker hangs or is lost, when the loop is left or stopped, with the main process."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_loader import LIMIT, Numbers, values, wait_until

from icda.data import loader
from icda.data.base import Sample, SegmentationDataset
from icda.data.classes import CAMVID
from icda.data.loader import EvaluationImages, _QuietChildren, batches
from icda.errors import UserError


@pytest.mark.slow
def test_the_loss_of_a_worker_interrupts_nothing(tmp_path):
    """PyTorch raises it wherever the main process is, such as in the middle of writing a checkpoint."""
    feed = batches(Numbers(40, at=4, what="kill_when_told", folder=tmp_path), 2, 2)
    assert next(feed).tolist() == [0, 1]
    sentinels = [worker.sentinel for worker in multiprocessing.active_children()]
    inner = batches(Numbers(6), 2, 1)  # such as a validation in between
    assert next(inner).tolist() == [0, 1]
    (tmp_path / "now").touch()
    assert wait(sentinels, LIMIT)
    for _ in range(20):  # the signal comes a little after the end
        time.sleep(0.01)
    assert values(inner) == list(range(2, 6))
    with pytest.raises(UserError, match=r"folder/4\.png"):
        list(feed)


@pytest.mark.slow
def test_a_stalled_worker_is_one_error_that_names_the_file(tmp_path, monkeypatch):
    feed = batches(Numbers(40, at=6, what="sleep", folder=tmp_path), 2, 2, timeout=LIMIT)
    assert [next(feed).tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    wait_until((tmp_path / "asleep").exists)
    monkeypatch.setattr(loader, "_POLL", LIMIT)  # the next second counts as so many
    with pytest.raises(UserError) as caught:
        next(feed)
    text = str(caught.value)
    assert text.startswith(f"no batch has come for {LIMIT} s (worker_timeout={LIMIT}): worker 1 (process ")
    assert text.index("sample 6, the last file that it opened is folder/6.png") < text.index("the others: worker 0")
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_wait_in_vain_is_as_long_as_it_was_asked_to_be():
    started = time.monotonic()
    with pytest.raises(UserError, match=r"no batch has come for 2 s \(worker_timeout=2\)"):
        next(batches(Numbers(40, at=0, what="sleep"), 2, 1, timeout=2))
    assert 2 <= time.monotonic() - started < LIMIT


def images_with_a_pipe(folder: Path) -> tuple[EvaluationImages, Path]:
    """Two images, of which the second is a named pipe: to open it takes for ever."""
    cv2.imwrite(str(folder / "a.png"), np.zeros((4, 4, 3), np.uint8))
    cv2.imwrite(str(folder / "label.png"), np.zeros((4, 4), np.uint8))
    pipe = folder / os.fsdecode(b"b_\xc3\xa4\xff.png")
    os.mkfifo(pipe)
    samples = [Sample(p.stem, p, folder / "label.png") for p in (folder / "a.png", pipe)]
    return EvaluationImages(SegmentationDataset("s", CAMVID, folder, samples), torch.zeros(3), torch.ones(3)), pipe


@contextlib.contextmanager
def held(pipe: Path) -> Iterator[None]:
    """Wait until somebody reads from a named pipe, and give nothing."""
    ends = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # nobody does
            ends.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(ends)

    wait_until(is_read)
    try:
        yield
    finally:
        os.close(ends[0])


@pytest.mark.slow
def test_a_file_that_cannot_be_read_for_ever(tmp_path, monkeypatch):
    images, pipe = images_with_a_pipe(tmp_path)
    feed = batches(images, 1, 2, timeout=LIMIT)
    next(feed)
    with (
        held(pipe),
        pytest.raises(UserError, match=r"on sample 1, the last file that it opened is .*b_ä\\udcff\.png"),
    ):
        monkeypatch.setattr(loader, "_POLL", LIMIT)
        next(feed)
    assert images.on_read is None and not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("timeout", [0, LIMIT])
def test_a_wait_for_a_file_that_hangs_can_be_stopped(timeout, tmp_path, capfd):
    images, pipe = images_with_a_pipe(tmp_path)
    asked = []
    hangs = False  # until then a slow start may ask too

    def stop() -> bool:
        if hangs:
            asked.append(time.monotonic())
        return len(asked) > 2

    feed = batches(images, 1, 2, timeout=timeout, stop=stop)
    assert next(feed)[2].tolist() == [0]
    with held(pipe):
        hangs = True
        assert list(feed) == []
    assert len(asked) == 3 and asked[2] - asked[0] >= 1.5  # once a second
    assert not multiprocessing.active_children() and capfd.readouterr().err == ""
    assert not isinstance(signal.getsignal(signal.SIGCHLD), _QuietChildren)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_is_not_asked_about_while_batches_come(workers, monkeypatch):
    monkeypatch.setattr(loader, "_POLL", LIMIT)
    assert values(batches(Numbers(), 2, workers, stop=lambda: True)) == list(range(40))


def never_start(worker: int) -> None:
    time.sleep(LIMIT * 10)


@pytest.mark.slow
def test_a_wait_for_workers_that_do_not_start_can_be_stopped(monkeypatch, capfd):
    monkeypatch.setattr(loader, "_start_worker", never_start)
    assert list(batches(Numbers(), 2, 2, stop=lambda: True)) == []
    assert not multiprocessing.active_children() and capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["", "sleep"])
def test_workers_end_when_the_loop_is_left(what, tmp_path, capfd):
    feed = batches(Numbers(10**6, at=4, what=what, folder=tmp_path), 2, 3)
    next(feed)
    assert len(multiprocessing.active_children()) == 3
    if what:
        wait_until((tmp_path / "asleep").exists)
    feed.close()
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""
    del feed
    gc.collect()
    assert not isinstance(signal.getsignal(signal.SIGCHLD), _QuietChildren)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from test_loader import LIMIT, Numbers, batches, values, wait_until
import multiprocessing

folder = Path({folder!r})
if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    multiprocessing.set_forkserver_preload(["test_loader"])  # once, and not in each worker
    {body}
"""


@contextlib.contextmanager
def script(folder: Path, body: str, method: str = "fork") -> Iterator[subprocess.Popen]:
    """A process group of its own that runs ``body``; all of it is killed at the end, or after ``LIMIT``."""
    path = folder / "script.py"
    body = textwrap.indent(body, "    ").strip()
    path.write_text(SCRIPT.format(folder=str(folder), method=method, body=body))
    folders = (Path(__file__).parents[i] for i in range(3))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    timer = threading.Timer(LIMIT, kill_group, [process.pid])
    timer.start()
    try:
        with process:
            try:
                yield process
            finally:
                kill_group(process.pid)
    finally:
        timer.cancel()


def kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def kill_while_a_worker_hangs(process: subprocess.Popen, folder: Path) -> str:
    """Kill a main process one of whose two workers sleeps; both must end. Returns what was written to stderr."""
    assert process.stdout.readline() == "ready\n"  # killed while it takes a batch, a worker may complain
    wait_until((folder / "asleep").exists)
    wait_until(lambda: len(list(folder.glob("*.pid"))) == 2)
    pids = [int(path.stem) for path in folder.glob("*.pid")]
    assert all(map(lives, pids))
    process.kill()
    wait_until(lambda: not any(map(lives, pids)))
    return process.communicate()[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_main_process_that_is_killed(tmp_path):
    body = """
feed = batches(Numbers(10**6, at=5, what="sleep", folder=folder), 2, 2)
next(feed)
print("ready", flush=True)
time.sleep(LIMIT * 10)
"""
    with script(tmp_path, body) as process:
        assert kill_while_a_worker_hangs(process, tmp_path) == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_that_are_not_forked_end_in_every_way(tmp_path):
    """One script for a loss, a stop during the start, and a main process that is killed: to start it is slow."""
    body = """
found = []
try:
    for batch in batches(Numbers(20, at=15, what="kill"), 2, 2): found += batch.tolist()
except Exception as error:
    print(found[:8], type(error).__name__, error, flush=True)

came = []
signal.signal(signal.SIGTERM, lambda *_: came.append(1))
print(values(batches(Numbers(what="sleep_at_start", folder=folder), 2, 2, stop=lambda: bool(came))), flush=True)
print(multiprocessing.active_children(), flush=True)
print("quiet so far", file=sys.stderr, flush=True)

feed = batches(Numbers(10**6, at=5, what="sleep", folder=folder / "last"), 2, 2)
next(feed)
print("ready", flush=True)
time.sleep(LIMIT * 10)
"""
    (tmp_path / "last").mkdir()
    with script(tmp_path, body, "forkserver") as process:
        line = process.stdout.readline()
        expected = "[0, 1, 2, 3, 4, 5, 6, 7] UserError a worker that reads the data was killed by SIGKILL: worker 1 ("
        assert line.startswith(expected) and "sample 15" in line and "folder/15.png" in line
        wait_until((tmp_path / "asleep").exists)
        process.terminate()
        assert [process.stdout.readline() for _ in range(2)] == ["[]\n", "[]\n"]
        error = kill_while_a_worker_hangs(process, tmp_path / "last")
    assert error.startswith("quiet so far\n")  # after it, Python says that it tidies up


@pytest.mark.slow
def test_signals_that_are_meant_for_the_main_process_end_no_worker():
    feed = batches(Numbers(10**6), 2, 3)
    next(feed)
    for worker in multiprocessing.active_children():  # some may still be starting
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            os.kill(worker.pid, number)
    for _ in range(20):  # more than were on their way
        next(feed)
    assert len(multiprocessing.active_children()) == 3
    feed.close()


@pytest.mark.slow
def test_a_main_process_that_fails_ends_without_waiting(tmp_path):
    body = """
feed = batches(Numbers(10**6, at=5, what="sleep", folder=folder), 2, 2)
sys.feed = feed  # held for longer than anything
next(feed)
wait_until((folder / "asleep").exists)
raise RuntimeError("over")
"""
    with script(tmp_path, body) as process:
        error = process.communicate()[1]
    assert process.returncode == 1
    assert error.strip().endswith("RuntimeError: over") and error.count("Traceback") == 1, error
