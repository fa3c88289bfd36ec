"""The image cache: filled with what training and validation will read, cleared of what they will not."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

from icda.data.base import SegmentationDataset
from icda.data.cache import ImageCache, Stored
from icda.data.prepare.parts import Finding, Job, Part, damaged, numbered, one_sample
from icda.data.processes import Bar, in_processes
from icda.errors import UserError

log = logging.getLogger(__name__)

READ = {
    "source": ("image", "label", "translation"),
    "target": ("image", "reference"),
    "val": ("image",),  # its labels are scored at their own size
}
"""What is read at a part's ``size``: the names in ``Sample``, which are those of the data set's methods as well."""
HEADER = 128
"""Bytes of a stored array beside its values."""


@dataclass(frozen=True)
class _Entry:
    """An array of the cache.

    Args:
        part: Where it is read.
        index: Position of its sample.
        what: Name of the file in ``Sample``.
        original: That file.
        size: Height and width.
        kind: See ``ImageCache.path``.
    """

    part: Part
    index: int
    what: str
    original: Path
    size: tuple[int, int]
    kind: str

    @property
    def bytes(self) -> int:
        return prod(self.size) * (1 if self.what == "label" else 3) + HEADER


@dataclass(frozen=True)
class _Task:
    dataset: SegmentationDataset
    entry: tuple[str, Path, tuple[int, int], str]
    cache: ImageCache


def plan_cache(parts: Sequence[Part], cache: ImageCache, workers: int, progress: bool) -> list[Job | Finding]:
    """What the cache lacks and what it holds in vain.

    Args:
        parts: All parts of the data set.
        cache: The cache.
        workers: Number of processes.
        progress: Whether to show a progress bar.
    """
    findings: list[Job | Finding] = [
        Finding(part.name, "size is null: images are read at their own size and not cached", stops=False)
        for part in parts
        if part.name in READ and part.dataset is not None and part.dataset.size is None
    ]
    todo: dict[Path, _Entry] = {}
    kinds: dict[Path, set[str]] = {}
    for entry in _entries(parts):
        kinds.setdefault(entry.original, set()).add(entry.kind)
        try:
            path = cache.path(entry.original, entry.size, entry.kind)
        except UserError as error:
            sample = entry.part.dataset.samples[entry.index]
            findings.append(damaged(entry.part, sample, entry.original, str(error)))
            continue
        if not _is_whole(path, entry.bytes):
            todo[path] = entry
    stale = [
        s for s in cache.stored(_folders(parts)) if not s.is_current or s.kind not in kinds.get(s.original, {s.kind})
    ]
    if todo or stale:
        gigabytes = sum(entry.bytes for entry in todo.values()) / 1e9
        what = f"cache: {numbered(len(todo), 'array')}, {gigabytes:.2f} GB" + (
            f"; {len(stale)} stale to remove" if stale else ""
        )
        make = partial(_fill, cache, list(todo.values()), stale, workers, progress)
        findings.append(Job(what, cache.folder, make))
    return findings


def remove_cache(parts: Sequence[Part], cache: ImageCache) -> tuple[int, int]:
    """Delete the arrays of a data set's files, at all sizes. Files that are no arrays of the cache are left.

    Args:
        parts: All parts of the data set; those that cannot be opened count too.
        cache: The cache.

    Returns:
        Number of files and bytes that were deleted.
    """
    stored = list(cache.stored(_folders(parts)))
    return len(stored), cache.remove(stored)


def _entries(parts: Sequence[Part]) -> Iterator[_Entry]:
    for part in parts:
        dataset = part.dataset
        if dataset is None or dataset.size is None:
            continue
        for index, sample in enumerate(dataset.samples):
            for what in READ.get(part.name, ()):
                original = getattr(sample, what)
                if original is not None:
                    kind = dataset.label_kind(sample) if what == "label" else "image"
                    yield _Entry(part, index, what, original, dataset.size, kind)


def _folders(parts: Sequence[Part]) -> list[Path]:
    """Folders of the files that the parts read: their roots, and where links or settings lead out of these."""
    folders: dict[Path, None] = {}
    for part in parts:
        if part.name in READ:
            named = (part.node.get("root"), part.node.get("translations"))
            folders |= dict.fromkeys(Path(folder).expanduser() for folder in named if folder is not None)
    for entry in _entries(parts):
        folders[entry.original.parent] = None
    return list(folders)


def _is_whole(path: Path, size: int) -> bool:
    """Whether an array is stored in full; one may have been cut off by a crash."""
    try:
        return path.stat().st_size >= size
    except FileNotFoundError:
        return False


def _fill(
    cache: ImageCache, todo: Sequence[_Entry], stale: Sequence[Stored], workers: int, progress: bool
) -> list[Finding]:
    cache.remove(stale)
    needed = sum(entry.bytes for entry in todo)
    free = shutil.disk_usage(next(p for p in (cache.folder, *cache.folder.absolute().parents) if p.is_dir())).free
    if needed > free:
        raise UserError(
            f"the cache needs {needed / 1e9:.2f} GB, but {cache.folder} has {free / 1e9:.2f} GB free; make room, "
            "choose a smaller size, or give another folder as prepared_dir="
        )
    if todo:
        log.info("storing %d arrays, %.2f GB, in %s", len(todo), needed / 1e9, cache.folder)
    tasks = [_Task(one_sample(e.part.dataset, e.index), (e.what, e.original, e.size, e.kind), cache) for e in todo]
    bar = Bar(
        in_processes(_store, tasks, workers, chunk=8), "caching", len(tasks), unit="image", disable=not progress
    )
    return [
        damaged(entry.part, entry.part.dataset.samples[entry.index], entry.original, message)
        for entry, message in zip(todo, bar, strict=True)
        if message
    ]


def _store(task: _Task) -> str | None:
    """Store one array; a message if its file cannot be read."""
    what, *place = task.entry
    try:
        array = getattr(task.dataset, what)(0)
    except UserError as error:
        return str(error)
    task.cache.put(*place, array)
    return None
