"""Opening every file of a data set, to name those that are damaged before a run meets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from icda.data.base import SegmentationDataset
from icda.data.io import image_size, read_image
from icda.data.prepare.parts import Finding, Part, damaged, one_sample, unique
from icda.data.processes import Bar, in_processes
from icda.errors import UserError

PHOTOGRAPHS = ("image", "reference", "translation")
MAPS = ("label", "invalid")


@dataclass(frozen=True)
class _Task:
    """Files of one sample to open.

    Args:
        dataset: A data set of this sample alone.
        files: Names of the files in ``Sample``.
        full: Whether to decode them; False reads their headers.
    """

    dataset: SegmentationDataset
    files: tuple[str, ...]
    full: bool


def open_files(parts: Sequence[Part], full: bool, workers: int, progress: bool) -> list[Finding]:
    """Open every file of all parts, each once, and name those that cannot be used.

    Args:
        parts: The parts.
        full: Whether to decode the files and look at the label ids; False reads headers and compares sizes.
        workers: Number of processes.
        progress: Whether to show a progress bar.

    Returns:
        One finding per damaged file.
    """
    tasks, of = [], []
    seen = set()
    for part in parts:
        for index, sample in enumerate(part.found.samples if part.found else ()):
            files = []
            for name in (*PHOTOGRAPHS, *MAPS):
                # A reference may serve many images, and one image may be in two parts: decode it once.
                key = (name in MAPS and name, getattr(sample, name))
                if key[1] is not None and key not in seen:
                    seen.add(key)
                    files.append(name)
            if files:
                tasks.append(_Task(one_sample(part.found, index), tuple(files), full))
                of.append(part)
    results = in_processes(_open_sample, tasks, workers, chunk=16)
    bar = Bar(results, "decoding files" if full else "opening files", len(tasks), unit="sample", disable=not progress)
    return unique(
        damaged(part, task.dataset.samples[0], getattr(task.dataset.samples[0], name), message)
        for part, task, messages in zip(of, tasks, bar, strict=True)
        for name, message in messages
    )


def _open_sample(task: _Task) -> list[tuple[str, str]]:
    """Names and messages of the files that cannot be used."""
    messages: list[tuple[str, str]] = []
    for name in task.files:
        try:
            _decode(task.dataset, name) if task.full else _open_header(task.dataset, name)
        except UserError as error:
            messages.append((name, str(error)))
    return messages


def _decode(dataset: SegmentationDataset, name: str) -> None:
    if name == "label":
        dataset.label(0, resized=False)
    elif name == "invalid":
        dataset.invalid(0)
    else:
        read_image(getattr(dataset.samples[0], name))


def _open_header(dataset: SegmentationDataset, name: str) -> None:
    sample = dataset.samples[0]
    path = getattr(sample, name)
    size = image_size(path)
    if name in MAPS and size != image_size(sample.image):
        height, width = image_size(sample.image)
        raise UserError(
            f"{path} is {size[0]} x {size[1]} (height x width), its image {sample.image} is {height} x {width}; take "
            "both from the same release"
        )
