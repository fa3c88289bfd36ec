"""Work spread over processes: order, accidents, and that no worker outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from tqdm import tqdm

from icda.data import processes
from icda.data.processes import Bar, in_processes
from icda.errors import UserError


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Ends the threads of tqdm and OpenCV: a process that has threads cannot be forked safely."""
    if tqdm.monitor is not None:
        tqdm.monitor.exit()
        tqdm.monitor = None
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def half(image: np.ndarray) -> int:
    return int(cv2.resize(image, None, fx=0.5, fy=0.5).sum())


def fail(number: int) -> int:
    if number == 5:
        raise UserError("five")
    return number


def die_elsewhere(parent: int, number: int) -> int:
    if number == 7 and os.getpid() != parent:
        os._exit(1)
    return number


def note(folder: Path, number: int) -> int:
    (folder / str(os.getpid())).touch()
    time.sleep(0.02)
    return number


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order(workers):
    results = list(Bar(in_processes(square, range(30), workers), "squares", 30, disable=True))
    assert [value for value, _ in results] == [n * n for n in range(30)]
    processes = {process for _, process in results}
    assert (os.getpid() in processes) == (workers < 2) and len(processes) <= max(workers, 1)


def test_no_more_processes_than_tasks_and_none_for_nothing():
    assert list(in_processes(square, [], 4)) == []
    assert list(in_processes(square, [3], 4)) == [(9, os.getpid())]


def test_our_bars_start_no_thread():
    list(Bar(in_processes(square, range(8), 2), "squares", 8))
    assert threading.active_count() == 1


def held(path: Path, number: int) -> bool:
    """Whether this process has a file open."""
    return any(link.exists() and link.samefile(path) for link in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are looked up in /proc")
def test_workers_do_not_share_open_files_or_threads(tmp_path):
    """A lock on a file that a worker shares would outlive this process; a thread's lock would never be released."""
    path = tmp_path / "lock"
    stop = threading.Event()
    other = threading.Thread(target=stop.wait, daemon=True)
    other.start()
    try:
        with path.open("wb"):
            assert held(path, 0)
            assert not any(in_processes(partial(held, path), range(8), 2))
    finally:
        stop.set()
        other.join()


def test_where_processes_cannot_start_this_one_does_it_all(monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(processes.ProcessPoolExecutor, "map", refuse)
    assert list(in_processes(square, range(6), 2)) == [(n * n, os.getpid()) for n in range(6)]


def test_workers_may_use_opencv_after_this_process_did():
    """Without care, a worker waits for ever for OpenCV's threads, which it has not."""
    images = [np.full((600, 800, 3), i, np.uint8) for i in range(6)]
    cv2.setNumThreads(2)
    expected = [half(image) for image in images]
    assert list(in_processes(half, images, 2)) == expected
    assert cv2.getNumThreads() == 2
    assert [half(image) for image in images] == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_are_raised_here(workers):
    with pytest.raises(UserError, match="five"):
        list(in_processes(fail, range(20), workers))


def test_this_process_goes_on_when_a_worker_is_killed():
    assert list(in_processes(partial(die_elsewhere, os.getpid()), range(20), 2)) == list(range(20))


def run_for_long(folder: Path) -> None:
    list(in_processes(partial(note, folder), range(1000), 2))


def test_workers_end_when_their_parent_is_killed(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=run_for_long, args=(tmp_path,))
    parent.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()

    def runs(process: int) -> bool:
        status = Path(f"/proc/{process}/stat")
        return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"

    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(runs, workers))
