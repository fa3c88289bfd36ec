"""Batches: the same for any layout of processes, and errors that name the file, however a worker fails."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from icda.data import loader
from icda.data.base import Sample, SegmentationDataset
from icda.data.classes import CAMVID
from icda.data.loader import EvaluationImages, batches, training_order
from icda.errors import UserError

LIMIT = 240  # seconds for what must happen, however slow the machine is
sizes = st.integers(1, 4)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


class Numbers(Dataset):
    """Sample i is i; what else happens at some of them, in a worker or here, is told by name."""

    def __init__(self, length: int = 40, at: int | None = None, what: str = "", folder: Path | None = None) -> None:
        self.length, self.at, self.what, self.folder = length, at, what, folder
        self.on_read = None

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = state
        if self.what == "sleep_at_start":
            self.sleep()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if self.on_read is not None:
            self.on_read(Path(f"folder/{index}.png"))
        if self.folder is not None:
            (self.folder / f"{os.getpid()}.pid").touch()
        if index == self.at:
            getattr(self, self.what)()
        return index

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_when_told(self) -> None:
        wait_until((self.folder / "now").exists)
        self.kill()

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def leave(self) -> None:
        os._exit(3)

    def sleep(self) -> None:
        if self.folder is not None:
            (self.folder / "asleep").touch()
        time.sleep(LIMIT * 10)

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
    assert 1 <= len(list(tmp_path.glob("*.pid"))) <= 2


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
def test_a_line_that_broke_because_its_worker_is_about_to_end_is_its_loss(tmp_path, monkeypatch):
    feed = batches(Numbers(40, at=4, what="kill_when_told", folder=tmp_path), 2, 2)
    assert next(feed).tolist() == [0, 1]

    def broken(self: _MultiProcessingDataLoaderIter) -> None:
        threading.Timer(2, (tmp_path / "now").touch).start()
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_get_data", broken)
    monkeypatch.setattr(loader, "_ENDING", LIMIT)
    with pytest.raises(UserError, match=r"SIGKILL: worker 0 .*folder/4\.png"):
        values(feed)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "how"), [("kill", "SIGKILL"), ("crash", "SIGSEGV"), ("leave", "status 3")])
def test_a_lost_worker_is_one_error_that_names_the_file(what, how):
    found = []
    with pytest.raises(UserError) as caught:
        for batch in batches(Numbers(40, at=13, what=what), 2, 2, timeout=LIMIT):
            found += batch.tolist()
    text = str(caught.value)
    assert how in text and "worker 0" in text and "sample 13" in text and "folder/13.png" in text
    assert "Traceback" not in text and caught.value.__context__ is None
    assert found == list(range(12))[: len(found)] and len(found) >= 6  # what it had handed on may be lost with it
    assert not multiprocessing.active_children()
