"""Cityscapes' label files with train ids, made from those with official label ids, for other tools of the field.

This toolkit reads the official files itself (``icda.data.cityscapes``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from icda.data.base import Sample
from icda.data.cityscapes import Cityscapes, label_ids_to_train_ids
from icda.data.classes import CITYSCAPES
from icda.data.io import read_label
from icda.data.prepare.parts import Finding, Job, Part, damaged
from icda.data.prepared import root_key, whole_file
from icda.data.processes import Bar, in_processes
from icda.errors import UserError

FOLDER = "Cityscapes"
GROUND_TRUTH = "gtFine"
ENDING = "_labelTrainIds.png"
COARSEST_CLOCK = 2_000_000_000
"""Nanoseconds; some file systems keep times to two seconds only."""


@dataclass(frozen=True)
class _Label:
    sample: Sample
    made: Path

    @property
    def original(self) -> Path:
        return self.sample.label

    @property
    def is_current(self) -> bool:
        """Whether the file was made from the original as it is: it is given the original's time of change."""
        try:
            original, made = self.original.stat(), self.made.stat()
        except FileNotFoundError:
            return False
        return made.st_size > 0 and abs(made.st_mtime_ns - original.st_mtime_ns) < COARSEST_CLOCK


def plan_train_ids(part: Part, prepared_dir: Path, workers: int, progress: bool) -> list[Job | Finding]:
    """The label files that have to be made, if a part is Cityscapes with label ids alone; those of all splits there.

    Args:
        part: The part.
        prepared_dir: They go to ``Cityscapes-<root>/gtFine/<split>/<city>/*_gtFine_labelTrainIds.png`` below it.
        workers: Number of processes.
        progress: Whether to show a progress bar.
    """
    dataset = part.dataset
    if not isinstance(dataset, Cityscapes):
        return []
    folder = prepared_dir / f"{FOLDER}-{root_key(prepared_dir, dataset.root)}"
    ending = Cityscapes.LABEL_IDS_ENDINGS[0].lower()
    jobs: list[Job | Finding] = []
    for split in (dataset, *_other_splits(dataset)):
        samples = [s for s in split.samples if s.label is not None and s.label.name.lower().endswith(ending)]
        tasks = [_Label(sample, folder / _place(sample.label)) for sample in samples]
        if todo := [task for task in tasks if not task.is_current]:
            make = partial(_make_all, part, todo, workers, progress)
            jobs.append(Job(f"train-id labels of {split.name} ({len(todo)})", folder / GROUND_TRUTH, make))
    return jobs


def _other_splits(dataset: Cityscapes) -> Iterator[Cityscapes]:
    for split in Cityscapes.SPLITS:
        if split != dataset.split:
            try:
                yield Cityscapes(str(dataset.root), split, check=False)
            except UserError:  # training needs none of them
                continue


def _place(label: Path) -> Path:
    """``gtFine/<split>/<city>/<file>`` of a label file, with the name of the file that is made from it."""
    parts = label.parts
    start = len(parts) - 1 - parts[::-1].index(GROUND_TRUTH)
    return Path(*parts[start:-1], label.name[: -len("_labelIds.png")] + ENDING)


def _make_all(part: Part, todo: Sequence[_Label], workers: int, progress: bool) -> list[Finding]:
    results = in_processes(_make, todo, workers, chunk=8)
    bar = Bar(results, "train-id labels", len(todo), unit="label", disable=not progress)
    return [damaged(part, label.sample, label.original, m) for label, m in zip(todo, bar, strict=True) if m]


def _make(label: _Label) -> str | None:
    """Make one file; a message if the original cannot be used."""
    try:
        ids = read_label(label.original, CITYSCAPES, label_ids_to_train_ids())
        changed = label.original.stat().st_mtime_ns
    except UserError as error:
        return str(error)
    with whole_file(label.made, changed) as file:
        Image.fromarray(ids).save(file, "PNG")
    return None
