"""The night images among the 10k images of BDD100K that have semantic labels: by a list, or by their tags."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import cv2

from icda.data.base import Sample, SegmentationDataset
from icda.data.classes import CITYSCAPES
from icda.data.files import list_files
from icda.data.io import IMAGE_ENDINGS, read_image
from icda.errors import UserError

NAME = "BDD100K night"
LIST_NAME = "images_trainval_night_correct_filenames.txt"
"""Name of the field's list of night images (github.com/sakaridis/MGCDA, data/bdd100k_lists_file_names)."""
LIST_LINE = "seg/images/{}.jpg"
"""A line of a list, from the key ``<split>/<id>``."""
NIGHT = "night"
UNKNOWN_TIME = (None, "undefined")
"""Times of day that tell nothing."""
ATTRIBUTE_FILES = (
    "labels/det_20/det_{}.json",
    "labels/bdd100k_labels_images_{}.json",
    "bdd100k_labels_images_{}.json",
)
"""Files with the tags of the 100k images, by split; those that come first are preferred."""


@dataclass(frozen=True)
class NightList:
    """The images that are tagged as night.

    Args:
        lines: One per image, sorted, as in the field's list: ``seg/images/<split>/<id>.jpg``.
        untagged: Number of images, of all in train and val, whose time of day no attribute file tells.
        bright: Number of images tagged as night that were left out as too bright.
    """

    lines: tuple[str, ...]
    untagged: int
    bright: int


class BDD100KNight(SegmentationDataset):
    """Night images of BDD100K with semantic labels. There are no day references and no invalid masks.

    The masks hold train ids and are read as they are; colour maps are never read, since the colours of wall and
    fence are swapped in some releases. Both the layout of today and that of 2018 (``seg``) are read. Most images
    of the list are in BDD100K's train split: a model that learned from that split must not be scored on them.

    Args:
        root: The folder ``bdd100k`` or the one above it.
        size: Height and width that images and labels are resized to; None keeps 720 x 1280.
        night: ``listed`` takes the images of a list, ``tagged`` those whose attribute ``timeofday`` is night. About
            a third of the images have no tag, and some tags are wrong; figures for the two are not comparable.
        list_file: Text file with one image a line: ``seg/images/<split>/<id>.jpg``, a path of today's layout, or
            the bare name; None looks for the field's list (``LIST_NAME``) in root, root/lists and root/images/10k.
        labelled: Whether masks are looked for and read.
        max_brightness: Mean grey value, 0..255, above which an image tagged as night is left out; all tagged images
            are read for it. None leaves out none.
        check: Whether an incomplete tree is refused (see ``SegmentationDataset``).

    Attributes:
        absent: Lines of the list whose images are not there (``check=False``).
        untagged: Number of images without a tag, as in ``NightList``; 0 for ``listed``.
        bright: Number of images left out as too bright, as in ``NightList``; 0 for ``listed``.

    Raises:
        UserError: If a folder, all images, an image of the list or a mask is missing, there is no list or no tag,
            or options contradict each other.
    """

    TREE = (
        "images/10k/<split>/<id>.jpg and labels/sem_seg/masks/<split>/<id>.png, or seg/images/<split>/<id>.jpg and "
        "seg/labels/<split>/<id>_train_id.png"
    )
    PACKAGES = (
        *(
            f"{package}/bdd100k"
            for package in (
                "bdd100k_images_10k",
                "bdd100k_sem_seg_labels_trainval",
                "bdd100k_det_20_labels_trainval",
                "bdd100k_labels_release",
                "bdd100k_seg",
                "bdd100k",
            )
        ),
        "bdd100k_images_10k",
        "bdd100k_sem_seg_labels_trainval",
        "bdd100k",
    )
    SPLITS = ("train", "val")
    NIGHTS = ("listed", "tagged")
    IMAGE_FOLDERS = ("images/10k", "seg/images")
    MASKS: ClassVar[dict[str, str]] = {"labels/sem_seg/masks": ".png", "seg/labels": "_train_id.png"}
    """End of the names of masks by their folder."""
    PUBLISHED: ClassVar[dict[str, int]] = {"train": 74, "val": 13}
    """Images of the field's list by split."""

    def __init__(
        self,
        root: str,
        size: Sequence[int] | None = None,
        night: str = "listed",
        list_file: str | None = None,
        labelled: bool = True,
        max_brightness: float | None = None,
        check: bool = True,
    ) -> None:
        if night not in self.NIGHTS:
            raise UserError(f"{NAME}: night is {night!r}; choose one of {', '.join(self.NIGHTS)}")
        for option, value, owner in (
            ("list_file", list_file, "listed"),
            ("max_brightness", max_brightness, "tagged"),
        ):
            if value is not None and night != owner:
                raise UserError(f"{NAME}: {option} is for night={owner}, but night is {night}; set {option}=null")
        images = self._list_images(root)
        self.absent: tuple[str, ...] = ()
        self.untagged = self.bright = 0
        self._published: dict[str, int] = {}
        if night == "tagged":
            found = _tagged(root, images, max_brightness)
            self.untagged, self.bright = found.untagged, found.bright
            lines, origin = found.lines, "the attribute files"
        else:
            origin = self._find_list(root, list_file)
            self._published = self.PUBLISHED if origin.name == LIST_NAME else {}
            lines = _read_list(origin)
        keys, self.absent = _look_up(lines, images)
        if self.absent and check:
            raise UserError(
                f"{NAME}: {len(self.absent)} of {len(lines)} images of {origin} are not there, the first is "
                f"{self.absent[0]}; expected {self.TREE} with <split> train or val. Unzip the whole package, or "
                "correct the list"
            )
        masks, expected = {}, {}
        if labelled:
            masks, expected["label"] = self._list_masks(root)
        super().__init__(
            f"{NAME} tagged" if night == "tagged" else NAME,
            CITYSCAPES,
            root,
            [Sample(key, images[key], masks.get(key)) for key in sorted(keys)],
            size,
            expected=expected,
            strays=[path for key, path in masks.items() if key not in images],
            check=check,
        )

    def published(self) -> dict[str, int]:
        """Number of images of the field's list by split; empty for another list, or tags."""
        return self._published

    def group_of(self, sample: Sample) -> str:
        """The split of BDD100K that a sample is from."""
        return sample.key.split("/", 1)[0]

    @classmethod
    def _bases(cls, root: str | Path) -> list[Path]:
        base = Path(root).expanduser()
        return [base, *(base / package for package in cls.PACKAGES)]

    @classmethod
    def _present(cls, root: str, folders: Sequence[str]) -> str:
        """The first of some folders that is there; the first of all if none is."""
        return next((f for f in folders if any((base / f).is_dir() for base in cls._bases(root))), folders[0])

    @classmethod
    def _list_images(cls, root: str) -> dict[str, Path]:
        """Image files of train and val by ``<split>/<id>``."""
        folder = cls._find(NAME, root, cls._present(root, cls.IMAGE_FOLDERS))
        images = list_files(folder, IMAGE_ENDINGS)
        return {key: path for key, path in images.items() if key.split("/", 1)[0] in cls.SPLITS}

    @classmethod
    def _list_masks(cls, root: str) -> tuple[dict[str, Path], str]:
        """Masks by ``<split>/<id>``, and where they are expected."""
        folder = cls._present(root, list(cls.MASKS))
        ending = cls.MASKS[folder]
        hint = "Colour maps cannot be used. Or set labelled=false if no labels are needed."
        path = cls._find(NAME, root, folder, hint)
        return list_files(path, (ending,)), f"{path}/<split>/<id>{ending}"

    @classmethod
    def _find_list(cls, root: str, list_file: str | None) -> Path:
        if list_file is not None:
            path = Path(list_file).expanduser()
            if path.is_file():
                return path
            raise UserError(
                f"{NAME}: the list of night images {path} does not exist; expected a text file, one image a line"
            )
        for base in cls._bases(root):
            for folder in ("", "lists", *cls.IMAGE_FOLDERS[:1]):
                if (base / folder / LIST_NAME).is_file():
                    return base / folder / LIST_NAME
        raise UserError(
            f"{NAME}: no list of night images: no {LIST_NAME} in {root}, {root}/lists or {root}/images/10k. Get it "
            "from github.com/sakaridis/MGCDA (data/bdd100k_lists_file_names), give list_file=<file>, or set "
            "night=tagged"
        )


def night_list(root: str | Path, max_brightness: float | None = None) -> NightList:
    """The night images of BDD100K's 10k images by their tags, to be stored as a list that ``list_file`` reads.

    Args:
        root: See :class:`BDD100KNight`.
        max_brightness: See :class:`BDD100KNight`.

    Returns:
        The images of train and val that are tagged as night.

    Raises:
        UserError: If images or attribute files are missing or cannot be read, or no image is left.
    """
    return _tagged(str(root), BDD100KNight._list_images(str(root)), max_brightness)


def _tagged(root: str, images: Mapping[str, Path], max_brightness: float | None) -> NightList:
    tags = _read_tags(root)
    times = {key: tags.get(key.rsplit("/", 1)[-1]) for key in images}
    night = [key for key, time in times.items() if time == NIGHT]
    dark = [key for key in night if max_brightness is None or _brightness(images[key]) <= max_brightness]
    if images and not dark:
        raise UserError(
            f"{NAME}: of {len(images)} images {len(night)} are tagged as night and {len(dark)} of these are dark "
            f"enough (max_brightness {max_brightness}); raise max_brightness, or set night=listed"
        )
    untagged = sum(time in UNKNOWN_TIME for time in times.values())
    return NightList(tuple(LIST_LINE.format(key) for key in sorted(dark)), untagged, len(night) - len(dark))


def _brightness(path: Path) -> float:
    """Mean grey value, 0..255."""
    return float(cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY).mean())


def _read_tags(root: str) -> dict[str, str | None]:
    """Time of day by image name, from train and val together: the 10k images are split otherwise than the 100k."""
    bases = BDD100KNight._bases(root)
    for form in ATTRIBUTE_FILES:
        found = {
            split: next((base / form.format(split) for base in bases if (base / form.format(split)).is_file()), None)
            for split in BDD100KNight.SPLITS
        }
        if all(found.values()):
            break
    else:
        forms = " or ".join(form.format("{train,val}") for form in ATTRIBUTE_FILES[:2])
        raise UserError(f"{NAME}: night=tagged needs both attribute files {forms} in {root}; or set night=listed")
    tags: dict[str, str | None] = {}
    for path in found.values():
        tags |= _read_frames(path)
    if not any(tags.values()):
        files = " and ".join(str(path) for path in found.values())
        raise UserError(
            f"{NAME}: no image in {files} has the attribute timeofday; take those of the packages Labels (2018) or "
            "Detection 2020"
        )
    return tags


def _read_frames(path: Path) -> dict[str, str | None]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            frames = json.load(stream, object_hook=_name_and_time)
    except (OSError, ValueError) as error:
        raise UserError(f"{NAME}: cannot read {path}: {error}; copy or unzip it again") from error
    if not isinstance(frames, list) or not all(isinstance(frame, tuple) for frame in frames):
        raise UserError(f'{NAME}: {path} is no list of images with "name" and "attributes"; copy or unzip it again')
    return {PurePosixPath(name).stem: time for name, time in frames}


def _name_and_time(entry: dict[str, Any]) -> Any:
    """What is kept of a JSON object: of a gigabyte of boxes and polygons nothing, which saves most of the memory."""
    if "timeofday" in entry:
        return entry["timeofday"]
    if isinstance(entry.get("name"), str):
        time = entry.get("attributes")
        return entry["name"], time if isinstance(time, str) else None
    return entry.get("frames")


def _read_list(file: Path) -> list[str]:
    """The lines of a list, without empty ones and comments (``#``)."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{NAME}: cannot read the list of night images {file}: {error}") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"{NAME}: the list of night images {file} is empty; expected one image a line")
    return lines


def _look_up(lines: Sequence[str], images: Mapping[str, Path]) -> tuple[list[str], tuple[str, ...]]:
    """Keys of the images that lines name, and the lines whose image is not there.

    A path's last folder tells the split; a bare name, or a split where it is not, is looked up in both.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for key in images:
        by_name[key.rsplit("/", 1)[-1]].append(key)
    keys: dict[str, None] = {}
    absent = []
    for line in lines:
        path = PurePosixPath(line.replace("\\", "/"))
        name = path.stem if path.suffix.lower() in IMAGE_ENDINGS else path.name
        name = name.removesuffix("_train_id")  # the field's list of labels, line by line the same images
        key = f"{path.parent.name}/{name}"
        candidates = [key] if key in images else by_name.get(name, [])
        if len(candidates) > 1:
            first, second, *_ = (images[candidate] for candidate in candidates)
            raise UserError(f"{NAME}: {line} names two images, {first} and {second}; write train/ or val/ before it")
        keys |= dict.fromkeys(candidates)
        if not candidates:
            absent.append(line)
    return list(keys), tuple(absent)
