"""Files of a data set's tree."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from icda.errors import UserError


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Folders below a folder, itself first, in the order of their names. Nothing hidden; links are followed.

    A link that leads back to a folder above it is passed over, so that circles end.

    Args:
        folder: Where to begin.

    Yields:
        A folder, the names of the folders in it (those that the caller removes are not walked) and of its files.

    Raises:
        UserError: If a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):  # what is not there holds nothing
            return
        raise UserError(
            f"{error.filename} cannot be read: {error.strerror}; check what it is and its permissions"
        ) from error

    above: dict[Path, frozenset[str]] = {}  # real paths of a folder and of those above it
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        parent, real = Path(place), os.path.realpath(place)
        line = above.get(parent.parent, frozenset())
        if real in line:
            folders.clear()
            continue
        above[parent] = line | {real}
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield parent, folders, sorted(name for name in names if not name.startswith("."))


def list_files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """All files below a folder with one of the endings, sorted, in one walk. Hidden files are left out.

    Args:
        folder: Where to look.
        endings: Ends of file names, such as ``_leftImg8bit.png``; upper and lower case are the same.

    Returns:
        Path of each file by its key: the path relative to the folder, with ``/``, without the ending.

    Raises:
        UserError: If two files have the same key, or a folder cannot be read.
    """
    endings = tuple(ending.lower() for ending in endings)
    found: dict[str, Path] = {}
    for parent, _, names in walk(folder):
        prefix = "" if parent == folder else parent.relative_to(folder).as_posix() + "/"
        for name in names:
            ending = next((e for e in endings if name.lower().endswith(e)), None)
            if ending is None:
                continue
            key = prefix + name[: len(name) - len(ending)]
            if key in found:
                raise UserError(f"two files for one sample: {found[key]} and {parent / name}; remove one of them")
            found[key] = parent / name
    return dict(sorted(found.items()))
