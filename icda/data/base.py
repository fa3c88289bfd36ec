"""What every data set offers: a sorted tuple of samples, and images and label maps by index."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from icda.data.classes import ClassSet
from icda.data.files import list_files
from icda.data.io import (
    IMAGE_ENDINGS,
    image_size,
    read_image,
    read_invalid,
    read_label,
    resize_image,
    resize_label,
)
from icda.errors import UserError

if TYPE_CHECKING:
    from icda.data.cache import ImageCache

DRIVE_FRAME = re.compile(r"(GOPR\d{4}|GP\d{6})_frame_(\d{6})(?!\d)")
"""Sequence and frame in the file names of Dark Zurich and ACDC, which come from the same drives."""

OnRead = Callable[[Path], None]


@dataclass(frozen=True)
class Sample:
    """The files of one sample.

    Args:
        key: Path of the image inside its split, without ending: ``night/GOPR0356/GOPR0356_frame_000321``.
        image: The image file.
        label: The label file; None if the sample has none, or it is not to be read.
        reference: The day image of the same place; None if there is none.
        invalid: The mask of pixels that even people cannot make out; None if there is none.
        translation: The image made night-like beforehand; None if there is none.
    """

    key: str
    image: Path
    label: Path | None = None
    reference: Path | None = None
    invalid: Path | None = None
    translation: Path | None = None


@dataclass(frozen=True)
class Count:
    """How many there are of something, and how many its publication names.

    Args:
        what: What was counted, such as "images of aachen".
        found: How many there are.
        published: How many there should be; None if that is not known.
        companion: Name in ``Sample`` of the companion that was counted; None for anything else.
    """

    what: str
    found: int
    published: int | None = None
    companion: str | None = None


class SegmentationDataset:
    """Base of all data sets. Everything about the files is checked here, when it is made, not in a worker.

    Args:
        name: Name and split, for messages.
        classes: The label space.
        root: Folder of the data set; paths in statistics files are relative to it.
        samples: The samples in the order of their keys.
        size: Height and width that images and labels are resized to at reading; None keeps their own.
        expected: Where the file of each companion that all samples must have is expected, by the name of the
            companion in ``Sample``: ``{"label": "gtFine/train/<city>/*_gtFine_labelIds.png"}``.
        strays: Companion files that belong to no image; they are left aside.
        translations: Folder of night-like versions of the images: laid out as the data set itself, or flat with
            the names that CycleGAN's test script writes (``<image name>_fake_B.png``); None if there are none.
        check: Whether a sample that lacks a companion is refused; False to look through ``missing`` instead.

    Attributes:
        cache: Where images and labels at ``size`` may have been stored; None reads the files themselves.
        on_read: Called with each file before it is opened; None calls nothing. A subclass that reads is to call it.
        left_out: Number of samples that ``keep`` left out.
        remarks: What a person should know about how the samples were chosen, a line each.

    Raises:
        UserError: If there are no samples, one lacks a companion, or the size is not two positive numbers.
    """

    TREE: ClassVar[str] = "<folder>/<image>"
    """One line: the folders and files that the data set is made of."""
    PACKAGES: ClassVar[tuple[str, ...]] = ()
    """Folder names below the root that an unzip program may have put the tree into."""
    HAS_DRIVE_FRAMES: ClassVar[bool] = False
    """Whether file names tell the drive and frame of Dark Zurich and ACDC (``DRIVE_FRAME``)."""

    on_read: OnRead | None = None  # here, so that a subclass has it however it is made

    def __init__(
        self,
        name: str,
        classes: ClassSet,
        root: str | Path,
        samples: Sequence[Sample],
        size: Sequence[int] | None = None,
        *,
        expected: Mapping[str, str] | None = None,
        strays: Iterable[Path] = (),
        translations: str | Path | None = None,
        check: bool = True,
    ) -> None:
        self.name = name
        self.classes = classes
        self.root = Path(root).expanduser()
        self.samples = tuple(samples)
        self.size = _checked_size(name, size)
        self.expected = dict(expected or {})
        self.strays = tuple(strays)
        self.cache: ImageCache | None = None
        self.left_out = 0
        self.remarks: tuple[str, ...] = ()
        if not self.samples:
            raise UserError(f"{name}: no images found in {self.root}; expected {self.TREE}")
        if translations is not None:
            self._find_translations(Path(translations).expanduser())
        if check:
            self._check_complete()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def missing(self) -> dict[str, list[Sample]]:
        """The samples that lack a companion which all should have, by the companion's name in ``Sample``."""
        lacking = {name: [s for s in self.samples if getattr(s, name) is None] for name in self.expected}
        return {name: samples for name, samples in lacking.items() if samples}

    def counts(self) -> list[Count]:
        """How much there is of everything, beside what the publication of the data set names."""
        published = self.published()
        groups = dict.fromkeys(published, 0)
        for sample in self.samples:
            group = self.group_of(sample)
            groups[group] = groups.get(group, 0) + 1
        counts = [Count("images", len(self.samples), sum(published.values()) if published else None)]
        if len(groups) > 1:
            counts += [
                Count(f"images of {g}", n, published.get(g, 0 if published else None)) for g, n in groups.items()
            ]
        for name in self.expected:
            found = sum(getattr(sample, name) is not None for sample in self.samples)
            counts.append(Count(f"{title(name)}s", found, companion=name))
        return counts

    def published(self) -> dict[str, int]:
        """Number of images of this split by group (see ``group_of``), as published; empty if not known."""
        return {}

    def group_of(self, sample: Sample) -> str:
        """The group that a sample is counted in, such as its city; the same for all if there are no groups."""
        return ""

    def drive_frame(self, sample: Sample) -> str | None:
        """Drive and frame of a sample, such as ``GOPR0356_frame_000321``; None if its name does not tell them."""
        found = DRIVE_FRAME.search(sample.image.name) if self.HAS_DRIVE_FRAMES else None
        return found and found[0]

    def keep(self, samples: Sequence[Sample]) -> None:
        """Leave out all samples but these.

        Raises:
            UserError: If there are none.
        """
        if not samples:
            raise UserError(f"{self.name}: no images are left of {len(self.samples)}")
        self.left_out += len(self.samples) - len(samples)
        self.samples = tuple(samples)

    def image(self, index: int) -> np.ndarray:
        """Read an image.

        Args:
            index: Position in ``samples``.

        Returns:
            RGB image, (H, W, 3) uint8; ``size`` if that is set, else the file's own size. It may be read-only.

        Raises:
            UserError: If the file cannot be read.
        """
        return self._read(self.samples[index].image, self.size)

    def label(self, index: int, resized: bool = True) -> np.ndarray:
        """Read a label map.

        Args:
            index: Position in ``samples``.
            resized: Whether to resize to ``size`` (training); False keeps the label's own size (evaluation).

        Returns:
            Train ids, (H, W) uint8: 0 .. len(classes) - 1 and ``classes.ignore_index``. It may be read-only.

        Raises:
            UserError: If the sample has no label, the file cannot be read, holds wrong ids, or differs in size
                from its image.
        """
        sample = self.samples[index]
        if sample.label is None:
            raise UserError(f"{self.name}: no label for {sample.image}; this split has none or labelled=false is set")
        self._opening(sample.label)
        if resized and self.size is not None and self.cache is not None:
            return self.cache.get(
                sample.label, self.size, self.label_kind(sample), lambda: self._read_label(sample, True)
            )
        return self._read_label(sample, resized)

    def label_kind(self, sample: Sample) -> str:
        """A word that changes with the meaning of the ids in a label file; the cache is keyed by it."""
        mapping = self._label_mapping(sample.label)
        meaning = f"{self.classes.names}{self.classes.ignore_index}".encode()
        return f"label-{zlib.crc32(b'' if mapping is None else mapping.tobytes(), zlib.crc32(meaning)):08x}"

    def _read_label(self, sample: Sample, resized: bool) -> np.ndarray:
        label = read_label(sample.label, self.classes, self._label_mapping(sample.label))
        self._check_same_size(sample, "label", sample.label, label)
        return resize_label(label, self.size) if resized else label

    def _check_same_size(self, sample: Sample, what: str, path: Path, array: np.ndarray) -> None:
        expected = self._image_size(sample)
        if array.shape != expected:
            raise UserError(
                f"{self.name}: sizes differ (height x width): {what} {path} is {array.shape[0]} x "
                f"{array.shape[1]}, its image {sample.image} is {expected[0]} x {expected[1]}; take both from the "
                "same release"
            )

    def reference(self, index: int) -> np.ndarray:
        """Read the day reference of a night image.

        Args:
            index: Position in ``samples``.

        Returns:
            RGB image, (H, W, 3) uint8, of the same size as ``image(index)``. It may be read-only.

        Raises:
            UserError: If the sample has no reference or the file cannot be read.
        """
        sample = self.samples[index]
        if sample.reference is None:
            raise UserError(
                f"{self.name}: no day reference for {sample.image}; give dataset.reference=enhanced to have it made"
            )
        return self._read_like(sample.reference, sample)

    def invalid(self, index: int) -> np.ndarray:
        """Read the mask of pixels that people could not make out in the night image alone.

        Args:
            index: Position in ``samples``.

        Returns:
            (H, W) bool at the file's own size; True where invalid.

        Raises:
            UserError: If the sample has no mask, or the file cannot be read or differs in size from its image.
        """
        sample = self.samples[index]
        if sample.invalid is None:
            raise UserError(f"{self.name}: no invalid mask for {sample.image}; this split has none")
        self._opening(sample.invalid)
        mask = read_invalid(sample.invalid)
        self._check_same_size(sample, "invalid mask", sample.invalid, mask)
        return mask

    def translation(self, index: int) -> np.ndarray:
        """Read the night translation of an image (method section 2).

        Args:
            index: Position in ``samples``.

        Returns:
            RGB image, (H, W, 3) uint8, of the same size as ``image(index)``. It may be read-only.

        Raises:
            UserError: If the sample has no translation or the file cannot be read.
        """
        sample = self.samples[index]
        if sample.translation is None:
            raise UserError(f"{self.name}: no translation for {sample.image}; make them with scripts/translate.py")
        return self._read_like(sample.translation, sample)

    def place(self, sample: Sample) -> PurePath:
        """Where a sample's image stands in the data set's own tree, package folders left out."""
        for base in (*(self.root / package for package in self.PACKAGES), self.root):
            if sample.image.is_relative_to(base):
                return sample.image.relative_to(base)
        return PurePath(sample.image.name)

    def _read(self, path: Path, size: tuple[int, int] | None) -> np.ndarray:
        """An image (H, W, 3) uint8 at a size, from the cache where it lies there."""

        def read() -> np.ndarray:
            return resize_image(read_image(path), size)

        self._opening(path)
        return read() if size is None or self.cache is None else self.cache.get(path, size, "image", read)

    def _read_like(self, path: Path, sample: Sample) -> np.ndarray:
        """Another image of the sample's scene, (H, W, 3) uint8, of the same size as the sample's image."""
        return self._read(path, self.size or self._image_size(sample))

    def _image_size(self, sample: Sample) -> tuple[int, int]:
        self._opening(sample.image)
        return image_size(sample.image)

    def _opening(self, path: Path) -> None:
        if self.on_read is not None:
            self.on_read(path)

    def _label_mapping(self, path: Path) -> np.ndarray | None:
        """Train id of every id in a label file, (256,) uint8; None if the file holds train ids."""
        return None

    def _find_translations(self, folder: Path) -> None:
        """Give every sample its translation, and ask for one for each."""
        if not folder.is_dir():
            raise UserError(
                f"{self.name}: no folder of translations {folder}; make one with scripts/translate.py, or choose "
                "cem=style or cem=relight"
            )
        found = list_files(folder, IMAGE_ENDINGS)
        flat = {key.rsplit("/", 1)[-1]: path for key, path in found.items() if key.endswith("_fake_B")}
        self.samples = tuple(
            replace(
                sample,
                translation=found.get(self.place(sample).with_suffix("").as_posix())
                or flat.get(f"{sample.image.stem}_fake_B"),
            )
            for sample in self.samples
        )
        first = next((s for s in self.samples if s.translation is None), self.samples[0])
        self.expected["translation"] = f"{folder / self.place(first)}"

    def _check_complete(self) -> None:
        for what, samples in self.missing.items():
            raise UserError(
                f"{self.name}: {len(samples)} of {len(self.samples)} images have no {title(what)}, the first is "
                f"{samples[0].image}; expected {self.expected[what]}"
            )

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


def title(companion: str) -> str:
    """What people call a companion of an image, such as "invalid mask" for ``Sample.invalid``."""
    return {"invalid": "invalid mask"}.get(companion, companion)


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


def _checked_size(name: str, size: Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    values = () if isinstance(size, int | str) else tuple(size)
    if len(values) != 2 or not all(isinstance(value, int) and value > 0 for value in values):
        raise UserError(f"{name}: size is {size}, expected height and width in pixels, such as [512, 1024]")
    return values
