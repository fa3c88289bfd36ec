"""Work on many files, spread over processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2
from tqdm import tqdm

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")


class Bar(tqdm):
    """A progress bar without tqdm's monitor, which is a thread that our few bars do not need.

    Where its lines go to a file, there are few of them.

    Args:
        iterable: What to show the progress of; None where ``update`` tells it.
        desc: What is being done.
        total: How many there are.
        unit: What they are.
        disable: Whether to show nothing.
        initial: How many were done before.
    """

    monitor_interval = 0

    def __init__(
        self,
        iterable: Iterable[object] | None,
        desc: str,
        total: int,
        *,
        unit: str = "it",
        disable: bool = False,
        initial: int = 0,
    ) -> None:
        every = 0.1 if sys.stderr.isatty() else 20.0  # seconds
        super().__init__(iterable, desc, total, unit=unit, disable=disable, mininterval=every, initial=initial)


def in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int, chunk: int = 4
) -> Iterator[Result]:
    """Do the same work on many tasks; what ``work`` raises is raised here.

    If the processes cannot be started, or one is killed, this process goes on by itself. If this process is killed,
    its workers end too, and hold none of its files or locks.

    Args:
        work: A function of a module, or ``functools.partial`` of one; it and the tasks are pickled.
        tasks: What it is called with.
        workers: Number of processes; with 0 or 1 this process does it all.
        chunk: Tasks that are handed over together.

    Yields:
        What ``work`` returns, in the tasks' order.
    """
    done = 0
    workers = min(workers, len(tasks))
    if workers > 1:
        pool = ProcessPoolExecutor(workers, _context(work), initializer=_start_worker)
        try:
            for result in _submit(pool, work, tasks, chunk):
                done += 1
                yield result
        except BrokenProcessPool:
            # Processes cannot start from every kind of session, or one was killed.
            log.info("the worker processes stopped after %d of %d; this process goes on", done, len(tasks))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for task in tasks[done:]:
        yield work(task)


def _context(work: Callable[[Task], Result]) -> multiprocessing.context.BaseContext:
    """How workers are started: never as copies of this process, whose threads and locks they would wait for.

    Where there is one, a server that has imported ``work`` and has no threads is copied; it starts once.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, getattr(work, "func", work).__module__])
    return context


def _submit(
    pool: ProcessPoolExecutor, work: Callable[[Task], Result], tasks: Sequence[Task], chunk: int
) -> Iterator[Result]:
    try:
        return pool.map(work, tasks, chunksize=chunk)
    except (OSError, EOFError) as error:  # of the start of processes; what ``work`` raises comes with the results
        raise BrokenProcessPool(str(error)) from error


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the first process is gone: its workers would wait for tasks for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
