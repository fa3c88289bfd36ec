"""Zip files that the servers of Dark Zurich and ACDC take, checked against their rules before they exist."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2
import numpy as np

from icda.data.base import DRIVE_FRAME, SegmentationDataset
from icda.data.classes import CITYSCAPES, ClassSet
from icda.data.io import image_size
from icda.errors import UserError
from icda.prediction.outputs import counted, to_uint16, write_picture

LABELS, CONFIDENCE, INVALID = "labelTrainIds", "confidence", "labelTrainIds_invalid"
LAYOUTS = ("flat", "folder")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can tell: two equal submissions are equal bytes


@dataclass(frozen=True)
class Benchmark:
    """What the server of a benchmark takes.

    Args:
        name: Of the benchmark, for messages.
        folders: What is handed in: ``labelTrainIds`` (train ids, uint8), ``confidence`` (65535 times the softmax
            probability of the label, uint16), ``labelTrainIds_invalid`` (train ids, 255 where the network takes
            the pixel for invalid, uint8).
        groups: Number of images by group; None for those that the data set publishes for what was opened of it.
        by_sequence: Whether the groups are the sequences that the file names begin with; else those of the data set.
        size: Height and width of every image.
        classes: Whose train ids are handed in.
    """

    name: str
    folders: tuple[str, ...]
    groups: Mapping[str, int] | None = None
    by_sequence: bool = False
    size: tuple[int, int] = (1080, 1920)
    classes: ClassSet = CITYSCAPES


BENCHMARKS: Mapping[str, Benchmark] = {
    "DarkZurich": Benchmark("Dark Zurich", (LABELS, CONFIDENCE, INVALID), by_sequence=True),  # 151 images
    "ACDC": Benchmark("ACDC", (LABELS,)),  # 500 images for each condition
}
"""By the name of the data set's class."""


def find_benchmark(dataset: SegmentationDataset, benchmarks: Mapping[str, Benchmark] = BENCHMARKS) -> Benchmark:
    """The benchmark whose images a data set holds.

    Raises:
        UserError: If there is none.
    """
    for kind in type(dataset).__mro__:
        if kind.__name__ in benchmarks:
            return benchmarks[kind.__name__]
    known = " or ".join(benchmark.name for benchmark in benchmarks.values())
    raise UserError(f"submission=true, but {dataset.name} has no server; give input=test of {known}")


class Submission:
    """Collects the predictions of a test split and zips them if they are what the server takes.

    Everything that can be known beforehand is checked when it is made: the classes, the number of images, their
    names and sizes. Used in a ``with`` statement, which clears what was collected.

    Args:
        dataset: The test split.
        benchmark: The rules.
        classes: Classes of the network.
        path: Where the zip file goes; an earlier one is removed.
        layout: Of a submission with one folder alone: ``flat`` (files at the top of the zip file) or ``folder``.
        invalid_threshold: Pixels with a lower confidence, 0..1, are handed in as invalid.

    Raises:
        UserError: If no valid submission can come from these images.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        benchmark: Benchmark,
        classes: ClassSet,
        path: Path,
        *,
        layout: str = "flat",
        invalid_threshold: float = 0.0,
    ) -> None:
        path.unlink(missing_ok=True)
        if classes.names != benchmark.classes.names:
            raise UserError(
                f"{benchmark.name} takes the train ids of the classes {benchmark.classes.name}, the network was "
                f"trained for {classes.name}; take a checkpoint that was trained for the former"
            )
        if invalid_threshold > 0 and INVALID not in benchmark.folders:
            raise UserError(f"invalid_threshold is given, but {benchmark.name} takes no invalid pixels; leave it out")
        self.benchmark = benchmark
        self.path = path
        self.invalid_threshold = invalid_threshold
        flat = len(benchmark.folders) == 1 and layout == "flat"
        self.prefixes = {folder: "" if flat else f"{folder}/" for folder in benchmark.folders}
        self.names = _checked_names(dataset, benchmark)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=".submission.", dir=path.parent))

    def __enter__(self) -> Submission:
        return self

    def __exit__(self, *_error: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, index: int, labels: np.ndarray, confidence: np.ndarray) -> None:
        """Collect the prediction for an image. Calls from several threads may overlap.

        Args:
            index: Position of the image in the data set.
            labels: Train ids (H, W) uint8.
            confidence: Softmax probability of each (H, W) float32.
        """
        pictures = {
            LABELS: lambda: labels,
            CONFIDENCE: lambda: to_uint16(confidence),
            INVALID: lambda: np.where(
                confidence < self.invalid_threshold, self.benchmark.classes.ignore_index, labels
            ).astype(np.uint8),
        }
        for folder, prefix in self.prefixes.items():
            write_picture(self._folder / f"{prefix}{self.names[index]}", pictures[folder]())

    def finish(self) -> Path:
        """Zip what was collected, open the zip file again and check it; only then it gets its name.

        Raises:
            UserError: If an image is missing or anything else is not as the server wants it; there is no zip file
                then.
        """
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        files = sorted(path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*.png"))
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
                for name in files:
                    info = zipfile.ZipInfo(name, _EPOCH)
                    info.create_system, info.external_attr = 3, 0o100644 << 16  # the same on every machine
                    archive.writestr(info, (self._folder / name).read_bytes())
            check_submission(temporary, self.benchmark, self.prefixes, self.names)
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return self.path


def check_submission(path: Path, benchmark: Benchmark, prefixes: Mapping[str, str], names: Iterable[str]) -> None:
    """Refuse a zip file that the server of a benchmark would.

    Args:
        path: The zip file.
        benchmark: The rules.
        prefixes: Of the names of each folder's files in the zip file.
        names: Expected names of the files in each folder.

    Raises:
        UserError: If a file is missing or too much, or one is not what its folder holds; the first is named.
    """
    names = set(names)
    _check_frames([PurePath(name) for name in sorted(names)], benchmark)
    expected = {f"{prefix}{name}" for prefix in prefixes.values() for name in names}
    with zipfile.ZipFile(path) as archive:
        found = archive.namelist()
        if len(found) != len(set(found)):
            raise UserError(f"the submission for {benchmark.name} holds a file twice")
        for what, difference in (("lacks", expected - set(found)), ("should not hold", set(found) - expected)):
            if difference:
                raise UserError(
                    f"the submission for {benchmark.name} {what} {counted(len(difference), 'files')}, the "
                    f"first is {min(difference)}; expected in each folder: {counted(len(names), 'images')}"
                )
        for folder, prefix in prefixes.items():
            for name in sorted(names):
                picture = cv2.imdecode(np.frombuffer(archive.read(prefix + name), np.uint8), cv2.IMREAD_UNCHANGED)
                if fault := _fault(picture, folder, benchmark):
                    raise UserError(f"the submission for {benchmark.name}: {prefix}{name} {fault}")


def _fault(picture: np.ndarray | None, folder: str, benchmark: Benchmark) -> str:
    """What is wrong with a picture of a folder; empty if nothing is."""
    if picture is None:
        return "is no picture"
    dtype = np.dtype(np.uint16 if folder == CONFIDENCE else np.uint8)
    if picture.shape != benchmark.size or picture.dtype != dtype:
        shape = " x ".join(map(str, picture.shape))
        wanted = " x ".join(map(str, benchmark.size))
        return f"is {shape} {picture.dtype}, expected one channel of {wanted} (height x width) {dtype}"
    if folder != CONFIDENCE:
        classes = benchmark.classes
        allowed = [*range(len(classes)), *([classes.ignore_index] if folder == INVALID else [])]
        if wrong := sorted(set(np.unique(picture).tolist()) - set(allowed)):
            return f"holds {wrong[0]}, expected the train ids 0 to {len(classes) - 1}"
    return ""


def _checked_names(dataset: SegmentationDataset, benchmark: Benchmark) -> tuple[str, ...]:
    """Names of the files to hand in, those of the images, in the data set's order; refused if the split is wrong."""
    if (split := getattr(dataset, "split", None)) != "test":
        raise UserError(f"{benchmark.name} takes predictions for its test split, {dataset.name} is of split {split}")
    names = tuple(f"{sample.image.stem}.png" for sample in dataset.samples)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{dataset.name} has two images named {twice[0]}; {benchmark.name} takes one folder of all")
    _check_frames([sample.image for sample in dataset.samples], benchmark)
    _check_counts(dataset, benchmark)
    for sample in dataset.samples:
        if (size := image_size(sample.image)) != benchmark.size:
            raise UserError(
                f"{sample.image} is {size[0]} x {size[1]} (height x width), {benchmark.name} takes "
                f"{benchmark.size[0]} x {benchmark.size[1]}; take the official images"
            )
    return names


def _check_frames(files: Iterable[PurePath], benchmark: Benchmark) -> None:
    """Refuse file names that do not begin with a sequence and frame, each with one of its own."""
    seen: dict[str, PurePath] = {}
    for file in files:
        found = DRIVE_FRAME.match(file.name)
        if found is None:
            raise UserError(
                f"{file} does not begin with its sequence and frame, as GOPR0364_frame_000001 does, by which "
                f"{benchmark.name} knows it; keep the official names"
            )
        if (first := seen.setdefault(found[0], file)) is not file:
            raise UserError(
                f"{first} and {file} are of the same frame, of which {benchmark.name} takes one prediction; keep the "
                "official one"
            )


def _check_counts(dataset: SegmentationDataset, benchmark: Benchmark) -> None:
    """Refuse a data set that has other numbers of images, in all or of a group, than the benchmark takes."""
    takes = dataset.published() if benchmark.groups is None else benchmark.groups
    if benchmark.by_sequence:
        has = Counter(DRIVE_FRAME.match(sample.image.name)[1] for sample in dataset.samples)
    else:
        has = Counter(dataset.group_of(sample) for sample in dataset.samples)
    pairs = [("", sum(takes.values()), len(dataset))]
    pairs += [(f" of {group}", takes.get(group, 0), has[group]) for group in sorted({*takes, *has})]
    for group, wanted, found in pairs:
        if wanted != found or not takes:
            raise UserError(
                f"{benchmark.name} takes the predictions for {counted(wanted, 'images')}{group}, {dataset.name} has "
                f"{found}; take the whole official test split with its official names"
            )
