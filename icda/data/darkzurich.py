"""Dark Zurich as unzipped from its official packages: night images with day references of the same places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from icda.data.base import Count, Sample, check_split
from icda.data.cityscapes import CityscapesLabels
from icda.data.classes import CITYSCAPES
from icda.data.files import list_files
from icda.data.io import IMAGE_ENDINGS
from icda.data.pairs import (
    Positions,
    apply_unpaired,
    check_distance,
    check_unpaired,
    describe_distances,
    describe_unpaired,
    nearest,
    read_positions,
    references_from_lists,
)
from icda.errors import UserError

DRIVE_ENDINGS = tuple(f"_rgb_anon{ending}" for ending in IMAGE_ENDINGS)
"""Ends of image names in Dark Zurich and ACDC; the packages hold PNG files."""
INVALID_ENDING = "_gt_invIds.png"
LIST_ENDING = "_ref_day.csv"
MAX_DISTANCE = 20.0
"""Metres. Frames are one second apart, so at 50 km/h the nearest along the road is at most 7 m away, and either
position may be off by 5 m or, between houses, a little more."""
LATITUDES, LONGITUDES = (47.0, 48.0), (8.0, 9.0)
"""Degrees around Zurich, in which all positions lie."""


class DarkZurich(CityscapesLabels):
    """Night images of Dark Zurich, each with the day image of the same place.

    References of the train split come from lists of pairs or from positions, those of ``val`` and ``test`` from their
    file names. Only ``val`` has public labels. The twilight images are left aside.

    Args:
        root: Folder that holds ``rgb_anon``, ``gt`` and ``corresp`` (or the folders named after the packages).
        split: ``train``, ``val`` or ``test``.
        size: Height and width that images and labels are resized to; None keeps 1080 x 1920.
        pairs: Where the references of the train split come from: ``corresp`` (the official
            ``corresp/train/night/**/*_ref_day.csv``), ``gps`` (the nearest day image by ``gps/train``), a CSV file
            with one ``night,day`` pair of keys per line, such as
            ``train/night/GOPR0351/GOPR0351_frame_000001,train/day/GOPR0345/GOPR0345_frame_000081``, or ``auto`` or
            None: ``corresp`` where there is one, else ``gps``.
        max_distance: Metres to the nearest day image beyond which ``gps`` pairs a night image with none; None sets no
            limit.
        references: Whether references are looked for; False also serves users without them.
        unpaired: What to do with a train image that has no day reference: ``drop`` leaves it out, ``keep`` keeps it
            without one, ``error`` stops.
        labelled: Whether labels and invalid masks of the val split are looked for and read.
        check: Whether an incomplete tree is refused (see ``SegmentationDataset``).

    Attributes:
        unpaired: Number of train images without a day reference, left out or kept.
        pairing: One line that says where the references come from and, for ``gps``, how far away they are.

    Raises:
        UserError: If a folder, all images, a label or a reference is missing, or the pairs are faulty.
    """

    TREE = (
        "rgb_anon/<split>/night/<sequence>/*_rgb_anon.png, for val and test rgb_anon/<split>_ref/day/<sequence>_ref/"
        "*_ref_rgb_anon.png, for train rgb_anon/train/day and corresp/train/night/<sequence>/*_ref_day.csv, for val "
        "gt/val/night/<sequence>/*_gt_labelTrainIds.png"
    )
    PACKAGES = (
        "dark_zurich",
        "Dark_Zurich_train_anon",
        "Dark_Zurich_val_anon",
        "Dark_Zurich_test_anon_withoutGt",
        "train",
        "val",
        "test",
    )
    HAS_DRIVE_FRAMES = True
    SPLITS = ("train", "val", "test")
    PAIRS = ("auto", "corresp", "gps")
    PUBLISHED: ClassVar[dict[str, dict[str, int]]] = {
        "train": {"GOPR0351": 1027, "GOPR0376": 1061, "GP010376": 328},
        "val": {"GOPR0356": 50},
        "test": {"GOPR0364": 105, "GP010364": 46},
    }
    """Night images by split and sequence (lists of github.com/sakaridis/MGCDA and github.com/W-zx-Y/DANNet)."""
    PUBLISHED_DAY: ClassVar[dict[str, int]] = {"train": 3041, "val": 50, "test": 151}
    """Day images by split (same lists)."""

    def __init__(
        self,
        root: str,
        split: str,
        size: Sequence[int] | None = None,
        pairs: str | None = "auto",
        max_distance: float | None = MAX_DISTANCE,
        references: bool = True,
        unpaired: str = "drop",
        labelled: bool = True,
        check: bool = True,
    ) -> None:
        name = f"Dark Zurich {split}"
        check_split("Dark Zurich", split, self.SPLITS)
        check_unpaired(name, unpaired)
        check_distance(name, max_distance)
        pairs = "auto" if pairs is None else str(pairs)
        if pairs != "auto" and split != "train":
            raise UserError(f"{name}: pairs is for the train split; {split} references are found by name")
        self.split = split
        self.pairing, self.unpaired = "no references", 0
        self._day_images: int | None = None
        found = list_files(self._find(name, root, f"rgb_anon/{split}/night"), DRIVE_ENDINGS)
        images = {f"night/{key}": path for key, path in found.items()}
        reference, expected = {}, {}
        if references and images and split == "train":
            reference = self._references_of_train(name, root, images, pairs, max_distance, check)
            # Without the check, what unpaired=error would refuse is found in ``missing``.
            self.pairing += describe_unpaired(images, reference, unpaired)
            images, self.unpaired = apply_unpaired(name, images, reference, unpaired if check else _lenient(unpaired))
            if unpaired == "error":
                expected["reference"] = f"a pair for each, from {self.pairing}"
        elif references and images:
            folder = self._find(name, root, f"rgb_anon/{split}_ref", "Or set references=false.")
            reference = self._references_by_name(name, root, folder, images)
            expected["reference"] = f"{folder}/day/<sequence>_ref/<frame>_ref{DRIVE_ENDINGS[0]}, or references=false"
        labels, invalid = {}, {}
        if split == "val" and labelled:
            folder = self._find(name, root, "gt/val", "Or set labelled=false if no labels are needed.")
            labels, invalid = self._list_labels(folder), list_invalid(folder)
            expected["label"] = f"{folder}/night/<sequence>/*{self.TRAIN_IDS_ENDINGS[0]}"
            expected |= expected_invalid(f"{folder}/night/<sequence>/*{INVALID_ENDING}", images, invalid)
        samples = [
            Sample(key, path, labels.get(key), reference.get(key), invalid.get(key)) for key, path in images.items()
        ]
        strays = [path for kind in (labels, invalid) for key, path in kind.items() if key not in images]
        super().__init__(name, CITYSCAPES, root, samples, size, expected=expected, strays=strays, check=check)

    @property
    def pairs(self) -> dict[str, str]:
        """Key of the day image by key of the night image, as in the official lists, of all samples that have one."""
        return {_list_key(s.image): _list_key(s.reference) for s in self.samples if s.reference is not None}

    def published(self) -> dict[str, int]:
        """Number of night images by sequence."""
        return self.PUBLISHED[self.split]

    def group_of(self, sample: Sample) -> str:
        """The sequence of a sample."""
        return sample.image.parent.name

    def counts(self) -> list[Count]:
        """How much there is of everything, day images and pairs included where references are looked for."""
        counts = super().counts()
        if self._day_images is not None:
            counts.append(Count("day images", self._day_images, self.PUBLISHED_DAY[self.split]))
            # Published lists pair every night image.
            counts.append(Count("pairs", len(self.pairs), sum(self.published().values())))
            if self.unpaired:
                counts.append(Count("night images without a pair", self.unpaired))
        return counts

    def _references_of_train(
        self, name: str, root: str, images: Mapping[str, Path], pairs: str, max_distance: float | None, check: bool
    ) -> dict[str, Path]:
        """Day image of each train image that has one, by the image's key; sets ``pairing``."""
        hint = "Or give pairs=gps or pairs=<CSV file>, or set references=false if no references are needed."
        day = list_files(self._find(name, root, "rgb_anon/train/day", hint), DRIVE_ENDINGS)
        self._day_images = len(day)
        night = {f"train/{key}": path for key, path in images.items()}
        day = {f"train/day/{key}": path for key, path in day.items()}
        lists = self._lists(root)
        if pairs == "gps" or (pairs == "auto" and not lists and self._has_positions(root)):
            found = self._references_by_position(name, root, night, day, max_distance)
        else:
            if pairs in self.PAIRS:
                folder = self._find(name, root, "corresp/train/night", hint)
                source = f"{len(lists)} {'list' if len(lists) == 1 else 'lists'} in {folder}"
                if not lists:
                    raise UserError(f"{name}: no *{LIST_ENDING} in {folder}; expected {self.TREE}. {hint}")
            else:
                lists = [Path(pairs).expanduser()]
                source = f"the list {lists[0]}"
                if not lists[0].is_file():
                    raise UserError(
                        f"{name}: pairs={pairs} is none of {', '.join(self.PAIRS)}, and the list of pairs {lists[0]} "
                        "does not exist; expected a CSV file night,day"
                    )
            found, passed_over = references_from_lists(name, lists, night, day, DRIVE_ENDINGS, check)
            self.pairing = f"{len(found)} pairs from {source}"
            if passed_over:
                self.pairing += f"; {passed_over} lines name missing images"
        return {key.removeprefix("train/"): path for key, path in found.items()}

    @classmethod
    def _lists(cls, root: str) -> list[Path]:
        """The official lists of pairs of the train split; empty if there are none."""
        for base in cls._bases(root):
            if found := list_files(base / "corresp/train/night", (LIST_ENDING,)):
                return list(found.values())
        return []

    @classmethod
    def _has_positions(cls, root: str) -> bool:
        return any((base / "gps/train/night").is_dir() for base in cls._bases(root))

    @classmethod
    def _bases(cls, root: str) -> list[Path]:
        return [Path(root).expanduser() / package for package in ("", *cls.PACKAGES)]

    def _references_by_position(
        self, name: str, root: str, night: Mapping[str, Path], day: Mapping[str, Path], max_distance: float | None
    ) -> dict[str, Path]:
        """Nearest day image of each night image whose position is known, by its key; sets ``pairing``."""
        sides = []
        for time, images in (("night", night), ("day", day)):
            folder = self._find(name, root, f"gps/train/{time}", "Or give pairs=<CSV file>, or set references=false.")
            files = list_files(folder, (".csv",)).values()
            positions = in_zurich(name, folder, read_positions(name, files, DRIVE_ENDINGS)).of(images)
            if not len(positions):
                raise UserError(
                    f"{name}: none of the {len(images)} {time} images has a position in {folder}; expected CSV files "
                    "of the columns key,latitude,longitude"
                )
            sides.append(positions)
        matches = nearest(*sides, max_distance)
        self.pairing = (
            f"nearest day image {'at any distance' if max_distance is None else f'within {max_distance:g} m'}: "
            f"{describe_distances(matches)}; {len(night) - len(sides[0])} night and {len(day) - len(sides[1])} day "
            "images have no position"
        )
        return {match.night: day[match.day] for match in matches if match.day is not None}

    def _references_by_name(self, name: str, root: str, folder: Path, images: Mapping[str, Path]) -> dict[str, Path]:
        """Reference of each val or test image, by the image's key.

        Three rules, in this order: the image's name with ``_ref``; the only file in the reference sequence that
        begins with the image's name; the same line in the official lists of file names.
        """
        files = list_files(folder, IMAGE_ENDINGS)
        self._day_images = len(files)
        self.pairing = f"file names in {folder}"
        by_frame: dict[str, list[Path]] = defaultdict(list)
        for key, path in files.items():
            by_frame["_".join(key.rsplit("/", 1)[-1].split("_")[:3])].append(path)
        listed: dict[str, Path] | None = None
        found: dict[str, Path] = {}
        for key, image in images.items():
            sequence, frame = image.parent.name, key.rsplit("/", 1)[-1]
            exact = files.get(f"day/{sequence}_ref/{frame}_ref_rgb_anon")
            candidates = [exact] if exact else [p for p in by_frame[frame] if p.parent.name == f"{sequence}_ref"]
            if not candidates:
                if listed is None:
                    listed = self._read_lists(root, self.split, files)
                candidates = [listed[key]] if key in listed else []
            if len(candidates) > 1:
                names = ", ".join(str(path) for path in candidates)
                raise UserError(
                    f"{name}: {len(candidates)} references for {image}: {names}; expected one, "
                    f"{folder}/day/{sequence}_ref/{frame}_ref{DRIVE_ENDINGS[0]}. Or set references=false."
                )
            found.update((key, path) for path in candidates)
        return found

    @classmethod
    def _read_lists(cls, root: str, split: str, files: Mapping[str, Path]) -> dict[str, Path]:
        """References by the official lists, whose lines correspond; empty if the lists are missing."""
        for base in cls._bases(root):
            lists = [base / f"lists_file_names/{split}{infix}_filenames.txt" for infix in ("", "_ref")]
            if all(path.is_file() for path in lists):
                night, day = (path.read_text(encoding="utf-8-sig").split() for path in lists)
                day = [key.removeprefix(f"{split}_ref/") + "_rgb_anon" for key in day]
                pairs = zip(night, day, strict=False)
                return {n.removeprefix(f"{split}/"): files[d] for n, d in pairs if d in files}
        return {}


def list_invalid(folder: Path) -> dict[str, Path]:
    """Invalid mask of each key below a folder of Dark Zurich's or ACDC's labels.

    ``_gt_invIds.png`` (0 valid, 1 invalid) is taken where there is one, else ``_gt_invGray.png`` (0 and 255).
    """
    return list_files(folder, ("_gt_invGray.png",)) | list_files(folder, (INVALID_ENDING,))


def expected_invalid(pattern: str, images: Mapping[str, Path], invalid: Mapping[str, Path]) -> dict[str, str]:
    """Ask for an invalid mask of every image if any has one: all or none is normal.

    Args:
        pattern: Where the masks are expected.
        images: The images, by key.
        invalid: The masks, by key.

    Returns:
        Part of ``expected`` of ``SegmentationDataset``.
    """
    return {"invalid": pattern} if invalid.keys() & images.keys() else {}


def in_zurich(name: str, folder: Path, positions: Positions) -> Positions:
    """The positions that lie around Zurich; rows with latitude and longitude the other way round are turned.

    Args:
        name: Name of the data set, for messages.
        folder: Where they were read from, for messages.
        positions: What was read.

    Returns:
        Those around Zurich; the others are counted as skipped.

    Raises:
        UserError: If there are positions, but none around Zurich.
    """

    def inside(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
        north = (latitude >= LATITUDES[0]) & (latitude <= LATITUDES[1])
        return north & (longitude >= LONGITUDES[0]) & (longitude <= LONGITUDES[1])

    turned = inside(positions.longitude, positions.latitude)
    latitude = np.where(turned, positions.longitude, positions.latitude)
    longitude = np.where(turned, positions.latitude, positions.longitude)
    rows = np.flatnonzero(inside(latitude, longitude))
    if len(positions) and not rows.size:
        raise UserError(
            f"{name}: {folder} holds no position around Zurich, the first is {positions.latitude[0]}, "
            f"{positions.longitude[0]}; expected degrees, such as 47.37,8.54"
        )
    keys = tuple(positions.keys[row] for row in rows)
    return Positions(keys, latitude[rows], longitude[rows], positions.skipped + len(positions) - len(keys))


def _list_key(path: Path) -> str:
    """Key of an image in the official lists: its path below ``rgb_anon`` without ending."""
    below = path.parts[len(path.parts) - path.parts[::-1].index("rgb_anon") :]
    key = "/".join(below)
    ending = next((e for e in DRIVE_ENDINGS if key.lower().endswith(e)), path.suffix)
    return key[: len(key) - len(ending)]


def _lenient(unpaired: str) -> str:
    return "keep" if unpaired == "error" else unpaired
