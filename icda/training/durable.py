"""Files that are written whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

LEFT_AFTER = 86400  # seconds after which nobody still writes a temporary file
_TEMPORARY = re.compile(r"\..+?(?:\.(?P<host>[A-Za-z0-9_-]+))?\.(?P<pid>\d+)\.tmp")


def write_whole(
    path: Path, write: Callable[[IO[bytes]], None], before_rename: Callable[[], None] = lambda: None
) -> None:
    """Write a file under a temporary name in the same folder, flush it to the disk, and rename it over the old one.

    Args:
        path: Where it will be; its folder is made.
        write: Writes the content.
        before_rename: Called when the new file is whole under its temporary name, before ``path`` is touched.

    Raises:
        OSError: If it cannot be written, such as to a full disk, with the system's ``errno`` and with ``path`` as
            ``filename``; the file that was there before is untouched and the temporary one is removed.
    """
    temporary = temporary_name(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            before_rename()
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong before is to be told
                temporary.unlink(missing_ok=True)
            raise
    _flush_folder(path.parent)


def append_whole(file: io.FileIO, content: bytes) -> None:
    """Add all of a piece to the end of a file, or none of it.

    It outlives the process at once; the system only with ``os.fsync``.

    Args:
        file: Opened for writing without a buffer.
        content: The piece.

    Raises:
        OSError: If it cannot be written, such as to a full disk; the file is as it was before.
    """
    size = file.seek(0, os.SEEK_END)
    rest = memoryview(content)
    try:
        while rest:  # a disk that is about to be full takes a part
            rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):  # a torn end is found when the file is read
            file.truncate(size)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let every ``OSError`` say which file it is about: the system's ``errno``, and ``path`` as ``filename``."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def temporary_name(path: Path) -> Path:
    """The name under which this process writes a file before it renames it to ``path``, in the same folder.

    It tells machine and process, so that what a killed process left can be told from what another is writing.
    """
    return path.with_name(f".{path.name}.{host()}.{os.getpid()}.tmp")


def host() -> str:
    """This machine's name, as it may stand in the name of a file."""
    return re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())[:64] or "_"


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Machines may share the folder: removed is what a process of this machine left that lives no more, and of others
    what nobody has written to for a day.
    """
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        try:
            dead = match and match["host"] == host() and not _lives(int(match["pid"]))
            if match and (dead or time.time() - path.stat().st_mtime > LEFT_AFTER):
                path.unlink(missing_ok=True)
                log.info("removed %s, which a process that was killed had left half written", path)
        except OSError as error:  # another process was faster, or the folder is not ours to change
            log.debug("%s: %s", path, error)


def _lives(pid: int) -> bool:
    if os.name != "posix":  # elsewhere one cannot ask without doing harm
        return True
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Make the names in a folder outlast a loss of power, where the system can do so."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:  # Windows opens no folders, some network file systems flush none
        log.debug("%s: the names in the folder were not flushed to the disk (%s)", folder, error)
