"""Where a run's curves go: nowhere, to TensorBoard, or to a CSV file; whole after a resume, each step once.

TensorBoard's events are written by torch's ``RecordWriter`` at once, not by ``SummaryWriter``: that one writes in a
thread, from which a full disk prints a traceback while the training goes on until some later call.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from icda.errors import UserError
from icda.training.durable import append_whole, naming, write_whole
from icda.weights.foreign import plain

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

log = logging.getLogger(__name__)

LOGGERS = ("none", "tensorboard", "csv")
_COLUMNS = ["step", "name", "value"]
_VALIDATION = "val"  # what the names of a validation's curves begin with


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


def open_logger(kind: str, folder: Path, step: int, validated: bool = True, own: bool = True) -> Logger:
    """A logger for a run that starts, or goes on, at a step.

    What an earlier part of the run logged up to this step stays. What it logged after it was lost with that part,
    will be logged again, and does not show any more; of a run that starts at step 0 nothing stays.

    Args:
        kind: One of ``LOGGERS``. ``tensorboard`` writes ``tensorboard/``; ``csv`` writes ``scalars.csv`` and no
            pictures.
        folder: The run's.
        step: Steps done so far, those of the checkpoint that the run goes on from.
        validated: Whether the checkpoint holds the scores of its own step. Where it does not, their validation was
            cut off and will be made up for, so that its curves, whose names begin with ``val``, and its pictures do
            not show any more.
        own: Whether the files in the folder are of the run that is gone on with. Those of another are dropped: of
            ``scalars.csv`` nothing stays, event files are renamed so that TensorBoard does not see them.

    Raises:
        UserError: If the kind is not known, TensorBoard is not installed, or ``scalars.csv`` is another file.
        OSError: If the folder cannot be written.
    """
    if kind not in LOGGERS:
        raise UserError(f"logger={kind} is not known; choose one of {', '.join(LOGGERS)}")
    if kind == "tensorboard":
        return TensorBoardLogger(folder / "tensorboard", step, validated, own)
    return CSVLogger(folder / "scalars.csv", step, validated, own) if kind == "csv" else Logger()


def _stays(step: int, validated: bool) -> Callable[[int, str], bool]:
    """Whether a value that was logged at a step, under a name, stays where a run goes on at ``step``."""

    def stays(at: int, name: str) -> bool:
        return step > 0 and (at < step or (at == step and (validated or not name.startswith(_VALIDATION))))

    return stays


class _FileLogger(Logger):
    """One file that only grows, by whole pieces; what is written outlives the process at once, if not the system.

    Args:
        path: The file, for messages.
        file: Opened for writing without a buffer, at its end.
    """

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self._file = file

    def flush(self) -> None:
        """See ``Logger``."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """See ``Logger``."""
        with naming(self.path):
            self._file.close()

    def _append(self, content: bytes) -> None:
        """Add all of a piece to the file, or none of it."""
        with naming(self.path):
            append_whole(self._file, content)


class CSVLogger(_FileLogger):
    """``scalars.csv``: a line for each value, with its step and the name of its curve.

    A table with a column for each curve would need all names before the first line, but classes appear in a
    validation, and prototypes in training, as they come. The wide table is one line away::

        pandas.read_csv("scalars.csv").pivot(index="step", columns="name", values="value")

    Args:
        path: The file; its folder is made if need be.
        step, validated, own: See ``open_logger``.

    Raises:
        UserError: If the file is there and begins with other columns.
        OSError: If it cannot be written.
    """

    def __init__(self, path: Path, step: int, validated: bool, own: bool) -> None:
        kept = _lines([_COLUMNS, *_rows(path, _stays(step if own else 0, validated))]).encode()
        write_whole(path, lambda file: file.write(kept))
        super().__init__(path, path.open("ab", buffering=0))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See ``Logger``."""
        self._append(_lines([[step, name, repr(float(value))] for name, value in values.items()]).encode())


def _lines(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _rows(path: Path, stays: Callable[[int, str], bool]) -> Iterator[list[str]]:
    """The whole lines of a file that stay; a damaged one costs only itself."""
    if not path.exists():
        return
    content = path.read_bytes().replace(b"\0", b"")  # zeros are what a power cut can leave
    header, *lines = content.split(b"\n")
    if content and header.rstrip(b"\r") != ",".join(_COLUMNS).encode():
        found = plain(header.decode(errors="replace").replace(",", ", "), 80)
        raise UserError(
            f"{path} has the columns {found}, expected {', '.join(_COLUMNS)} as icda writes them; move it away"
        )
    for line in lines[:-1]:  # what follows the last line's end was cut off with the process that wrote it
        try:
            text = line.rstrip(b"\r").decode()
            (row,) = csv.reader([text], strict=True)
            step, name, value = row
            float(value)
            if stays(int(step), name) and _lines([row]) == f"{text}\n":  # a stray quote is read, but never written
                yield row
        except (ValueError, csv.Error):
            continue


class TensorBoardLogger(_FileLogger):
    """Event files that TensorBoard shows, one for each part of a run.

    Args:
        folder: Of the event files; made if need be.
        step, validated, own: See ``open_logger``.

    Raises:
        UserError: If TensorBoard is not installed.
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int, validated: bool, own: bool) -> None:
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
        if not own:
            _set_aside(folder)
            step = 0
        # TensorBoard hides what earlier files hold from the step of a START on. The checkpoint's own step was logged
        # before the checkpoint was written, and is not logged again; but where its validation is to be hidden, the
        # rest of the step is hidden with it, and repeated here.
        first = step + 1 if step and validated else step
        repeated = _scalars_at(folder, step, _stays(step, validated)) if first == step > 0 else []
        now, head = time.time(), io.BytesIO()
        start = SessionLog(status=SessionLog.START)
        version = Event(wall_time=now, file_version="brain.Event:2")
        for event in (version, Event(wall_time=now, step=first, session_log=start), *repeated):
            RecordWriter(head).write(event.SerializeToString())
        super().__init__(path, path.open("xb", buffering=0))
        self._event_type, self._summary = Event, summary
        self._records = RecordWriter(self)
        self._append(head.getvalue())  # at once, so that a killed process hides nothing that it does not repeat
        self.flush()

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


def _scalars_at(folder: Path, step: int, stays: Callable[[int, str], bool]) -> list[Event]:
    """What the event files of a folder show at a step, of curves that stay; each with the time of its logging."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary

    found: list[Event] = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in _events(path, step):
            if event.session_log.status == SessionLog.START:
                found.clear()
            values = [v for v in event.summary.value if v.HasField("simple_value") and stays(step, v.tag)]
            if values:
                found.append(Event(wall_time=event.wall_time, step=step, summary=Summary(value=values)))
    return found


def _events(path: Path, step: int) -> Iterator[Event]:
    """The scalars of a step in an event file, and each START that hides them, up to the first damage.

    Not by TensorBoard's own reader, which takes a third of a second for the checksum of each MB of pictures.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from torch.utils.tensorboard import RecordWriter

    size = path.stat().st_size
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:  # length of the event and a checksum of that
            length, _ = struct.unpack("<QI", head)
            if length + 4 > size - file.tell():
                return
            record = head + file.read(length + 4)  # the event and its checksum
            try:
                event = Event.FromString(record[12:-4])
            except DecodeError:
                return
            hides = event.session_log.status == SessionLog.START and event.step <= step
            if hides or (event.step == step and any(v.HasField("simple_value") for v in event.summary.value)):
                checked = io.BytesIO()
                RecordWriter(checked).write(record[12:-4])
                if checked.getvalue() != record:
                    return
                yield event


def _set_aside(folder: Path) -> None:
    """Give the event files of another run names that TensorBoard does not read.

    A START alone would not do: TensorBoard's fast reader takes no notice of it, and shows what it has below the
    steps to come.
    """
    for path in folder.glob("events.out.tfevents.*"):
        path.rename(path.with_name(path.name.replace("tfevents", "replaced")))


def _event_file(folder: Path) -> str:
    """A name as TensorBoard expects it, later than all that are there, since it reads them in the names' order."""
    taken = [re.match(r"events\.out\.tfevents\.(\d+)", file.name) for file in folder.iterdir()]
    seconds = max([int(time.time()), *(int(match[1]) + 1 for match in taken if match)])
    return f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.0"
