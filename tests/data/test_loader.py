"""Batches: the same for any layout of processes, and errors that name the file, however a worker fails."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from icda.data.base import Sample, SegmentationDataset
from icda.data.classes import CAMVID
from icda.data.loader import EvaluationImages, _QuietChildren, batches, training_order
from icda.errors import UserError

sizes = st.integers(1, 4)


class Numbers(Dataset):
    """Sample i is i; what else happens at some of them, in a worker or here, is told by name."""

    def __init__(self, length: int = 40, at: int | None = None, what: str = "", folder: Path | None = None) -> None:
        self.length, self.at, self.what, self.folder = length, at, what, folder
        self.on_read = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if self.on_read is not None:
            self.on_read(Path(f"folder/{index}.png"))
        if self.folder is not None:
            (self.folder / str(os.getpid())).touch()
        if index == self.at:
            getattr(self, self.what)()
        return index

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_later(self) -> None:
        time.sleep(1)
        self.kill()

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def leave(self) -> None:
        os._exit(3)

    def sleep(self) -> None:
        time.sleep(600)

    def disk(self) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def key(self) -> None:
        raise KeyError("nothing")

    def memory(self) -> None:
        raise MemoryError


def values(found) -> list[int]:
    return [value for batch in found for value in batch.tolist()]


@given(first=st.integers(0, 6), steps=st.integers(0, 4), batch_size=sizes, accumulate=sizes, world_size=sizes)
def test_ranks_and_passes_share_the_positions_of_every_step(first, steps, batch_size, accumulate, world_size):
    orders = [training_order(first, first + steps, batch_size, accumulate, r, world_size) for r in range(world_size)]
    size = batch_size * accumulate * world_size
    for s in range(steps):
        of_step = []
        for a in range(accumulate):
            of_pass = []
            for order in orders:
                start = (s * accumulate + a) * batch_size
                of_pass += order[start : start + batch_size]
            assert of_pass == list(range(of_pass[0], of_pass[0] + batch_size * world_size))  # in the ranks' order
            of_step += of_pass
        assert of_step == list(range((first + s) * size, (first + s + 1) * size))
    assert all(len(order) == steps * accumulate * batch_size == len(list(order)) for order in orders)


@given(
    max_steps=st.integers(0, 5), stop=st.integers(0, 5), batch_size=sizes, accumulate=sizes, rank=st.integers(0, 2)
)
def test_a_resumed_order_goes_on_where_the_other_stopped(max_steps, stop, batch_size, accumulate, rank):
    whole = training_order(0, max_steps, batch_size, accumulate, rank, 3)
    rest = training_order(stop, max_steps, batch_size, accumulate, rank, 3)
    assert list(rest) == list(whole)[stop * batch_size * accumulate :]


def test_the_order_of_one_process_is_a_range_and_nothing_is_made_of_it():
    assert list(training_order(3, 7, 5, 1, 0, 1)) == list(range(15, 35))
    order = training_order(10**9, 10**12, 8, 4, 2, 16)
    assert order[-1] == 10**12 * 8 * 4 * 16 - 13 * 8 - 1 and len(pickle.dumps(order)) < 1000
    with pytest.raises(IndexError):
        order[len(order)]


def test_order_and_last_batch():
    assert values(batches(Numbers(5), 2, 0)) == [0, 1, 2, 3, 4]
    assert [b.tolist() for b in batches(Numbers(9), 2, 0, order=[7, 1, 3])] == [[7, 1], [3]]
    first = batches(Numbers(10**12), 4, 0, order=training_order(10, 10**10, 4, 2, 1, 3))
    assert next(first).tolist() == [244, 245, 246, 247]
    assert list(batches(Numbers(5), 2, 3, order=range(0))) == []  # starts no worker


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_keep_the_order(workers):
    order = training_order(1, 3, 2, 3, 1, 2)
    assert values(batches(Numbers(), 2, workers, order=order)) == list(order)


@pytest.mark.slow
def test_no_more_workers_than_batches(tmp_path):
    values(batches(Numbers(4, folder=tmp_path), 2, 6))
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


class Drawing(SegmentationDataset):
    """Files of one pixel's value that draws from every global generator, as a person's own data set may."""

    def __init__(self) -> None:
        super().__init__("drawing", CAMVID, "root", [Sample(str(i), Path(f"{i}.png")) for i in range(6)])

    def image(self, index):
        noise = np.array([random.randrange(256), np.random.randint(256), torch.randint(256, ()).item()])  # noqa: NPY002
        return np.broadcast_to(noise.astype(np.uint8), (4, 4, 3)).copy()

    def label(self, index, resized=True):
        return np.zeros((4, 4), np.uint8)


def global_states() -> list:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_reading_leaves_the_generators_of_the_process_alone(workers):
    before = global_states()
    images = EvaluationImages(Drawing(), torch.zeros(3), torch.ones(3))
    found = torch.cat([image for image, _, _ in batches(images, 1, workers)])
    assert global_states() == before
    assert len(found.unique()) > 6
    torch.manual_seed(1234)  # nor does their state change what is read
    again = torch.cat([image for image, _, _ in batches(images, 2, workers)])
    assert torch.equal(found, again)


@pytest.mark.slow
def test_the_workers_seeds_do_not_hang_on_the_generators_of_the_process():
    class Raw(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.rand(())

    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(torch.cat(list(batches(Raw(), 1, 1))))
    assert torch.equal(*found)


@pytest.mark.parametrize("what", ["disk", "key", "memory"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_unexpected_exception_names_sample_and_file(what, workers):
    expected = {"disk": OSError, "key": KeyError, "memory": MemoryError}[what]
    with pytest.raises(expected) as caught:
        list(batches(Numbers(8, at=5, what=what), 2, workers))
    shown = "".join(traceback.format_exception(caught.value))
    note = "This happened at sample 5; the last file that was opened is folder/5.png"
    if hasattr(caught.value, "add_note"):
        assert shown.count(note) == 1
    assert f"in {what}" in shown  # the line that raised it
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize(("what", "how"), [("kill", "SIGKILL"), ("crash", "SIGSEGV"), ("leave", "status 3")])
def test_a_lost_worker_is_one_error_that_names_the_file(what, how):
    started = time.monotonic()
    found = []
    with pytest.raises(UserError) as caught:
        for batch in batches(Numbers(40, at=13, what=what), 2, 2, timeout=60):
            found += batch.tolist()
    text = str(caught.value)
    assert how in text and "worker 0" in text and "sample 13" in text and "folder/13.png" in text
    assert "Traceback" not in text and caught.value.__context__ is None
    assert found == list(range(12))[: len(found)] and len(found) >= 6  # what it had handed on may be lost with it
    assert time.monotonic() - started < 20 and not multiprocessing.active_children()


@pytest.mark.slow
def test_the_loss_of_a_worker_interrupts_nothing():
    """PyTorch raises it wherever the main process is, such as in the middle of writing a checkpoint."""
    feed = batches(Numbers(40, at=4, what="kill_later"), 2, 2)
    assert next(feed).tolist() == [0, 1]
    inner = batches(Numbers(6), 2, 1)  # such as a validation in between
    assert next(inner).tolist() == [0, 1]
    busy_until = time.monotonic() + 2
    while time.monotonic() < busy_until:
        time.sleep(0.01)
    assert values(inner) == list(range(2, 6))
    with pytest.raises(UserError, match=r"folder/4\.png"):
        list(feed)


@pytest.mark.slow
def test_a_stalled_worker_is_one_error_that_names_the_file():
    started = time.monotonic()
    found = []
    with pytest.raises(UserError) as caught:
        for batch in batches(Numbers(40, at=6, what="sleep"), 2, 2, timeout=2):
            found += batch.tolist()
    text = str(caught.value)
    assert text.startswith("no batch has come for 2 s (worker_timeout=2): worker 1 (process ")
    assert text.index("sample 6, the last file that it opened is folder/6.png") < text.index("the others: worker 0")
    assert found == list(range(6))
    assert time.monotonic() - started < 12 and not multiprocessing.active_children()


@pytest.mark.slow
def test_a_file_that_cannot_be_opened_for_ever(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "label.png"), np.zeros((4, 4), np.uint8))
    pipe = tmp_path / os.fsdecode(b"b_\xc3\xa4\xff.png")
    os.mkfifo(pipe)
    samples = [Sample(p.stem, p, tmp_path / "label.png") for p in (tmp_path / "a.png", pipe)]
    images = EvaluationImages(SegmentationDataset("s", CAMVID, tmp_path, samples), torch.zeros(3), torch.ones(3))
    with pytest.raises(UserError, match=r"on sample 1, the last file that it opened is .*b_ä\\udcff\.png"):
        list(batches(images, 1, 2, timeout=2))
    assert images.on_read is None and not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["", "sleep"])
def test_workers_end_promptly_when_the_loop_is_left(what, capfd):
    feed = batches(Numbers(10**6, at=4, what=what), 2, 3)
    next(feed)
    assert len(multiprocessing.active_children()) == 3
    time.sleep(0.5)
    started = time.monotonic()
    feed.close()
    assert time.monotonic() - started < 5
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""
    del feed
    gc.collect()
    assert not isinstance(signal.getsignal(signal.SIGCHLD), _QuietChildren)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_loader import Numbers, batches, values
import multiprocessing

if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    {body}
"""


def script(tmp_path: Path, body: str, method: str = "fork") -> subprocess.Popen:
    path = tmp_path / "script.py"
    text = SCRIPT.format(tests=str(Path(__file__).parent), method=method, body=textwrap.indent(body, "    ").strip())
    path.write_text(text)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def finished(process: subprocess.Popen, timeout: float = 240) -> tuple[str, str]:
    timer = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        return process.communicate()
    finally:
        timer.cancel()


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "what"), [("fork", ""), ("fork", "sleep"), ("forkserver", "sleep"), ("spawn", "sleep")]
)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_main_process_that_is_killed(method, what, tmp_path):
    body = f"""
feed = batches(Numbers(10**6, at=5, what={what!r}, folder=Path({str(tmp_path / "pids")!r})), 2, 2)
next(feed); print("ready", flush=True); time.sleep(600)
"""
    (tmp_path / "pids").mkdir()
    process = script(tmp_path, body, method)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while len(pids := [int(path.name) for path in (tmp_path / "pids").iterdir()]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2 and all(map(lives, pids))
    process.kill()
    deadline = time.monotonic() + 15
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(lives, pids))
    error = finished(process)[1]
    assert error == "" or method != "fork", error  # Python itself tidies up after the others, and says so


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP])
def test_signals_to_all_processes_stop_no_worker(sent, tmp_path):
    body = """
stop = []
for name in ("SIGINT", "SIGTERM", "SIGUSR2", "SIGHUP"):
    signal.signal(getattr(signal, name), lambda *_: stop.append(1))
count = 0
for batch in batches(Numbers(10**6), 2, 2):
    count += 1
    if count == 3: print("ready", flush=True)
    if count >= 3: time.sleep(0.02)
    if stop and count > 60: break
print("stopped", flush=True)
"""
    process = script(tmp_path, body)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, sent)
    assert finished(process, timeout=30) == ("stopped\n", "")
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["", "sleep"])
def test_a_main_process_that_fails_ends_without_waiting(what, tmp_path):
    body = f"""
feed = batches(Numbers(10**6, at=5, what={what!r}), 2, 2)
sys.feed = feed  # held for longer than anything
next(feed)
time.sleep(0.5)
raise RuntimeError("over")
"""
    started = time.monotonic()
    error = finished(script(tmp_path, body))[1]
    assert error.strip().endswith("RuntimeError: over") and error.count("Traceback") == 1, error
    assert time.monotonic() - started < 30


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_every_way_to_start_workers(method, tmp_path):
    body = """
found = []
try:
    for batch in batches(Numbers(20, at=15, what="kill_later"), 2, 2): found += batch.tolist()
except Exception as error:
    assert found[:8] == list(range(8)), found
    print(type(error).__name__, error)
"""
    process = script(tmp_path, body, method)
    out, err = finished(process)
    assert process.returncode == 0, err
    assert out.startswith("UserError a worker that reads the data was killed by SIGKILL: worker 1 (process ")
    assert "sample 15" in out and "folder/15.png" in out
