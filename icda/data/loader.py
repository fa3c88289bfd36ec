"""Data loaders whose workers report a person's mistake as it is, and which say what a worker was on when it fails."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from icda.data.base import OnRead, SegmentationDataset
from icda.data.stream import normalize, seeded
from icda.data.watch import Watch, first_lost, lost, out_of_shared_memory, read_note, stalled
from icda.errors import UserError

log = logging.getLogger(__name__)

_POLL = 1  # seconds between two looks at workers that are waited for
_ENDING = 10  # seconds that are waited for a worker to end after the line to it broke
_GRACE = 1.0  # seconds that workers get to finish what they are on when nobody wants it any more
_NOT_FOR_WORKERS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class _TrainingOrder(Sequence[int]):
    """See ``training_order``."""

    def __init__(self, first_pass: int, passes: int, batch_size: int, rank: int, world_size: int) -> None:
        self.first_pass = first_pass
        self.passes = passes
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.passes * self.batch_size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        done, place = divmod(range(len(self))[index], self.batch_size)
        return ((self.first_pass + done) * self.world_size + self.rank) * self.batch_size + place


def training_order(
    first_step: int, max_steps: int, batch_size: int, accumulate: int, rank: int, world_size: int
) -> Sequence[int]:
    """The positions of the training stream that one process reads, from a step to the end of the run.

    Step s of all processes reads the positions from s·G up to (s+1)·G, with G = batch_size · accumulate · world_size.
    Pass a of it reads a share of batch_size · world_size of them in a row, of which each process reads batch_size in
    a row, in the order of the ranks.

    Args:
        first_step: The step to begin with.
        max_steps: Steps of the run.
        batch_size: Samples per process and pass.
        accumulate: Passes per step.
        rank: Number of this process, from 0.
        world_size: Processes.

    Returns:
        ``batch_size`` positions for each pass of each step; they are computed when asked for.
    """
    assert 0 <= rank < world_size, (rank, world_size)
    passes = max(max_steps - first_step, 0) * accumulate
    return _TrainingOrder(first_step * accumulate, passes, batch_size, rank, world_size)


class _Guarded(Dataset):
    """Notes what is read, and hands a ``UserError`` on as a value: raised in a worker it becomes a long traceback."""

    def __init__(self, dataset: Dataset, watch: Watch) -> None:
        self.dataset = dataset
        self.watch = watch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        self.watch.begin(index)
        tells = hasattr(self.dataset, "on_read")
        if tells:
            self.dataset.on_read = self.watch.file
        try:
            return self.dataset[index]
        except UserError as error:
            return error
        except Exception as error:
            note = read_note(self.watch.reading())
            if hasattr(error, "add_note"):
                error.add_note(note)
            else:  # Python 3.10
                log.error("%s", note)
            raise
        finally:
            if tells:
                self.dataset.on_read = None
            self.watch.end()


def _collate(samples: list[Any]) -> Any:
    return next((s for s in samples if isinstance(s, UserError)), None) or default_collate(samples)


def _signals() -> set[signal.Signals]:
    """Those that are meant for the main process, but are sent to the workers too, as by Ctrl-C or by SLURM."""
    return {getattr(signal, name) for name in _NOT_FOR_WORKERS if hasattr(signal, name)}


def _start_worker(worker: int) -> None:
    """Make a process a worker: it ends with the main process and not before, and keeps to one core."""
    import cv2

    for number in _signals():
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _signals())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    get_worker_info().dataset.watch.enter(worker)
    cv2.setNumThreads(0)  # OpenCV's own threads would fight with the training step for the cores
    torch.set_num_threads(1)


def _end_with(parent: int) -> None:
    """End this process when the main process has ended, also in the middle of a file that cannot be read.

    Args:
        parent: Whose child this process is: the main process, or the server that starts workers for it. That one
            lives on as long as they do, so it alone does not tell; nor does the line to the main process, of which
            workers that it forked later hold the other end too.
    """
    main = multiprocessing.parent_process()
    while os.getppid() == parent and main.is_alive():
        time.sleep(_POLL)
    os._exit(1)


class _Workers:
    """The batches of a data loader, read by processes that are watched; a context manager that ends them.

    Args:
        loader: A loader with at least one worker and a timeout of ``_POLL``, over guarded samples.
        watch: The workers' notes.
        timeout: Seconds that a batch is waited for; 0 waits for ever.
        stop: Asked whether to end whenever nothing came for ``_POLL``.
    """

    def __init__(self, loader: DataLoader, watch: Watch, timeout: float, stop: Callable[[], bool]) -> None:
        self.loader = loader
        self.watch = watch
        self.timeout = timeout
        self.stop = stop
        self.done = 0  # batches

    def __enter__(self) -> _Workers:
        blocks = hasattr(signal, "pthread_sigmask")
        # Workers start with these signals blocked, so that none ends them before they ignore it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _signals()) if blocks else None
        try:
            self.iterator = iter(self.loader)
        finally:
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # PyTorch offers no other way to the processes, nor to end them while a traceback holds the iterator.
        self.processes = list(self.iterator._workers)
        self.pid = os.getpid()
        self.children = _QuietChildren()
        atexit.register(self._kill)  # runs before multiprocessing waits for workers that ignore what it sends
        return self

    def __iter__(self) -> _Workers:
        return self

    def __next__(self) -> Any:
        waited = 0
        while True:
            try:
                batch = next(self.iterator)
                self.done += 1
                return batch
            except (RuntimeError, OSError, EOFError) as error:
                if str(error).startswith("DataLoader timed out after"):
                    if self.stop():
                        raise StopIteration from None
                    waited += _POLL  # counted, since a clock would count the time of a run that was suspended too
                    if not self.timeout or waited < self.timeout:
                        continue
                    problem = stalled(self.watch, self.done % len(self.processes), self.timeout)
                else:
                    problem = self._explain(error)
                    if problem is None:
                        raise
            raise problem  # here, so that no traceback comes with it

    def _explain(self, error: Exception) -> UserError | None:
        """What a person can do about an error; None if it is unexpected."""
        message = str(error)
        if message.startswith("Caught "):  # raised while a worker read
            return out_of_shared_memory(message)
        if not isinstance(error, RuntimeError):  # a line to a worker broke, which may be on the point of ending
            ending = wait([process.sentinel for process in self.processes], timeout=_ENDING)
            for process in self.processes:
                if process.sentinel in ending:
                    process.join()  # the sentinel is ready a moment before the status is
        worker = first_lost(self.processes)
        return None if worker is None else lost(self.watch, worker, self.processes[worker])

    def _kill(self) -> None:
        if os.getpid() == self.pid:  # not in a copy of this process, which has all but the workers
            for process in self.processes:
                process.kill()

    def __exit__(self, *_: object) -> None:
        if sys.is_finalizing():
            self._kill()
            return
        # Only after PyTorch has told them to end: one that was killed in the middle of looking would block it.
        timer = threading.Timer(_GRACE, self._kill)
        timer.daemon = True
        timer.start()
        try:
            self.iterator._shutdown_workers()
        finally:
            timer.cancel()
            self._kill()
            atexit.unregister(self._kill)
            self.children.restore()


class _QuietChildren:
    """Keeps PyTorch from raising, in the middle of whatever the main process is doing, that a worker has ended.

    Its handler of SIGCHLD would raise in the training step or while a checkpoint is written. ``_Workers`` notices it
    anyway, when it waits for the next batch.
    """

    def __init__(self) -> None:
        self.previous: Callable[[int, FrameType | None], Any] | int | None = None
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            self.previous = signal.getsignal(signal.SIGCHLD)
            if self.previous is not None:
                signal.signal(signal.SIGCHLD, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if callable(self.previous):
            try:
                self.previous(number, frame)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise

    def restore(self) -> None:
        """Put the handler back that was there before."""
        if self.previous is not None and signal.getsignal(signal.SIGCHLD) is self:
            with suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGCHLD, self.previous)


def batches(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    *,
    order: Sequence[int] | None = None,
    pin_memory: bool = False,
    timeout: float = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Any]:
    """Batches of samples in an order.

    A file that hangs would keep whoever waits for a batch from acting on a signal. ``stop`` then ends the batches,
    and the workers with them, early; whoever gives it has to tell such an end from that of the order.

    Args:
        dataset: Samples by index. Where it has an attribute ``on_read``, that is set while a sample is read, and is
            to be called with the path of each file before it is opened, so that errors can name the file.
        batch_size: Samples a batch; the last may be smaller.
        workers: Processes that read; 0 reads in this one. The batches are the same for any number.
        order: Indices of the samples, which may be computed when asked for; None takes all as they come.
        pin_memory: Whether tensors come in page-locked memory, from which copies to a GPU are fast.
        timeout: Seconds to wait for a batch of the workers before they are taken to be stalled; 0 waits for ever.
        stop: Whether to end early. It is asked only while a batch is waited for in vain, after each second in which
            none of the workers handed on anything, also while they start; a batch that is there comes first. It is
            asked in this process alone, so it must not wait for others. With ``workers`` 0 it is never asked: what
            hangs then is this process itself.

    Yields:
        What ``default_collate`` makes of a batch.

    Raises:
        UserError: If reading a sample raised it, or a worker is stalled or has ended.
    """
    order = range(len(dataset)) if order is None else order
    workers = min(workers, -(-len(order) // batch_size))
    watch = Watch(workers)
    loader = DataLoader(
        _Guarded(dataset, watch),
        batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        timeout=_POLL if workers else 0,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the workers' seeds are drawn from it, and not from the run's
    )
    if not workers:
        yield from map(_checked, loader)
        return
    with _Workers(loader, watch, timeout, stop) as ready:
        yield from map(_checked, ready)


def _checked(batch: Any) -> Any:
    if isinstance(batch, UserError):
        raise batch
    return batch


class EvaluationImages(Dataset):
    """Images of a labelled data set as the network sees them, with labels at their own size.

    A data set that draws from global generators gives the same for an index, whichever process reads it.

    Args:
        dataset: Labelled images.
        mean: (3,) of the encoder's normalisation.
        std: (3,) of the encoder's normalisation.
    """

    def __init__(self, dataset: SegmentationDataset, mean: Tensor, std: Tensor) -> None:
        self.dataset = dataset
        self.mean = mean.cpu().numpy()
        self.std = std.cpu().numpy()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Image (3, H, W) float32, label (h, w) uint8 at its own size, and the index."""
        with seeded([index]):
            image, label = self.dataset.image(index), self.dataset.label(index, resized=False)
        return normalize(image, self.mean, self.std), torch.from_numpy(label), index

    @property
    def on_read(self) -> OnRead | None:
        """See ``SegmentationDataset.on_read``."""
        return self.dataset.on_read

    @on_read.setter
    def on_read(self, call: OnRead | None) -> None:
        self.dataset.on_read = call
