"""Patterns of file names, and which files belong together by them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from icda.data.io import IMAGE_ENDINGS
from icda.errors import UserError

_WILDCARDS = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}
_WILDCARD = re.compile(r"(\*\*/|\*|\?)")
_SHOWN = 5  # entries of a folder that a message names


class Pattern:
    """A pattern of file names, such as ``day/**/*.jpg``.

    ``*`` stands for any text inside a name, ``?`` for one character, ``**`` for any folders, also none; all other
    characters stand for themselves, brackets too. A last ``*``, ``*.*`` or ``/`` takes files with any of ``endings``.
    Upper and lower case are the same in the ending only. Hidden files and folders are left out.

    Args:
        option: Name of the setting, for messages.
        text: The pattern as it was given: ``~`` is the home folder, ``\\`` the same as ``/``.
        root: Folder that it is relative to, if it is not absolute.
        endings: Endings taken where the pattern names none.

    Attributes:
        base: The folder before the first wildcard.
        tail: What files are compared with, relative to ``base``, in Unicode's composed form.
        wildcards: How many wildcards it has.

    Raises:
        UserError: If it is no text or an empty one.
    """

    def __init__(self, option: str, text: str, root: Path, endings: tuple[str, ...] = IMAGE_ENDINGS) -> None:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{option} is {text!r}, expected a pattern of file names, such as day/**/*.jpg")
        self.option, self.text, self.endings = option, text, endings
        text = text.replace("\\", "/")
        if text.startswith("~/"):
            text = (Path.home() / text[2:]).as_posix() + "/" * text.endswith("/")
        parts = [part for part in text.split("/") if part not in ("", ".")] + ["*"] * text.endswith("/") or ["."]
        start = next((i for i, part in enumerate(parts) if "*" in part or "?" in part), len(parts) - 1)
        self.base = root / (("/" if text.startswith("/") else "") + "/".join(parts[:start]))
        tail: list[str] = []
        for part in parts[start:]:
            if part != "**" or tail[-1:] != ["**"]:
                tail.append(part if part == "**" else re.sub(r"\*+", "*", part))
        if tail[-1:] == ["**"]:
            tail.append("*")
        self._free = tail[-1].endswith("*")
        if self._free and tail[-1] != ".*":
            tail[-1] = tail[-1].removesuffix(".*")
        self.tail = unicodedata.normalize("NFC", "/".join(tail))
        self._depth = None if "**" in tail else len(tail)
        last = self.tail.rpartition("/")[2]
        ending = "" if self._free or "." not in last else last[last.rindex(".") :]
        if _WILDCARD.search(ending):
            ending = ""
        pieces = _WILDCARD.split(self.tail[: len(self.tail) - len(ending)])
        self.wildcards = len(pieces) // 2
        ends = "|".join(map(re.escape, endings)) if self._free else re.escape(ending)
        self._regex = re.compile("".join(_WILDCARDS.get(p, re.escape(p)) for p in pieces) + f"(?i:{ends})")

    def match(self, path: str) -> tuple[str, ...] | None:
        """What the wildcards stand for in a path.

        Args:
            path: Path relative to ``base``, with ``/``.

        Returns:
            One text per wildcard, that of ``**`` without ``/`` at its end; None if the path does not match.
        """
        found = self._regex.fullmatch(unicodedata.normalize("NFC", path))
        return found and tuple(text.removesuffix("/") for text in found.groups())

    def fill(self, texts: Sequence[str]) -> Path:
        """The path in which the wildcards stand for these texts; an open ending becomes the first of ``endings``."""
        left = iter(texts)

        def put(wildcard: re.Match[str]) -> str:
            text = next(left)
            return f"{text}/" if text and wildcard[0] == "**/" else text

        return self.base / (_WILDCARD.sub(put, self.tail) + (self.endings[0] if self._free else ""))

    def find(self, name: str) -> dict[Path, tuple[str, ...]]:
        """All files that match, in the order of their paths, and what the wildcards stand for.

        Args:
            name: Name of the data set, for messages.

        Raises:
            UserError: If there is none.
        """
        if not self.wildcards and not self._free and (self.base / self.tail).is_dir():
            folder = self.text.replace("\\", "/").rstrip("/")
            raise UserError(
                f"{name}: {self.option}={self.text} is a folder; give {folder}/* for the files in it, or "
                f"{folder}/**/* for those in all folders below it, too"
            )
        found = {}
        if self.base.is_dir():
            real = os.path.realpath(self.base)
            for path in sorted(_files(name, str(self.base), "", self._depth, frozenset([real]))):
                texts = self.match(path)
                if texts is not None:
                    found[self.base / path] = texts
        if not found:
            raise UserError(f"{name}: no file matches {self.option}={self.text}; {_describe(self.base)}")
        return found


@dataclass(frozen=True)
class Matches:
    """The files of some patterns, in the order of their paths.

    Args:
        patterns: The patterns.
        files: What the wildcards stand for, by file.
    """

    patterns: tuple[Pattern, ...]
    files: dict[Path, tuple[str, ...]]

    @classmethod
    def of(cls, name: str, patterns: Sequence[Pattern], without: Mapping[Path, object] | None = None) -> Matches:
        """Look for the files of patterns.

        Args:
            name: Name of the data set, for messages.
            patterns: The patterns; a file that several match counts for the first.
            without: Files to leave out.

        Raises:
            UserError: If a pattern matches nothing, or nothing that is not to be left out.
        """
        files: dict[Path, tuple[str, ...]] = {}
        for pattern in patterns:
            for path, texts in pattern.find(name).items():
                if path not in (without or {}):
                    files.setdefault(path, texts)
        if patterns and not files:
            raise UserError(
                f"{name}: images={patterns[0].text} matches nothing but labels or references; give another pattern"
            )
        return cls(tuple(patterns), dict(sorted(files.items())))

    def keys(self, name: str, root: Path) -> dict[str, Path]:
        """The files by key: the path without ending below the root or, of files elsewhere, below a common folder.

        Raises:
            UserError: If two files differ in their endings only.
        """
        home = plain(root)
        bases = [plain(pattern.base) for pattern in self.patterns]
        if not all(base.is_relative_to(home) for base in bases):
            home = Path(os.path.commonpath([base.parent for base in bases]))
        keys: dict[str, Path] = {}
        for path in self.files:
            key = plain(path).relative_to(home).with_suffix("").as_posix()
            if key in keys:
                raise UserError(
                    f"{name}: two files for one sample: {keys[key]} and {path}; remove one, or name the ending in "
                    f"{self.patterns[0].option}, as in *.jpg"
                )
            keys[key] = path
        return keys

    def by_texts(self, name: str) -> dict[tuple[str, ...], Path]:
        """The files by what the wildcards stand for.

        Raises:
            UserError: If it is the same for two files.
        """
        found: dict[tuple[str, ...], Path] = {}
        for path, texts in self.files.items():
            if texts in found:
                raise UserError(
                    f"{name}: {self.patterns[0].option}: the wildcards stand for the same {quoted(texts)} in "
                    f"{found[texts]} and {path}; remove one of them, or change the pattern"
                )
            found[texts] = path
        return found

    def partners(self, name: str, others: Matches) -> dict[Path, Path]:
        """The other file whose wildcards stand for the same text, by file; without those that have none.

        Raises:
            UserError: If the patterns have different numbers of wildcards, or two files the same text.
        """
        other = others.patterns[0]
        for own in self.patterns:
            if own.wildcards != other.wildcards:
                raise UserError(
                    f"{name}: {own.option}={own.text} has {own.wildcards} wildcards (*, ** or ?), "
                    f"{other.option}={other.text} has {other.wildcards}; what belongs together is where they "
                    "stand for the same text, so both need equally many"
                )
        by_texts = others.by_texts(name)
        return {path: by_texts[texts] for texts, path in self.by_texts(name).items() if texts in by_texts}


def quoted(texts: Sequence[str]) -> str:
    """What the wildcards stand for, for messages: ``("a", "x_1")``."""
    return "(" + ", ".join(f'"{text}"' for text in texts) + ")"


def plain(path: Path) -> Path:
    """The absolute path without ``..``; links stay as they are, since files below one belong to where the link is."""
    return Path(os.path.normpath(path.absolute()))


def _files(name: str, folder: str, prefix: str, depth: int | None, above: frozenset[str]) -> Iterator[str]:
    """Paths of all files below a folder, at a depth if it is set; ``above`` (real paths) ends circles of links."""
    try:
        with os.scandir(folder) as entries:
            visible = [(e.name, e.path, e.is_dir()) for e in entries if not e.name.startswith(".")]
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{name}: {where} cannot be read: {error.strerror}; check it and its permissions") from error
    for entry, path, is_folder in visible:
        if not is_folder:
            if depth in (None, 1):
                yield prefix + entry
        elif depth != 1:
            real = os.path.realpath(path)
            if real not in above:
                below = None if depth is None else depth - 1
                yield from _files(name, path, f"{prefix}{entry}/", below, above | {real})


def _describe(folder: Path) -> str:
    """The nearest folder that exists and what is in it."""
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    entries = sorted(e.name + "/" * e.is_dir() for e in there.iterdir() if not e.name.startswith("."))
    shown = ", ".join(entries[:_SHOWN]) + (f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else "")
    missing = "" if there == folder else f"there is no folder {folder}, "
    return f"{missing}{there} holds {shown or 'nothing'}"
