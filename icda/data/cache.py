"""Images and labels stored at training size, so that decoding and resizing them is done once.

A stored file is an uncompressed array, bit for bit what reading and resizing the original gives. Its name holds the
original's size in bytes and time of change, so a changed original is never answered from the cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from icda.data.prepared import TEMPORARY, is_abandoned, whole_file
from icda.errors import UserError

STORED = ".npy"
ELSEWHERE = "elsewhere"
VERSION = 1
"""Rises whenever the same file is read or resized to other values."""
_NAME = re.compile(r"(.+)\.([a-z]+(?:-[0-9a-f]+)?)-(\d+)-(\d+)\.npy")
_SIZE = re.compile(r"\d+x\d+")
_VERSION = re.compile(r"v\d+")


@dataclass(frozen=True)
class Stored:
    """A file in the cache's folder.

    Args:
        path: The file itself.
        original: The image or label file that it was made from; None for one that was never finished.
        kind: See ``ImageCache.path``; empty for one that was never finished.
        bytes: Size that the original had.
        time: Time of change that the original had, in nanoseconds.
        version: Name of the folder of the version that stored it.
    """

    path: Path
    original: Path | None = None
    kind: str = ""
    bytes: int = 0
    time: int = 0
    version: str = f"v{VERSION}"

    @property
    def is_current(self) -> bool:
        """Whether the original is there as it was, and would be read in the same way."""
        if self.original is None or self.version != f"v{VERSION}":
            return False
        try:
            status = self.original.stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.bytes, self.time)


class ImageCache:
    """Arrays made from image files, by file, size and kind.

    Args:
        folder: Where the arrays are, as ``v<version>/<height>x<width>/<path of the original>.<kind>-<bytes>-
            <time>.npy``. It need not exist.
        base: Folder that originals' paths are taken relative to, so that data and cache can move together.
    """

    def __init__(self, folder: str | Path, base: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.base = Path(base).expanduser()

    def path(self, original: Path, size: tuple[int, int], kind: str) -> Path:
        """Where the array of an original is stored, whether it is there or not.

        Args:
            original: The image or label file.
            size: Height and width of the array.
            kind: What it is: ``image``, or a word for a label space (``SegmentationDataset.label_kind``).

        Raises:
            UserError: If the original does not exist.
        """
        try:
            status = original.stat()
        except OSError as error:
            raise UserError(f"{original} cannot be read: {error.strerror}; copy or unzip it again") from error
        name = f"{original.name}.{kind}-{status.st_size}-{status.st_mtime_ns}{STORED}"
        return self.folder / f"v{VERSION}" / f"{size[0]}x{size[1]}" / self._place(original.parent) / name

    def get(self, original: Path, size: tuple[int, int], kind: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The stored array of an original, or what ``make`` returns where none is stored.

        Args:
            original: The image or label file.
            size: Height and width of the array.
            kind: See ``path``.
            make: Reads the original.

        Returns:
            (height, width, 3) or (height, width) uint8; mapped from the disk and read-only if it was stored.

        Raises:
            UserError: If the original does not exist or a stored array is damaged.
        """
        path = self.path(original, size, kind)
        try:
            array = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            return make()
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it, prepare.py cache=true makes it anew") from error
        if array.dtype != np.uint8 or array.shape[:2] != tuple(size):
            raise UserError(f"{path} holds {array.shape} {array.dtype}, expected {tuple(size)} uint8; delete it")
        return array

    def put(self, original: Path, size: tuple[int, int], kind: str, array: np.ndarray) -> Path:
        """Store the array of an original, whole or not at all.

        Args:
            original: The image or label file.
            size: Height and width of the array.
            kind: See ``path``.
            array: (height, width, 3) or (height, width) uint8.

        Returns:
            Where it is stored.
        """
        assert array.dtype == np.uint8 and array.shape[:2] == tuple(size), (array.dtype, array.shape, size)
        path = self.path(original, size, kind)
        with whole_file(path) as file:
            np.save(file, np.ascontiguousarray(array))
        return path

    def stored(self, originals: Iterable[Path]) -> Iterator[Stored]:
        """What the cache holds of the files below some folders; links are not followed, other files left aside.

        Args:
            originals: Folders of originals. Below one outside ``base``, each sub-folder has to be named as well; so
                below ``base`` itself, where other data sets are.
        """
        versions = [path for path in _folders(self.folder, _VERSION) if not path.is_symlink()]
        seen: set[Path] = set()
        for size in (size for version in versions for size in _folders(version, _SIZE)):
            for folder in dict.fromkeys(originals):
                place = self._place(folder)
                tops = [size / part for part in (*reversed(place.parents), place)]
                if not any(top.is_symlink() for top in tops):
                    for found in _walk(size / place, folder, size.parent.name, deep=place != Path()):
                        if found.path not in seen:
                            seen.add(found.path)
                            yield found

    def remove(self, stored: Iterable[Stored]) -> int:
        """Delete files, and the folders below the cache's own that this leaves empty.

        Args:
            stored: What ``stored`` yields.

        Returns:
            Bytes that were freed.
        """
        freed = 0
        folders: set[Path] = set()
        for file in stored:
            freed += file.path.lstat().st_size
            file.path.unlink(missing_ok=True)
            folders |= set(file.path.relative_to(self.folder).parents)
        for folder in sorted(folders - {Path()}, key=lambda p: len(p.parts), reverse=True):
            path = self.folder / folder
            if not any(path.iterdir()):
                path.rmdir()
        return freed

    def _place(self, folder: Path) -> Path:
        """Where the arrays of a folder's files are, below the folder of their size."""
        if folder.is_relative_to(self.base) and ".." not in folder.relative_to(self.base).parts:
            return folder.relative_to(self.base)
        return Path(ELSEWHERE, hashlib.sha1(os.fsencode(folder)).hexdigest()[:12])


def _folders(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """Folders in a folder that have one of the names, sorted."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if names.fullmatch(path.name) and path.is_dir())


def _walk(top: Path, originals: Path, version: str, deep: bool) -> Iterator[Stored]:
    """The cache's files below a folder that stands for a folder of originals; in it alone if not ``deep``."""
    for parent, folders, names in os.walk(top):
        if not deep:
            folders.clear()
        place = originals / Path(parent).relative_to(top)
        for name in sorted(names):
            path = Path(parent, name)
            try:
                status = path.lstat()
            except FileNotFoundError:  # another process has finished or removed it meanwhile
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            if match := _NAME.fullmatch(name):
                yield Stored(path, place / match[1], match[2], int(match[3]), int(match[4]), version)
            elif TEMPORARY.fullmatch(name) and is_abandoned(path):
                yield Stored(path)
