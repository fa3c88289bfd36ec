"""Which file a worker is on, so that a stalled or lost worker can be explained.

Every worker notes its sample and the file that it is about to open in memory that it shares with the main process.
What is noted outlives the worker, however it ended.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import RawArray
from multiprocessing.process import BaseProcess
from pathlib import Path

from icda.errors import UserError

_LONGEST = 4096  # bytes of a path that are kept: as many as Linux takes; of a longer one its end
_SHARED_MEMORY = Path("/dev/shm")
_TRIES = 100  # to read a slot that its worker is writing to


class _Slot(ctypes.Structure):
    """What a worker notes. It is the only one that writes; an odd ``version`` says that it is about to."""

    _fields_ = (
        ("version", ctypes.c_uint64),
        ("pid", ctypes.c_int64),
        ("sample", ctypes.c_int64),  # -1: none yet
        ("busy", ctypes.c_int64),  # whether it is still on that sample
        ("since", ctypes.c_double),  # when it began the sample or came to the file; the clock is all processes'
        ("path", ctypes.c_char * (_LONGEST + 1)),
    )


@dataclass(frozen=True)
class Reading:
    """What a worker is on.

    Args:
        worker: Its number, from 0.
        pid: Its process; 0 if it has not begun.
        sample: Index of the sample that it is on, or was on last; None if it has not begun.
        busy: Whether it is still on that sample.
        file: The file that it opened last for that sample; None if it has opened none that is known.
        seconds: Since it came to this file, or to the sample where there is no file.
    """

    worker: int
    pid: int
    sample: int | None
    busy: bool
    file: str | None
    seconds: float

    def __str__(self) -> str:
        who = f"worker {self.worker}" + (f" (process {self.pid})" if self.pid else "")
        if self.sample is None:
            return f"{who} has not begun to read"
        if not self.busy:
            last = f", the last file was {self.file}" if self.file else ""
            return f"{who} is done with sample {self.sample}{last}"
        file = f"the last file that it opened is {self.file}, " if self.file else ""
        return f"{who} is on sample {self.sample}, {file}{self.seconds:.1f} s ago"


class Watch:
    """Notes of all workers, in memory that they share with the main process however they are started.

    Args:
        workers: How many there are; with 0 the notes are of the main process itself, as worker 0.
    """

    def __init__(self, workers: int) -> None:
        self._slots = RawArray(_Slot, workers) if workers else (_Slot * 1)()
        self._worker = 0
        for slot in self._slots:
            slot.sample = -1

    def __len__(self) -> int:
        return len(self._slots)

    def enter(self, worker: int) -> None:
        """Say, in a worker, which one this is."""
        self._worker = worker
        self._slots[worker].pid = os.getpid()

    def begin(self, sample: int) -> None:
        """Note that this worker begins a sample."""
        self._write(b"", sample)

    def file(self, path: str | os.PathLike[str]) -> None:
        """Note that this worker is about to open a file."""
        self._write(os.fsencode(path)[-_LONGEST:])

    def end(self) -> None:
        """Note that this worker is done with its sample."""
        self._slots[self._worker].busy = 0

    def _write(self, path: bytes, sample: int | None = None) -> None:
        slot = self._slots[self._worker]
        slot.version += 1
        if sample is not None:
            slot.sample, slot.busy = sample, 1
        slot.path = path
        slot.since = time.monotonic()
        slot.version += 1

    def reading(self, worker: int | None = None) -> Reading:
        """What a worker is on; this one itself by default."""
        worker = self._worker if worker is None else worker
        copy = _Slot.from_buffer_copy(self._slots[worker])
        for _ in range(_TRIES):  # one that was killed while it wrote stays as it is
            if copy.version % 2 == 0 and copy.version == self._slots[worker].version:
                break
            copy = _Slot.from_buffer_copy(self._slots[worker])
        return Reading(
            worker,
            copy.pid,
            None if copy.sample < 0 else copy.sample,
            bool(copy.busy),
            _printable(copy.path) if copy.path else None,
            max(time.monotonic() - copy.since, 0.0),
        )


def _printable(path: bytes) -> str:
    """A path as text that any log can take: what is not UTF-8 is escaped, and so is what breaks the line."""
    text = os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"...{shown}" if len(path) == _LONGEST else shown


def read_note(reading: Reading) -> str:
    """One line that says where an exception came from, for its notes.

    Args:
        reading: What the process that raised it was on.
    """
    file = f"; the last file that was opened is {reading.file}" if reading.file else ""
    return f"This happened at sample {reading.sample}{file}"


def stalled(watch: Watch, first: int, timeout: float) -> UserError:
    """The error for workers that hand on nothing.

    Args:
        watch: Their notes.
        first: The worker that has the next batch; batches come in order, so the others may be waiting for it.
        timeout: How long the main process has waited, seconds.
    """
    others = [str(watch.reading(i)) for i in range(len(watch)) if i != first]
    return UserError(
        f"no batch has come for {timeout:g} s (worker_timeout={timeout:g}): {watch.reading(first)}; look at that "
        f"file and at its disk or network, give a longer worker_timeout= if it is merely slow, or workers=0 to read "
        f"in the main process" + ("; the others: " + "; ".join(others) if others else "")
    )


def lost(watch: Watch, worker: int, process: BaseProcess) -> UserError:
    """The error for a worker that is gone.

    Args:
        watch: The workers' notes.
        worker: Its number.
        process: Its process, which has ended.
    """
    code = process.exitcode or 0
    how, advice = f"ended with status {code}", "look above for what it wrote"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        how, advice = f"was killed by {name}", _ADVICE.get(name, "find out what sent it")
        if name == "SIGBUS":
            advice = f"{_shared_memory()}, or else the file became shorter or its disk failed: look at it"
    reading = watch.reading(worker)
    where = str(reading) if reading.pid else f"worker {worker} (process {process.pid}) had not begun to read"
    return UserError(f"a worker that reads the data {how}: {where}; {advice}")


_ADVICE = {
    "SIGKILL": "if nobody killed it, the system did because memory ran out (its log, dmesg, tells): give fewer "
    "workers=, or a smaller size or batch",
    "SIGSEGV": "its decoder crashed, so the file may be damaged: look at it, and copy it again",
    "SIGABRT": "its decoder gave up, so the file may be damaged, or memory ran out: look at it, and copy it again",
}


def out_of_shared_memory(message: str) -> UserError | None:
    """The error for a batch that the shared memory has no room for; None if the message is about something else.

    Args:
        message: Of the exception that a worker raised.
    """
    if "allocate shared memory" in message or ("/torch_" in message and "No space left" in message):
        return UserError(f"a worker could not hand on its batch: {_shared_memory()}")
    return None


def _shared_memory() -> str:
    """What can be done about too little shared memory, with its size where that is known."""
    size = ""
    if _SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(_SHARED_MEMORY)
        size = f" ({_SHARED_MEMORY} has {usage.free >> 20} of {usage.total >> 20} MiB free)"
    return (
        f"the shared memory may be too small{size}: make it larger, as docker run --shm-size=8g does, or give fewer "
        "workers=, or workers=0, which needs none"
    )


def first_lost(processes: Sequence[BaseProcess]) -> int | None:
    """Number of the first worker that has ended, those with an error before others; None if all live.

    Args:
        processes: The workers' processes in the order of their numbers.
    """
    ended = [i for i, process in enumerate(processes) if not process.is_alive()]
    return min(ended, key=lambda i: processes[i].exitcode == 0, default=None)
