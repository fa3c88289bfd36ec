"""Pixels of each class in each label, counted once for rare class sampling (method section 8)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from icda.data.base import SegmentationDataset
from icda.data.prepare.parts import Finding, Job, Part, damaged, numbered, one_sample
from icda.data.prepared import prepared_folder
from icda.data.processes import Bar, in_processes
from icda.data.rare_class import (
    CLASSES_FILE,
    STATE_FILE,
    STATS_DICT_FILE,
    STATS_FILE,
    ClassStatistics,
    class_statistics,
    label_state,
    read_prepared_statistics,
    read_statistics,
    size_and_time,
    write_statistics,
)
from icda.errors import UserError

JOURNAL = "sample_class_stats.journal"
"""What has been counted so far, a line per label; a run that was stopped goes on from it."""


def plan_statistics(part: Part, prepared_dir: Path, workers: int, progress: bool) -> list[Job | Finding]:
    """The statistics of a labelled part, unless its root or ``prepared_dir`` has them as they should be.

    Args:
        part: The part.
        prepared_dir: They go to the data set's folder below it.
        workers: Number of processes.
        progress: Whether to show a progress bar.
    """
    dataset = part.dataset
    if dataset is None or "label" not in dataset.expected or "label" in dataset.missing:
        return []
    notes: list[Job | Finding] = []
    if (dataset.root / STATS_FILE).is_file():
        try:
            read_statistics(dataset, dataset.root)
            return []
        except UserError as error:
            text = f"{error}; those in {prepared_dir} are used instead"
            notes.append(Finding(part.name, text, stops=False))
    folder = prepared_folder(prepared_dir, dataset.name, dataset.root)
    if _are_current(dataset, folder):
        return notes
    make = partial(_make, part, folder, workers, progress)
    return [
        *notes,
        Job(f"class statistics of {dataset.name} ({numbered(len(dataset), 'label')})", folder / STATS_FILE, make),
    ]


def _are_current(dataset: SegmentationDataset, folder: Path) -> bool:
    files = [folder / name for name in (STATS_FILE, STATS_DICT_FILE, CLASSES_FILE, STATE_FILE)]
    if not all(path.is_file() for path in files):
        return False
    if (folder / JOURNAL).exists():  # a run was killed; with what it counted, this is quickly done again
        return False
    try:
        read_prepared_statistics(dataset, folder)
    except UserError:
        return False
    return True


def _make(part: Part, folder: Path, workers: int, progress: bool) -> list[Finding]:
    dataset = part.dataset
    before = label_state(dataset)  # a label that changes from now on is counted again by the next run
    states = [_state(dataset, index) for index in range(len(dataset))]
    counts: dict[int, list[int]] = {}
    findings = []
    with _journal(folder / JOURNAL) as (journal, known):
        for index, state in enumerate(states):
            if len(row := known.get(state, ())) == len(dataset.classes):
                counts[index] = row
        todo = [index for index in range(len(dataset)) if index not in counts]
        results = in_processes(_count, [one_sample(dataset, index) for index in todo], workers, chunk=8)
        bar = Bar(results, "counting classes", len(todo), unit="label", disable=not progress)
        for index, result in zip(todo, bar, strict=True):
            if isinstance(result, str):
                sample = dataset.samples[index]
                findings.append(damaged(part, sample, sample.label, result))
                continue
            counts[index] = result
            journal.write(json.dumps([states[index], result]).encode() + b"\n")
            journal.flush()
    if findings:
        return findings
    rows = np.array([counts[index] for index in range(len(dataset))], np.int64)
    write_statistics(ClassStatistics(rows), dataset, folder, before)
    (folder / JOURNAL).unlink(missing_ok=True)
    return []


def _state(dataset: SegmentationDataset, index: int) -> str:
    """What a count depends on: the label file, its size and time of change, and the meaning of its ids."""
    sample = dataset.samples[index]
    size, changed = size_and_time(sample.label)
    return f"{sample.label} {size} {changed} {dataset.label_kind(sample)}"


def _count(dataset: SegmentationDataset) -> list[int] | str:
    """Pixels of each class in the label of a data set of one sample; a message if it cannot be read."""
    try:
        return class_statistics(dataset).counts[0].tolist()
    except UserError as error:
        return str(error)


@contextmanager
def _journal(path: Path) -> Iterator[tuple[BinaryIO, dict[str, list[int]]]]:
    """The journal to append to, and what its lines hold; a line that a killed run left torn is passed over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, list[int]] = {}
    text = path.read_bytes() if path.is_file() else b""
    for line in text.splitlines():
        try:
            state, row = json.loads(line)
            if all(isinstance(pixels, int) for pixels in row):
                known[state] = row
        except (ValueError, TypeError):
            continue
    with path.open("ab") as file:
        if text and not text.endswith(b"\n"):
            file.write(b"\n")
        yield file, known
