"""The folder that ``scripts/prepare.py`` writes to: names in it, whole files, one writer at a time."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
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
TEMPORARY = re.compile(r"\.(?:.+\.)?[0-9a-f]{12}\.tmp", re.DOTALL)
"""Names of files that are being written; one that stays was left by a process that was killed. Earlier versions did
not name the file that was to be."""
_NAMED = 50  # characters of a file's name in its temporary one: 200 bytes in UTF-8, where file systems take 255
ABANDONED_AFTER = 3600.0
"""Seconds after which a file that is still being written belongs to a process that was killed."""
TRANSLATIONS = "translations"
"""Folder in ``prepared_dir`` that ``scripts/translate.py`` writes to."""


def slug(name: str) -> str:
    """A data set's name as the name of a folder: ``Cityscapes train`` -> ``cityscapes_train``.

    Args:
        name: ``SegmentationDataset.name``.
    """
    return re.sub(r"[^\w.+-]+", "_", name.lower()).strip("._") or "data_set"


def relative_root(prepared_dir: str | Path, root: str | Path) -> str:
    """A data set's root in the form that files about it keep, so that data and these files can move together.

    Args:
        prepared_dir: The configuration's ``prepared_dir``.
        root: ``SegmentationDataset.root``.

    Returns:
        The path with ``/``: relative to the folder that holds ``prepared_dir`` if it is below it, else absolute.
    """
    base, absolute = (Path(path).expanduser().resolve() for path in (prepared_dir, root))
    return (absolute.relative_to(base.parent) if absolute.is_relative_to(base.parent) else absolute).as_posix()


def prepared_folder(prepared_dir: str | Path, name: str, root: str | Path) -> Path:
    """Where files about one data set are: ``<name>-<8 hex digits of its root>``.

    Args:
        prepared_dir: The configuration's ``prepared_dir``.
        name: ``SegmentationDataset.name``; it becomes the name of the folder (``slug``).
        root: ``SegmentationDataset.root``: several data sets may have the same name.
    """
    return Path(prepared_dir).expanduser() / f"{slug(name)}-{root_key(prepared_dir, root)}"


def root_key(prepared_dir: str | Path, root: str | Path) -> str:
    """Eight hex digits that tell roots apart (see ``relative_root``).

    Args:
        prepared_dir: The configuration's ``prepared_dir``.
        root: ``SegmentationDataset.root``.
    """
    return hashlib.sha256(os.fsencode(relative_root(prepared_dir, root))).hexdigest()[:8]


def check_apart(
    setting: str, output: Path, name: str, root: str | Path, data_dir: str | Path, files: Iterable[Path]
) -> None:
    """Refuse to write into a data set's own tree.

    A root that is ``data_dir`` itself may hold other things; there, only the folders with the data set's files count.

    Args:
        setting: The setting that names the folder, for the message.
        output: The folder that would be written to.
        name: ``SegmentationDataset.name``.
        root: ``SegmentationDataset.root``.
        data_dir: Folder that holds the data sets' folders.
        files: Files of the data set.

    Raises:
        UserError: If the folder is the root or lies in the data set's tree.
    """
    target, top = output.expanduser().resolve(), Path(root).expanduser().resolve()
    if not target.is_relative_to(top):
        return
    if target != top and top == Path(data_dir).expanduser().resolve():
        below = top / target.relative_to(top).parts[0]
        folders = {path.parent for path in files}
        if not any(folder.resolve().is_relative_to(below) for folder in folders):
            return
    raise UserError(f"{setting}={output} is inside {name}'s own folder {root}; choose another folder")


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
    temporary = path.with_name(f".{path.name[:_NAMED]}.{secrets.token_hex(6)}.tmp")
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

    That is: after a while, and not below ``translations``, since who writes there does not wait.

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
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder and TRANSLATIONS in folders:
            folders.remove(TRANSLATIONS)
        for path in (Path(parent, name) for name in filter(TEMPORARY.fullmatch, names)):
            if is_abandoned(path):
                path.unlink(missing_ok=True)


def is_abandoned(temporary: Path) -> bool:
    """Whether nothing was written to a file for so long that its writer must have been killed.

    Args:
        temporary: A file; one that is gone meanwhile is not abandoned.
    """
    try:
        return time.time() - temporary.lstat().st_mtime > ABANDONED_AFTER
    except FileNotFoundError:
        return False


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
