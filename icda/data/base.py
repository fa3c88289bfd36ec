"""What every data set offers: a sorted tuple of samples, and images and label maps by index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from icda.data.classes import ClassSet
from icda.data.io import image_size, read_image, read_label, resize_image, resize_label
from icda.errors import UserError


@dataclass(frozen=True)
class Sample:
    """The files of one sample.

    Args:
        key: Path of the image inside its split, without ending: ``night/GOPR0356/GOPR0356_frame_000321``.
        image: The image file.
        label: The label file; None if the sample has none, or it is not to be read.
        reference: The day image of the same place; None if there is none.
    """

    key: str
    image: Path
    label: Path | None = None
    reference: Path | None = None


class SegmentationDataset:
    """Base of all data sets. Everything about the files is checked here, when it is made, not in a worker.

    Args:
        name: Name and split, for messages.
        classes: The label space.
        root: Folder of the data set; paths in statistics files are relative to it.
        samples: The samples in the order of their keys.
        size: Height and width that images and labels are resized to at reading; None keeps their own.

    Raises:
        UserError: If there are no samples or the size is not two positive numbers.
    """

    TREE: ClassVar[str] = "<folder>/<image>"
    """One line: the folders and files that the data set is made of."""
    PACKAGES: ClassVar[tuple[str, ...]] = ()
    """Folder names below the root that an unzip program may have put the tree into."""

    def __init__(
        self,
        name: str,
        classes: ClassSet,
        root: str | Path,
        samples: Sequence[Sample],
        size: Sequence[int] | None = None,
    ) -> None:
        self.name = name
        self.classes = classes
        self.root = Path(root).expanduser()
        self.samples = tuple(samples)
        self.size = _checked_size(name, size)
        if not self.samples:
            raise UserError(f"{name}: no images found in {self.root}; expected {self.TREE}")

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, index: int) -> np.ndarray:
        """Read an image.

        Args:
            index: Position in ``samples``.

        Returns:
            RGB image, (H, W, 3) uint8; ``size`` if that is set, else the file's own size.

        Raises:
            UserError: If the file cannot be read.
        """
        return resize_image(read_image(self.samples[index].image), self.size)

    def label(self, index: int, resized: bool = True) -> np.ndarray:
        """Read a label map.

        Args:
            index: Position in ``samples``.
            resized: Whether to resize to ``size`` (training); False keeps the label's own size (evaluation).

        Returns:
            Train ids, (H, W) uint8: 0 .. len(classes) - 1 and ``classes.ignore_index``.

        Raises:
            UserError: If the sample has no label, the file cannot be read, holds wrong ids, or differs in size
                from its image.
        """
        sample = self.samples[index]
        if sample.label is None:
            raise UserError(f"{self.name}: no label for {sample.image}; this split has none or labelled=false is set")
        label = read_label(sample.label, self.classes, self._label_mapping(sample.label))
        expected = image_size(sample.image)
        if label.shape != expected:
            raise UserError(
                f"{self.name}: sizes differ (height x width): label {sample.label} is {label.shape[0]} x "
                f"{label.shape[1]}, its image {sample.image} is {expected[0]} x {expected[1]}; take both from the "
                "same release"
            )
        return resize_label(label, self.size) if resized else label

    def reference(self, index: int) -> np.ndarray:
        """Read the day reference of a night image.

        Args:
            index: Position in ``samples``.

        Returns:
            RGB image, (H, W, 3) uint8, of the same size as ``image(index)``.

        Raises:
            UserError: If the sample has no reference or the file cannot be read.
        """
        sample = self.samples[index]
        if sample.reference is None:
            raise UserError(
                f"{self.name}: no day reference for {sample.image}; give dataset.reference=enhanced to have it made"
            )
        return self._read_like(sample.reference, sample)

    def _read_like(self, path: Path, sample: Sample) -> np.ndarray:
        """Another image of the sample's scene, (H, W, 3) uint8, of the same size as the sample's image."""
        return resize_image(read_image(path), self.size or image_size(sample.image))

    def _label_mapping(self, path: Path) -> np.ndarray | None:
        """Train id of every id in a label file, (256,) uint8; None if the file holds train ids."""
        return None

    @classmethod
    def _find(cls, name: str, root: str | Path, folder: str, hint: str = "") -> Path:
        """The folder below the root, in place or inside one of ``PACKAGES``; ``UserError`` if there is none."""
        root = Path(root).expanduser()
        for candidate in (root, *(root / package for package in cls.PACKAGES)):
            if (candidate / folder).is_dir():
                return candidate / folder
        if not root.is_dir():
            raise UserError(f"{name}: no folder {root}; check data_dir, {root} should hold {cls.TREE}")
        raise UserError(f"{name}: no folder {root / folder}; expected {cls.TREE} in {root}. {hint}")


def list_files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """All files below a folder with one of the endings, sorted, in one walk. Hidden files are left out.

    Args:
        folder: Where to look.
        endings: Ends of file names, such as ``_leftImg8bit.png``; upper and lower case are the same.

    Returns:
        Path of each file by its key: the path relative to the folder, with ``/``, without the ending.

    Raises:
        UserError: If two files have the same key.
    """
    endings = tuple(ending.lower() for ending in endings)
    found: dict[str, Path] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        parent = Path(parent)
        prefix = "" if parent == folder else parent.relative_to(folder).as_posix() + "/"
        for name in names:
            ending = next((e for e in endings if name.lower().endswith(e)), None)
            if ending is None or name.startswith("."):  # ._x.png: what macOS leaves in archives
                continue
            key = prefix + name[: len(name) - len(ending)]
            if key in found:
                raise UserError(f"two files for one sample: {found[key]} and {parent / name}; remove one of them")
            found[key] = parent / name
    return dict(sorted(found.items()))


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Refuse a split that the data set does not have.

    Args:
        name: Name of the data set, for the message.
        split: The split asked for.
        splits: The splits there are.

    Raises:
        UserError: If ``split`` is not in ``splits``.
    """
    if split not in splits:
        raise UserError(f"{name}: no split {split!r}; choose one of {', '.join(splits)}")


def check_complete(name: str, what: str, images: dict[str, Path], others: dict[str, Path], expected: str) -> None:
    """Refuse a listing in which an image lacks its companion file.

    Args:
        name: Name of the data set, for the message.
        what: What the companions are, for example "label".
        images: Image files by key.
        others: Companion files by key.
        expected: Where the companions should be.

    Raises:
        UserError: With the number of images without companion and the first of them.
    """
    missing = [path for key, path in images.items() if key not in others]
    if missing:
        raise UserError(
            f"{name}: {len(missing)} of {len(images)} images have no {what}, the first is {missing[0]}; "
            f"expected {expected}"
        )


def _checked_size(name: str, size: Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    values = () if isinstance(size, int | str) else tuple(size)
    if len(values) != 2 or not all(isinstance(value, int) and value > 0 for value in values):
        raise UserError(f"{name}: size is {size}, expected height and width in pixels, such as [512, 1024]")
    return values
