"""The demo data: two small made-up data sets on disk, laid out like Cityscapes and Dark Zurich.

Drawn from a seed, so that the toolkit can be tried without a download. The same adapters read demo and real data.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from icda.data.classes import CITYSCAPES
from icda.data.demo.scene import source_sample, target_sample
from icda.data.processes import Bar, in_processes
from icda.errors import UserError

FORMAT_VERSION = 1
MARKER = "demo.json"
STALE_AFTER = 3600.0
"""Seconds after which the temporary folder of an interrupted run may be removed; a run takes about a minute."""
SMALLEST = (32, 64)
CITIES = {"train": ("ahausen", "bedorf", "cestadt"), "val": ("dewitz",)}
SEQUENCES = {"train/night": "GOPR0902", "train/day": "GOPR0901", "val": "GOPR0903", "test": "GOPR0904"}


@dataclass(frozen=True)
class DemoCounts:
    """Number of pictures per part; each target picture comes with its day reference."""

    source_train: int = 200
    source_val: int = 10
    target_train: int = 120
    target_val: int = 50
    target_test: int = 6


class _Task(NamedTuple):
    part: str
    index: int


def make_demo(
    root: Path,
    *,
    seed: int = 0,
    counts: DemoCounts | None = None,
    size: tuple[int, int] = (256, 512),
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make the demo data once; a complete folder with the same settings is returned at once.

    The data are written to a folder beside ``root`` and renamed at the end, so that ``root`` is either whole or
    absent, also when several processes make it at the same time.

    Args:
        root: Folder to make; it will hold ``Cityscapes``, ``DarkZurich`` and the marker ``demo.json``.
        seed: The same seed gives the same bytes, whatever the number of workers.
        counts: Number of pictures per part; None for the defaults of ``DemoCounts``.
        size: Picture (height, width) in pixels.
        workers: Number of processes; None for the number of CPUs this process may use, 8 at most.
        progress: Whether to show a progress bar.

    Returns:
        ``root``.

    Raises:
        UserError: If an argument is out of range, if ``root`` is something else or was made with other settings,
            or if it cannot be written.
    """
    root, counts = Path(root), counts or DemoCounts()
    _check_arguments(seed, counts, size, workers)
    record = {"format": FORMAT_VERSION, "seed": seed, "counts": asdict(counts), "size": list(size)}
    if _is_complete(root, record):
        return root
    try:
        making = _temporary_folder(root.absolute())
        try:
            _write_all(making, seed, counts, size, workers or _default_workers(), progress)
            (making / MARKER).write_text(json.dumps(record, indent=1) + "\n")
            _move_into_place(making, root, record)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"Cannot write the demo data to {root}: {error}. Choose a folder you may write to, with free space."
        ) from error
    return root


def make_demo_with_night_labels(
    root: Path,
    *,
    seed: int = 0,
    counts: DemoCounts | None = None,
    size: tuple[int, int] = (256, 512),
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make the demo data, and labels of its training nights, which Dark Zurich has none of.

    They are for a run that is allowed to see them, and for choosing settings. All other files are those of
    ``make_demo``; data that it made earlier get the labels added, in ``DarkZurich/gt/train``, all or none.

    Args:
        root: See ``make_demo``.
        seed: See ``make_demo``.
        counts: See ``make_demo``.
        size: See ``make_demo``.
        workers: See ``make_demo``.
        progress: See ``make_demo``.

    Returns:
        ``root``.

    Raises:
        UserError: See ``make_demo``.
    """
    counts = counts or DemoCounts()
    root = make_demo(root, seed=seed, counts=counts, size=size, workers=workers, progress=progress)
    labels = root / "DarkZurich" / "gt" / "train"
    if labels.is_dir():
        return root
    try:
        tasks = [_Task("target_train", index) for index in range(counts.target_train)]
        _add_night_labels(labels, seed, size, tasks, workers or _default_workers(), progress)
    except OSError as error:
        raise UserError(
            f"Cannot write labels to {labels}: {error}. Choose a folder you may write to, with free space."
        ) from error
    return root


def _add_night_labels(
    labels: Path, seed: int, size: tuple[int, int], tasks: list[_Task], workers: int, progress: bool
) -> None:
    """Write the labels of training nights into another folder, and give it its name at the end."""
    making = _temporary_folder(labels.absolute())
    try:
        for folder in {_night_label(making, task).parent for task in tasks}:
            folder.mkdir(parents=True)
        done = in_processes(partial(_write_night_label, making, seed, size), tasks, workers)
        list(Bar(done, total=len(tasks), desc="Drawing night labels", unit="scene", disable=not progress))
        try:
            making.rename(labels)
        except OSError:
            if not labels.is_dir():  # another process was faster: its labels are the same
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _temporary_folder(root: Path) -> Path:
    """Make a folder beside ``root`` that no other process uses."""
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    making = root.with_name(f".{root.name}.making-{secrets.token_hex(6)}")
    making.mkdir()
    return making


def _check_arguments(seed: int, counts: DemoCounts, size: tuple[int, int], workers: int | None) -> None:
    if seed < 0:
        raise UserError(f"The demo's seed is {seed}; it must be 0 or more.")
    for field in fields(counts):
        if getattr(counts, field.name) < 1:
            raise UserError(f"The demo's {field.name} is {getattr(counts, field.name)}; it must be 1 or more.")
    if size[0] < SMALLEST[0] or size[1] < SMALLEST[1]:
        raise UserError(f"The demo's size (height, width) is {tuple(size)}; it must be at least {SMALLEST}.")
    if workers is not None and workers < 1:
        raise UserError(f"The demo's number of workers is {workers}; it must be 1 or more.")


def _default_workers() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


def _is_complete(root: Path, record: dict[str, object]) -> bool:
    """Whether ``root`` holds the data of ``record``; False if there is nothing there.

    Raises:
        UserError: If ``root`` holds something else.
    """
    marker = root / MARKER
    try:
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        if not marker.is_file():
            raise UserError(
                f"{root} exists but is not demo data: it has no {MARKER}. "
                "Choose another folder, or remove it yourself."
            )
        found = json.loads(marker.read_text())
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"Cannot read the demo data in {root}: {error}. Choose another folder.") from error
    if found != record:
        raise UserError(
            f"{root} holds demo data made with other settings: found {json.dumps(found)}, "
            f"asked for {json.dumps(record)}. Choose another folder, or remove this one to make it anew."
        )
    return True


def _remove_stale(root: Path) -> None:
    """Remove what interrupted runs left; folders that another process may still be writing are kept."""
    for folder in root.parent.glob(f".{root.name}.making-*"):
        try:
            newest = max(path.stat().st_mtime for path in (folder, *folder.glob("*/*")))
        except FileNotFoundError:  # its own process renamed it meanwhile
            continue
        if time.time() - newest > STALE_AFTER:
            shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(making: Path, root: Path, record: dict[str, object]) -> None:
    try:
        making.rename(root)
    except OSError:
        # Another process was faster: its data are as good if they have the same record.
        if not _is_complete(root, record):
            raise


def _write_all(
    root: Path, seed: int, counts: DemoCounts, size: tuple[int, int], workers: int, progress: bool
) -> None:
    tasks = [_Task(field.name, index) for field in fields(counts) for index in range(getattr(counts, field.name))]
    for folder in {path.parent for task in tasks for path in _paths(root, task)}:
        folder.mkdir(parents=True, exist_ok=True)
    found = in_processes(partial(_write_task, root, seed, size), tasks, workers)
    stats = list(Bar(found, total=len(tasks), desc="Drawing demo data", unit="scene", disable=not progress))
    labels = {task: stat for task, stat in zip(tasks, stats, strict=True) if task.part == "source_train"}
    _write_class_statistics(root / "Cityscapes", labels)
    _write_lists(root / "DarkZurich", counts)


def _write_task(root: Path, seed: int, size: tuple[int, int], task: _Task) -> dict[str, int]:
    """Draw and write one scene; return the pixels of every class in its label."""
    rng = _rng(seed, task)
    if task.part.startswith("source"):
        image, label = source_sample(rng, size)
        pictures = [image, label]
    else:
        night, label, day = target_sample(rng, size)
        pictures = [night, day, label]
    # The target's labels exist for validation only, so the last picture may have no path.
    for path, picture in zip(_paths(root, task), pictures, strict=False):
        _write_png(path, picture)
    pixels = np.bincount(label.ravel(), minlength=len(CITYSCAPES))[: len(CITYSCAPES)]
    return {str(index): int(count) for index, count in enumerate(pixels) if count}


def _rng(seed: int, task: _Task) -> np.random.Generator:
    part = [field.name for field in fields(DemoCounts)].index(task.part)
    return np.random.default_rng([seed, part, task.index])


def _write_night_label(folder: Path, seed: int, size: tuple[int, int], task: _Task) -> None:
    """Draw one scene of the target again, and write its label."""
    _, label, _ = target_sample(_rng(seed, task), size)
    _write_png(_night_label(folder, task), label)


def _night_label(folder: Path, task: _Task) -> Path:
    """Where the label of a training night goes, below the folder of such labels."""
    night = _keys("train", task.index)[0].removeprefix("train/")
    return folder / f"{night}_gt_labelTrainIds.png"


def _write_png(path: Path, picture: np.ndarray) -> None:
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if picture.ndim == 3:
        picture = picture[..., ::-1]
        # Nothing repeats in a noisy picture, so looking for repetitions only costs time.
        options += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    done, data = cv2.imencode(".png", picture, options)
    assert done, path
    path.write_bytes(data.tobytes())


def _paths(root: Path, task: _Task) -> list[Path]:
    """Where the pictures of a task go: image and label, or night image, its day reference and perhaps its label."""
    domain, split = task.part.split("_")
    if domain == "source":
        city = CITIES[split][task.index % len(CITIES[split])]
        stem = f"{city}_{task.index // len(CITIES[split]):06d}_000019"
        base = root / "Cityscapes"
        return [
            base / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
            base / "gtFine" / split / city / f"{stem}_gtFine_labelTrainIds.png",
        ]
    base = root / "DarkZurich"
    night, day = _keys(split, task.index)
    paths = [base / "rgb_anon" / f"{key}_rgb_anon.png" for key in (night, day)]
    return [*paths, base / "gt" / f"{night}_gt_labelTrainIds.png"] if split == "val" else paths


def _keys(split: str, index: int) -> tuple[str, str]:
    """Dark Zurich's keys of a night picture and of its day reference."""
    if split == "train":
        night, day = SEQUENCES["train/night"], SEQUENCES["train/day"]
        # The two drives number their frames apart: only the list of correspondences pairs them.
        return (
            f"train/night/{night}/{night}_frame_{index + 1:06d}",
            f"train/day/{day}/{day}_frame_{3 * index + 101:06d}",
        )
    name = SEQUENCES[split]
    frame = f"{name}_frame_{index + 1:06d}"
    return f"{split}/night/{name}/{frame}", f"{split}_ref/day/{name}_ref/{frame}_ref"


def _write_class_statistics(root: Path, stats: dict[_Task, dict[str, int]]) -> None:
    """Write DAFormer's two files for rare class sampling; paths are relative to the Cityscapes root."""
    files = {task: _paths(root.parent, task)[1].relative_to(root).as_posix() for task in stats}
    samples: dict[str, list[tuple[str, int]]] = {str(index): [] for index in range(len(CITYSCAPES))}
    for task, pixels in stats.items():
        for index, count in pixels.items():
            samples[index].append((files[task], count))
    per_sample = [{**pixels, "file": files[task]} for task, pixels in stats.items()]
    (root / "sample_class_stats.json").write_text(json.dumps(per_sample, indent=1))
    (root / "samples_with_class.json").write_text(json.dumps({k: v for k, v in samples.items() if v}, indent=1))


def _write_lists(root: Path, counts: DemoCounts) -> None:
    folder = root / "lists_file_names"
    folder.mkdir(parents=True, exist_ok=True)

    def write(path: Path, lines: Iterable[str]) -> None:
        path.write_text("".join(f"{line}\n" for line in lines))

    for split, names in (
        ("train", ("train_night", "train_day")),
        ("val", ("val", "val_ref")),
        ("test", ("test", "test_ref")),
    ):
        pairs = [_keys(split, index) for index in range(getattr(counts, f"target_{split}"))]
        for name, keys in zip(names, zip(*pairs, strict=True), strict=True):
            write(folder / f"{name}_filenames.txt", keys)
        if split == "train":
            sequence = SEQUENCES["train/night"]
            correspondences = root / "corresp" / "train" / "night" / sequence / f"{sequence}_ref_day.csv"
            correspondences.parent.mkdir(parents=True, exist_ok=True)
            write(correspondences, (f"{night},{day}" for night, day in pairs))
