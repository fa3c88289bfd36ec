"""Rare class sampling (method section 8): classes that cover few pixels are drawn more often.

The statistics are those of DAFormer (Hoyer et al., CVPR 2022) and are stored in its three files:

- ``sample_class_stats.json``: ``[{"0": 6389, "13": 651, "file": "gtFine/train/.../x_labelTrainIds.png"}, ...]``
- ``sample_class_stats_dict.json``: ``{"gtFine/train/.../x_labelTrainIds.png": {"0": 6389, "13": 651}, ...}``
- ``samples_with_class.json``: ``{"0": [["gtFine/train/.../x_labelTrainIds.png", 6389], ...], ...}``

Files are written with paths relative to the data set's root; of Cityscapes' two kinds of label files, the one with
train ids is named, as DAFormer expects it. At reading only the ends of the paths count, so files made elsewhere, with
absolute paths or environment variables, can be used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from icda.data.base import SegmentationDataset
from icda.data.prepared import prepared_folder, whole_file
from icda.data.processes import Bar
from icda.errors import UserError

log = logging.getLogger(__name__)

STATS_FILE = "sample_class_stats.json"
STATE_FILE = "label_state.json"
STATS_DICT_FILE = "sample_class_stats_dict.json"
CLASSES_FILE = "samples_with_class.json"

_LABEL_IDS, _TRAIN_IDS = "_labelIds.png", "_labelTrainIds.png"


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """How many pixels of each class each sample has.

    Args:
        counts: Pixels on the full-size labels, (samples, classes) int64, in the order of the data set's samples.
    """

    counts: np.ndarray

    def __post_init__(self) -> None:
        assert self.counts.ndim == 2, self.counts.shape
        assert np.issubdtype(self.counts.dtype, np.integer), self.counts.dtype

    def frequencies(self) -> np.ndarray:
        """Share of each class among the labelled pixels of all samples.

        Returns:
            (classes,) float64 that sum to 1; all 0 if nothing is labelled.
        """
        pixels = self.counts.sum(axis=0).astype(np.float64)
        return pixels / max(pixels.sum(), 1.0)


class RareClassSampler:
    """Draws a class, rare ones more often, and then an image that shows enough of it (method section 8).

    The class is drawn with probability p(c) = softmax((1 - f_c) / temperature), f_c being its share of the labelled
    pixels. A class that no image shows with more than ``min_pixels`` pixels cannot be drawn: its probability is 0 and
    those of the others are the softmax over the others.

    Args:
        stats: Pixel counts of the training set.
        num_classes: Number of classes.
        temperature: Small values favour rare classes, large ones make all classes alike; above 0.
        min_pixels: An image is drawn for a class if it has more pixels of it than this, counted at full size.

    Attributes:
        class_probabilities: (classes,) float64 that sum to 1.

    Raises:
        UserError: If the temperature is not above 0, ``min_pixels`` is below 0, or no class can be drawn.
    """

    def __init__(
        self, stats: ClassStatistics, num_classes: int, temperature: float = 0.01, min_pixels: int = 3000
    ) -> None:
        assert stats.counts.shape[1] == num_classes, (stats.counts.shape, num_classes)
        if not temperature > 0:
            raise UserError(f"rare class sampling: temperature is {temperature}, expected a number above 0")
        if min_pixels < 0:
            raise UserError(f"rare class sampling: min_pixels is {min_pixels}, expected 0 or more")
        self._images = [np.flatnonzero(stats.counts[:, c] > min_pixels) for c in range(num_classes)]
        drawable = np.array([images.size > 0 for images in self._images])
        if not drawable.any():
            raise UserError(
                f"rare class sampling: no image has more than min_pixels={min_pixels} pixels of any class, the "
                f"most are {stats.counts.max(initial=0)}; set min_pixels lower, or switch the sampling off"
            )
        logits = np.where(drawable, (1.0 - stats.frequencies()) / temperature, -np.inf)
        weights = np.exp(logits - logits.max())
        self.class_probabilities = weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw a class, and an image among those that show enough of it, all with the same chance.

        Args:
            rng: Source of randomness.

        Returns:
            Train id of the class and index of the image in the data set.
        """
        class_id = int(rng.choice(self.class_probabilities.size, p=self.class_probabilities))
        images = self._images[class_id]
        return class_id, int(images[rng.integers(images.size)])


def class_statistics(dataset: SegmentationDataset, workers: int = 0, progress: bool = False) -> ClassStatistics:
    """Count the pixels of each class on the full-size labels of a data set.

    Args:
        dataset: A labelled data set.
        workers: Threads that read labels; 0 reads in the calling one.
        progress: Whether to show a progress bar.

    Returns:
        The counts.

    Raises:
        UserError: If a label is missing or cannot be read.
    """
    classes = len(dataset.classes)

    def count(index: int) -> np.ndarray:
        label = dataset.label(index, resized=False)
        return np.bincount(label.ravel(), minlength=classes)[:classes]

    def collect(rows: Iterable[np.ndarray]) -> ClassStatistics:
        bar = Bar(rows, "counting classes", len(dataset), unit="label", disable=not progress)
        return ClassStatistics(np.stack(list(bar)).astype(np.int64))

    if workers < 1:
        return collect(map(count, range(len(dataset))))
    with ThreadPoolExecutor(workers) as pool:  # threads suffice: decoding releases the interpreter lock
        return collect(pool.map(count, range(len(dataset))))


def write_statistics(
    stats: ClassStatistics, dataset: SegmentationDataset, folder: str | Path, state: str | None = None
) -> None:
    """Write the three DAFormer files. Each appears whole or not at all, also if several processes write at once.

    A fourth, ``label_state.json``, tells what the labels were when they were counted. It is the last, so where it
    fits the labels, the others do.

    Args:
        stats: Statistics of ``dataset``.
        dataset: Where the names of the label files come from.
        folder: Folder to write to; made if missing.
        state: ``label_state`` from before the labels were counted; None takes the present one.

    Raises:
        UserError: If the folder cannot be written to.
    """
    assert len(stats.counts) == len(dataset), (len(stats.counts), len(dataset))
    names = [_label_name(dataset, index).replace(_LABEL_IDS, _TRAIN_IDS) for index in range(len(dataset))]
    per_sample: list[dict[str, int | str]] = []
    per_file: dict[str, dict[str, int]] = {}
    per_class: dict[str, list[list[str | int]]] = {}
    for name, row in zip(names, stats.counts.tolist(), strict=True):
        present = {str(c): pixels for c, pixels in enumerate(row) if pixels > 0}
        per_sample.append({**present, "file": name})
        per_file[name] = present
        for c, pixels in present.items():
            per_class.setdefault(c, []).append([name, pixels])
    per_class = dict(sorted(per_class.items(), key=lambda item: int(item[0])))
    folder = Path(folder).expanduser()
    try:
        for file, content in (
            (CLASSES_FILE, per_class),
            (STATS_DICT_FILE, per_file),
            (STATS_FILE, per_sample),
            (STATE_FILE, {"labels": state or label_state(dataset)}),
        ):
            with whole_file(folder / file) as stream:
                stream.write(json.dumps(content).encode())
    except OSError as error:
        raise UserError(
            f"cannot write class statistics to {folder}: {error.strerror}; choose another folder"
        ) from error


def find_statistics(dataset: SegmentationDataset, prepared_dir: str | Path) -> ClassStatistics | None:
    """Read what DAFormer or ``scripts/prepare.py`` counted: from the data set's root, else from ``prepared_dir``.

    What does not fit the data set as it is now is passed over, which is logged.

    Args:
        dataset: A labelled data set.
        prepared_dir: The configuration's ``prepared_dir``; it need not exist.

    Returns:
        The counts, in the order of the data set's samples; None if there are none that fit.
    """
    if (dataset.root / STATS_FILE).is_file():
        try:
            return read_statistics(dataset, dataset.root)
        except UserError as error:
            log.info("class statistics in the data set's folder are not used: %s", error)
    folder = prepared_folder(prepared_dir, dataset.name, dataset.root)
    if not (folder / STATS_FILE).is_file():
        return None
    try:
        return read_prepared_statistics(dataset, folder)
    except UserError as error:
        log.info("prepared class statistics are not used, scripts/prepare.py counts anew: %s", error)
        return None


def read_prepared_statistics(dataset: SegmentationDataset, folder: Path) -> ClassStatistics:
    """Read what ``write_statistics`` wrote, provided that the labels are what they were, and mean the same.

    Args:
        dataset: The data set that the files must describe.
        folder: Folder that holds the files.

    Raises:
        UserError: See ``read_statistics``; also if a label file, the classes or the meaning of ids have changed.
    """
    if _read_json(folder / STATE_FILE) != {"labels": label_state(dataset)}:
        reason = "its label files, or what the ids in them mean, are not those that were counted"
        raise _misfit(folder / STATS_FILE, dataset, reason)
    return read_statistics(dataset, folder)


def label_state(dataset: SegmentationDataset) -> str:
    """A digest of what counts depend on: each label's place, size and time of change, and the meaning of its ids.

    Args:
        dataset: A labelled data set; its labels are not read.
    """
    digest = hashlib.sha256()
    for index, sample in enumerate(dataset.samples):
        size, changed = size_and_time(sample.label)
        line = f"{_label_name(dataset, index)}\0{size}\0{changed}\0{dataset.label_kind(sample)}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of change in nanoseconds; 0 of a broken link, which is told when it is read.

    Args:
        path: Any file.
    """
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def read_statistics(dataset: SegmentationDataset, folder: str | Path) -> ClassStatistics:
    """Read the DAFormer files of a data set.

    ``samples_with_class.json`` holds nothing new; where it exists, it must agree.

    Args:
        dataset: The data set that the files must describe, no file more and no file less.
        folder: Folder that holds the files.

    Returns:
        The counts, in the order of the data set's samples.

    Raises:
        UserError: If a file is missing or damaged, or describes other labels than the data set's.
    """
    path = Path(folder).expanduser() / STATS_FILE
    entries = _read_json(path)
    if not isinstance(entries, list):
        raise _damaged(path, "expected a list with one entry per label file")
    find = _LabelFinder(dataset, path)
    counts = np.full((len(dataset), len(dataset.classes)), -1, np.int64)
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise _damaged(path, f"entry {str(entry)[:80]} names no file")
        index = find(entry["file"])
        if counts[index, 0] >= 0:
            raise _damaged(path, f"{entry['file']} occurs twice")
        counts[index] = 0
        for key, pixels in entry.items():
            if key != "file":
                counts[index, find.class_id(key)] = find.pixels(pixels)
    missing = np.flatnonzero(counts[:, 0] < 0)
    if missing.size:
        raise _misfit(
            path, dataset, f"{missing.size} labels are not in it, the first is {_label_name(dataset, missing[0])}"
        )
    _check_classes_file(path.with_name(CLASSES_FILE), dataset, counts)
    return ClassStatistics(counts)


class _LabelFinder:
    """Index of the sample that a path in a statistics file means: equal file name, then most equal folders."""

    def __init__(self, dataset: SegmentationDataset, path: Path) -> None:
        self._dataset = dataset
        self._path = path
        self._candidates: dict[str, list[int]] = defaultdict(list)
        self._parts = [_parts(_label_name(dataset, index)) for index in range(len(dataset))]
        for index, parts in enumerate(self._parts):
            self._candidates[parts[0]].append(index)

    def __call__(self, file: str) -> int:
        parts = _parts(os.path.expandvars(file))
        candidates = self._candidates.get(parts[0], [])
        if len(candidates) > 1:
            agreement = [_equal_parts(parts, self._parts[i]) for i in candidates]
            candidates = [i for i, a in zip(candidates, agreement, strict=True) if a == max(agreement)]
        if len(candidates) != 1:
            raise _misfit(self._path, self._dataset, f"it names {file}, which fits {len(candidates)} of its labels")
        return candidates[0]

    def class_id(self, key: str) -> int:
        if not key.isdecimal() or int(key) >= len(self._dataset.classes):
            raise _misfit(self._path, self._dataset, f"it counts pixels of class {key!r}")
        return int(key)

    def pixels(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _damaged(self._path, f"{value!r} is no number of pixels")
        return value


def _check_classes_file(path: Path, dataset: SegmentationDataset, counts: np.ndarray) -> None:
    if not path.is_file():
        return
    table = _read_json(path)
    find = _LabelFinder(dataset, path)
    again = np.zeros_like(counts)
    try:
        for key, files in table.items():
            for file, pixels in files:
                again[find(file), find.class_id(key)] = find.pixels(pixels)
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(path, "expected lists of [file, pixels] by class") from error
    if not np.array_equal(again, counts):
        raise _damaged(path, f"it does not agree with {STATS_FILE}")


def _label_name(dataset: SegmentationDataset, index: int) -> str:
    """Label file of a sample relative to the data set's root, with ``/``."""
    label = dataset.samples[index].label
    if label is None:
        raise UserError(f"{dataset.name} has no labels; rare class sampling needs a labelled data set")
    return (label.relative_to(dataset.root) if label.is_relative_to(dataset.root) else label).as_posix()


def _parts(file: str) -> tuple[str, ...]:
    """Parts of a label path, the last first; Cityscapes' two kinds of label files count as one."""
    path = file.replace("\\", "/").replace(_LABEL_IDS, _TRAIN_IDS)
    return tuple(reversed(path.split("/")))


def _equal_parts(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Number of parts in which two paths agree before they first differ."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"class statistics {path} do not exist; have them counted first") from error
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"class statistics {path} cannot be used: {reason}; delete the file to have it made anew")


def _misfit(path: Path, dataset: SegmentationDataset, reason: str) -> UserError:
    return UserError(
        f"class statistics {path} belong to another data set than {dataset.name} in {dataset.root} "
        f"({len(dataset)} labels): {reason}; delete the file to have it made anew, or name another folder"
    )
