"""Where a run's curves go: nowhere, to TensorBoard, or to a CSV file; whole after a resume, each step once.

TensorBoard's events are written by torch's ``RecordWriter`` at once, not by ``SummaryWriter``: that one writes in a
thread, from which a full disk prints a traceback while the training goes on until some later call.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from icda.errors import UserError
from icda.training.durable import write_whole

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

log = logging.getLogger(__name__)

LOGGERS = ("none", "tensorboard", "csv")
_COLUMNS = ["step", "name", "value"]


class Logger:
    """Takes curves and pictures and keeps none of them; the others are made of it.

    A context manager: leaving it closes the files.
    """

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log one value each of some curves.

        Args:
            values: By the name of the curve, such as ``train/source``.
            step: Steps done.

        Raises:
            OSError: If it cannot be written.
        """

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """Log a picture.

        Args:
            name: Of the series that it belongs to.
            picture: RGB (H, W, 3) uint8.
            step: Steps done.

        Raises:
            OSError: If it cannot be written.
        """

    def flush(self) -> None:
        """See to it that all that was logged is on the disk; to be called before a checkpoint is written.

        Raises:
            OSError: If it cannot be written.
        """

    def close(self) -> None:
        """Write what remains and close the files; a second time does nothing.

        Raises:
            OSError: If it cannot be written.
        """

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError as failure:
            if error is None:
                raise
            log.warning("%s", failure)  # what ended the run matters more


def open_logger(kind: str, folder: Path, step: int) -> Logger:
    """A logger for a run that starts, or goes on, at a step.

    What an earlier part of the run logged up to this step stays. What it logged after it was lost with that part,
    will be logged again, and does not show any more; of a run that starts at step 0 nothing stays.

    Args:
        kind: One of ``LOGGERS``. ``tensorboard`` writes ``tensorboard/``; ``csv`` writes ``scalars.csv`` and no
            pictures.
        folder: The run's.
        step: Steps done so far, those of the checkpoint that the run goes on from.

    Raises:
        UserError: If the kind is not known, TensorBoard is not installed, or ``scalars.csv`` is another file.
        OSError: If the folder cannot be written.
    """
    if kind not in LOGGERS:
        raise UserError(f"logger={kind} is not known; choose one of {', '.join(LOGGERS)}")
    if kind == "tensorboard":
        return TensorBoardLogger(folder / "tensorboard", step)
    return CSVLogger(folder / "scalars.csv", step) if kind == "csv" else Logger()


class _FileLogger(Logger):
    """One file that only grows, by whole pieces; what is written outlives the process at once, if not the system.

    Args:
        path: The file, for messages.
        file: Opened for writing without a buffer, at its end.
    """

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self._file = file
        self._size = file.seek(0, os.SEEK_END)

    def flush(self) -> None:
        """See ``Logger``."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._named(error) from error

    def close(self) -> None:
        """See ``Logger``."""
        try:
            self._file.close()
        except OSError as error:
            raise self._named(error) from error

    def _append(self, content: bytes) -> None:
        """Add all of a piece to the file, or none of it."""
        rest = memoryview(content)
        try:
            while rest:  # a disk that is about to be full takes a part
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a torn end is found when the file is read
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise self._named(error) from error
        self._size += len(content)

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, str(self.path))


class CSVLogger(_FileLogger):
    """``scalars.csv``: a line for each value, with its step and the name of its curve.

    A table with a column for each curve would need all names before the first line, but classes appear in a
    validation, and prototypes in training, as they come. The wide table is one line away::

        pandas.read_csv("scalars.csv").pivot(index="step", columns="name", values="value")

    Args:
        path: The file; its folder is made if need be.
        step: See ``open_logger``.

    Raises:
        UserError: If the file is there and begins with other columns.
        OSError: If it cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = _lines([_COLUMNS, *_rows_until(path, step)]).encode()
        write_whole(path, lambda file: file.write(kept))
        super().__init__(path, path.open("ab", buffering=0))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See ``Logger``."""
        self._append(_lines([[step, name, repr(float(value))] for name, value in values.items()]).encode())


def _lines(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _rows_until(path: Path, step: int) -> Iterator[list[str]]:
    """The whole lines of a file, those of later steps left out."""
    if not path.exists():
        return
    text = path.read_bytes().decode(errors="replace").replace("\0", "")  # zeros are what a power cut can leave
    text = text[: text.rfind("\n") + 1]  # a line without an end was cut off with the process that wrote it
    rows = csv.reader(io.StringIO(text, newline=""))
    if text and (header := next(rows)) != _COLUMNS:
        raise UserError(
            f"{path} has the columns {', '.join(header)[:80]}, expected {', '.join(_COLUMNS)} as icda writes them; "
            "move it away"
        )
    for row in rows:
        if step and len(row) == len(_COLUMNS) and row[0].isdecimal() and int(row[0]) <= step:
            yield row


class TensorBoardLogger(_FileLogger):
    """Event files that TensorBoard shows, one for each part of a run.

    Args:
        folder: Of the event files; made if need be.
        step: See ``open_logger``.

    Raises:
        UserError: If TensorBoard is not installed.
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from torch.utils.tensorboard import RecordWriter, summary
        except ImportError as error:
            raise UserError(
                f"logger=tensorboard needs TensorBoard, which cannot be imported ({error}); pip install tensorboard, "
                "or take logger=csv"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _event_file(folder)
        super().__init__(path, path.open("xb", buffering=0))
        self._event_type, self._summary = Event, summary
        self._records = RecordWriter(self)
        self._add(Event(file_version="brain.Event:2"))
        # TensorBoard hides what earlier files hold from the step of a START on. The checkpoint's own step was logged
        # before the checkpoint was written, and is not logged again.
        first = step + 1 if step else 0
        self._add(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See ``Logger``."""
        event = self._event_type(step=step)
        for name, value in values.items():
            event.summary.MergeFrom(self._summary.scalar(name, float(value)))
        self._add(event)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """See ``Logger``."""
        assert picture.ndim == 3 and picture.dtype == np.uint8, (picture.shape, picture.dtype)
        self._add(self._event_type(step=step, summary=self._summary.image(name, picture, dataformats="HWC")))

    def write(self, record: bytes) -> None:
        """What ``RecordWriter`` calls with each whole record."""
        self._append(record)

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _event_file(folder: Path) -> str:
    """A name as TensorBoard expects it, later than all that are there, since it reads them in the names' order."""
    taken = [re.match(r"events\.out\.tfevents\.(\d+)", file.name) for file in folder.iterdir()]
    seconds = max([int(time.time()), *(int(match[1]) + 1 for match in taken if match)])
    return f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.0"
