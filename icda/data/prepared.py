"""The folder that ``scripts/prepare.py`` writes to: names in it, whole files, one writer at a time."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from icda.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

LOCK = ".lock"
TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.tmp")
"""Names of files that are being written; one that stays was left by a process that was killed."""


def slug(name: str) -> str:
    """A data set's name as the name of a folder: ``Cityscapes train`` -> ``cityscapes_train``.

    Args:
        name: ``SegmentationDataset.name``.
    """
    return re.sub(r"[^\w.+-]+", "_", name.lower()).strip("._") or "data_set"


def prepared_folder(prepared_dir: str | Path, name: str) -> Path:
    """Where files about one data set are.

    Args:
        prepared_dir: The configuration's ``prepared_dir``.
        name: ``SegmentationDataset.name``.
    """
    return Path(prepared_dir).expanduser() / slug(name)


@contextmanager
def whole_file(path: Path, mtime_ns: int | None = None) -> Iterator[BinaryIO]:
    """Write a file that appears whole or not at all, also if several processes write it at once.

    Args:
        path: The file; its folder is made if missing.
        mtime_ns: Time of change to give it, in nanoseconds; None leaves the present.

    Yields:
        The file to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        if mtime_ns is not None:
            os.utime(temporary, ns=(mtime_ns, mtime_ns))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Be the only one who writes to a folder; others wait. What a killed process left half-written is removed.

    Args:
        folder: It is made if missing, and gets a file ``.lock`` that stays.

    Yields:
        Whether others wait; False where the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        locked = _lock(file, folder)
        if locked:
            _remove_leftovers(folder)
        yield locked


def _lock(file: BinaryIO, folder: Path) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another prepare.py is writing to %s; waiting for it", folder)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        log.info("%s cannot be locked (%s); let only one prepare.py run at a time", folder, error.strerror)
        return False
    return True


def _remove_leftovers(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in filter(TEMPORARY.fullmatch, names):
            Path(parent, name).unlink(missing_ok=True)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what goes wrong in writing to a folder into one line.

    Args:
        folder: The folder, for the message.

    Raises:
        UserError: If the operating system refuses.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}; give a folder you may write to, "
            "with free space, as prepared_dir="
        ) from error
