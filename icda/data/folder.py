"""Images and labels of one's own, in whatever folders they are: patterns of file names tell what belongs together."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from icda.data.base import Sample, SegmentationDataset
from icda.data.camvid import VOID_ID
from icda.data.cityscapes import label_ids_to_train_ids
from icda.data.classes import CAMVID, CITYSCAPES, LAST_ID, REST, ClassSet, closest, id_table, read_classes
from icda.data.io import image_size
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
from icda.data.patterns import Matches, Pattern, plain, quoted
from icda.errors import UserError

LABEL_IDS = "labelIds"
"""The mapping from Cityscapes' official label ids, and the end of the names of files that hold them."""
GPS = "gps"
"""Pairs by position."""
IGNORE = "ignore"
"""What a mapping gives for an id without a class."""
LABEL_ENDINGS = (".png",)
"""Taken where a pattern of labels names no ending; JPEG files do not keep ids."""
UNLABELLED = ("error", "drop")
"""What may become of images without a label."""
_LONGEST_NAME = 100  # a folder gets this name


class Folder(SegmentationDataset):
    """Images of one's own, labelled or not, with day references or not.

    What belongs together is found by names: an image, its label and its reference are those where the wildcards of
    their patterns stand for the same text (see ``Pattern``). ``day/*/*.jpg`` and ``gt/*/*_label.png`` give
    ``day/a/x_1.jpg`` the label ``gt/a/x_1_label.png``.

    Args:
        root: Folder that patterns are relative to.
        images: Pattern of the images, or a list of patterns. Files that are labels or references are left out.
        labels: Pattern of the label maps, PNG files of ids; None if there are none or they are not to be read.
        classes: The label space: ``cityscapes``, ``camvid``, or a YAML file (see ``icda.data.classes``), looked for
            from the working folder, then from the root.
        mapping: What the ids in label files mean. None: what the YAML file says; for ``cityscapes`` train ids, or
            official label ids in files whose names end in ``labelIds``; for ``camvid`` train ids and 11 for void.
            ``labelIds``: Cityscapes' official label ids. Or train id or class name by id: ``{7: road, 8: 1}``, with
            ``ignore`` or null for ids without a class and ``rest`` for all other ids, which are refused else.
        references: Pattern of the day images that show the same places; None or False: there are none.
        pairs: How an image gets its reference: None by names; ``gps`` the nearest one by position; or a CSV file of
            two columns ``night,day``, paths relative to the root with or without endings.
        positions: For ``gps``: two CSV files of the columns file, latitude, longitude, of the images and of the
            references; None reads the positions in the files themselves (EXIF).
        max_distance: Metres to the nearest reference beyond which ``gps`` pairs an image with none; None: no limit.
        unpaired: What becomes of images without a reference, where references are given: ``drop`` leaves them out,
            ``keep`` keeps them without one, ``error`` stops.
        unlabelled: What becomes of images without a label, where labels are given: ``error`` stops, ``drop`` leaves
            them out.
        size: Height and width that images and labels are resized to; None keeps their own.
        translations: Folder of night translations (see ``SegmentationDataset``); None if there are none.
        check: Whether images without label or translation are refused (see ``SegmentationDataset``).

    Attributes:
        unpaired: Number of images without a reference, left out or kept.
        unlabelled: Number of images left out because they have no label.
        pairing: One line that says where the references come from and, for ``gps``, how far away they are.

    Raises:
        UserError: If a pattern matches nothing, files do not fit together, or a setting is faulty.
    """

    TREE = "files that match the pattern images"

    HAS_DRIVE_FRAMES = True  # of images taken from Dark Zurich or ACDC

    def __init__(
        self,
        root: str,
        images: str | Sequence[str],
        labels: str | None = None,
        classes: str | ClassSet = CITYSCAPES.name,
        mapping: str | Mapping[int | str, int | str | None] | None = None,
        references: str | bool | None = None,
        pairs: str | None = None,
        positions: Sequence[str] | None = None,
        max_distance: float | None = 20.0,
        unpaired: str = "drop",
        unlabelled: str = "error",
        size: Sequence[int] | None = None,
        translations: str | None = None,
        check: bool = True,
    ) -> None:
        folder = Path(root).expanduser()
        texts = images if isinstance(images, list | tuple) and images else [images]
        patterns = [Pattern("images", text, folder) for text in texts]
        name = _name(folder, patterns)
        _check_settings(name, folder, references, pairs, positions, max_distance, unpaired, unlabelled)
        space, self._mapping = _open_classes(name, classes, folder)
        if mapping is not None:
            self._mapping = _mapping(name, space, mapping)
        self._by_file_name = mapping is None and space == CITYSCAPES
        label_files = Matches.of(name, [Pattern("labels", labels, folder, LABEL_ENDINGS)] if labels else [])
        day_files = Matches.of(name, [Pattern("references", references, folder)] if references else [])
        found = Matches.of(name, patterns, without={**label_files.files, **day_files.files})
        keys = found.keys(name, folder)
        label_of, expected = _find_labels(name, found, label_files, check) if labels else ({}, {})
        self.unlabelled = len(keys) - len(label_of) if labels and unlabelled == "drop" else 0
        all_keys = keys
        if self.unlabelled:
            keys = {key: path for key, path in keys.items() if path in label_of}
        day_of, self.pairing, self.unpaired = {}, "no references", 0
        if references:
            how = (None if pairs is None else str(pairs), positions, max_distance, check)
            day_of, self.pairing = _find_references(name, folder, found, day_files, *how)
            self.pairing += describe_unpaired(keys, day_of, unpaired)
            keys, self.unpaired = apply_unpaired(name, keys, day_of, unpaired)
        super().__init__(
            name,
            space,
            folder,
            [Sample(key, path, label_of.get(path), day_of.get(key)) for key, path in sorted(keys.items())],
            size,
            expected=expected,
            strays=sorted(label_files.files.keys() - set(label_of.values())),
            translations=translations,
            check=check,
        )
        if self.unlabelled:
            first = next(path for path in all_keys.values() if path not in label_of)
            self.remarks = (
                f"{self.unlabelled} of {len(all_keys)} images have no label and are left out, the first is {first}",
            )

    def _label_mapping(self, path: Path) -> np.ndarray | None:
        if self._by_file_name and path.stem.lower().endswith(LABEL_IDS.lower()):
            return label_ids_to_train_ids()
        return self._mapping

    def _check_same_size(self, sample: Sample, what: str, path: Path, array: np.ndarray) -> None:
        height, width = image_size(sample.image)
        if array.shape == (width, height) and height != width:
            with Image.open(sample.image) as picture:
                turned = picture.size == (height, width)
            if turned:
                raise UserError(
                    f"{self.name}: {what} {path} does not have the quarter turn that the EXIF orientation of its "
                    f"image {sample.image} asks for; turn the {what}, or remove the orientation from the image"
                )
        super()._check_same_size(sample, what, path, array)


def exif_positions(images: Mapping[str, Path]) -> Positions:
    """Where photographs were taken, by the GPS position that cameras write into their files (EXIF).

    Args:
        images: File by key.

    Returns:
        The positions of those that have one, in their order.
    """
    found = {key: place for key, path in images.items() if (place := _exif_position(path)) is not None}
    degrees = np.array(list(found.values()), np.float64).reshape(-1, 2)
    return Positions(tuple(found), degrees[:, 0], degrees[:, 1], len(images) - len(found))


def _exif_position(path: Path) -> tuple[float, float] | None:
    """Degrees north and east; None if the file tells no position, as a damaged one, or one without satellites."""
    try:
        with Image.open(path) as picture:
            # Pillow decodes a whole PNG in search of EXIF data that may follow the pixels: do not ask for it.
            if picture.format == "PNG" and "exif" not in picture.info:
                return None
            gps = picture.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        degrees = []
        for value, side, negative in (
            ("GPSLatitude", "GPSLatitudeRef", "S"),
            ("GPSLongitude", "GPSLongitudeRef", "W"),
        ):
            whole, minutes, seconds = (float(part) for part in gps[ExifTags.GPS[value]])
            sign = -1 if str(gps.get(ExifTags.GPS[side], "")).upper().startswith(negative) else 1
            degrees.append(sign * (whole + minutes / 60 + seconds / 3600))
    except (OSError, SyntaxError, KeyError, TypeError, ValueError, ZeroDivisionError, struct.error):
        return None
    latitude, longitude = degrees
    known = math.isfinite(latitude + longitude) and abs(latitude) <= 90 and abs(longitude) <= 180 and any(degrees)
    return (latitude, longitude) if known else None


def _find_references(
    name: str,
    root: Path,
    images: Matches,
    references: Matches,
    pairs: str | None,
    positions: Sequence[str] | None,
    max_distance: float | None,
    check: bool,
) -> tuple[dict[str, Path], str]:
    """Reference by key of the image, and a line that says how they were found."""
    nights, days = images.keys(name, root), references.keys(name, root)
    if pairs is None:
        partners = images.partners(name, references)
        found = {key: partners[path] for key, path in nights.items() if path in partners}
        return found, "references by file names"
    if pairs == GPS:
        return _nearest_by_position(name, root, nights, days, positions, max_distance)
    file = _existing(name, "pairs", pairs, root, f"{GPS}, or a CSV file of two columns night,day")
    endings = sorted({path.suffix for path in (*nights.values(), *days.values())})
    found, passed_over = references_from_lists(name, [file], nights, days, endings, check)
    return found, f"references from {file}, {passed_over} lines passed over"


def _nearest_by_position(
    name: str,
    root: Path,
    images: Mapping[str, Path],
    days: Mapping[str, Path],
    positions: Sequence[str] | None,
    max_distance: float | None,
) -> tuple[dict[str, Path], str]:
    """Reference by key of the image, and a line that says how far away they are."""
    places = []
    for index, (what, files) in enumerate((("images", images), ("references", days))):
        if positions is None:
            source, place = "their EXIF data", exif_positions(files)
        else:
            source = _existing(
                name, "positions", str(positions[index]), root, "a CSV file: file, latitude, longitude"
            )
            place = read_positions(name, [source], sorted({path.suffix for path in files.values()})).of(files)
        if not len(place):
            raise UserError(
                f"{name}: none of the {len(files)} {what} has a position in {source}; give "
                "positions=[night.csv,day.csv] with the columns file, latitude, longitude, or pairs=<CSV file> with "
                "the columns night,day"
            )
        places.append(place)
    matches = nearest(*places, max_distance)
    found = {match.night: days[match.day] for match in matches if match.day is not None}
    return found, f"nearest by position: {describe_distances(matches)}"


def _find_labels(name: str, images: Matches, labels: Matches, check: bool) -> tuple[dict[Path, Path], dict[str, str]]:
    """Label by image, and where that of the first image without one is expected."""
    if lossy := next((path for path in labels.files if path.suffix.lower() in (".jpg", ".jpeg")), None):
        raise UserError(f"{name}: label {lossy} is a JPEG file, which does not keep ids; labels must be PNG files")
    found = images.partners(name, labels)
    if check and not found:
        (image, texts), (label, others) = next(iter(images.files.items())), next(iter(labels.files.items()))
        raise UserError(
            f"{name}: no label fits an image: the wildcards must stand for the same text, but they do for "
            f"{quoted(texts)} in the image {image} and for {quoted(others)} in the label {label}; change the "
            f"patterns {images.patterns[0].text} and {labels.patterns[0].text}"
        )
    lacking = next((path for path in images.files if path not in found), next(iter(images.files)))
    place = labels.patterns[0].fill(images.files[lacking])
    return found, {"label": f"{place}, or set unlabelled=drop to leave such images out"}


def _check_settings(
    name: str,
    root: Path,
    references: object,
    pairs: object,
    positions: object,
    max_distance: float | None,
    unpaired: str,
    unlabelled: str,
) -> None:
    check_unpaired(name, unpaired)
    check_distance(name, max_distance)
    if not root.is_dir():
        raise UserError(f"{name}: no folder {root}; check data_dir, {root} should hold the images")
    if unlabelled not in UNLABELLED:
        raise UserError(f"{name}: unlabelled is {unlabelled!r}; choose one of {', '.join(UNLABELLED)}")
    if pairs is not None and references is None:
        raise UserError(f"{name}: pairs={pairs} needs references, the pattern of the day images")
    if positions is not None and pairs != GPS:
        raise UserError(f"{name}: positions are for pairs={GPS}, but pairs is {pairs}")
    if positions is not None and (isinstance(positions, str) or len(positions) != 2):
        raise UserError(f"{name}: positions is {positions}, expected two CSV files, as [night.csv,day.csv]")


def _open_classes(name: str, classes: str | ClassSet, root: Path) -> tuple[ClassSet, np.ndarray | None]:
    """The label space and its table of ids, None where label files hold train ids."""
    if isinstance(classes, ClassSet):
        return classes, None
    if classes == CITYSCAPES.name:
        return CITYSCAPES, None
    if classes == CAMVID.name:
        ids = {index: index for index in range(len(CAMVID))}
        return CAMVID, id_table(CAMVID, {**ids, VOID_ID: CAMVID.ignore_index})
    expected = f"{CITYSCAPES.name}, {CAMVID.name}, or the path of a YAML file of classes"
    return read_classes(_existing(name, "classes", str(classes), root, expected))


def _mapping(name: str, classes: ClassSet, mapping: object) -> np.ndarray:
    """The table of ids that a setting ``mapping`` describes, (256,) uint8."""
    if mapping == LABEL_IDS and classes == CITYSCAPES:
        return label_ids_to_train_ids()
    if not isinstance(mapping, Mapping):
        raise UserError(
            f"{name}: mapping is {mapping!r}; expected null, {LABEL_IDS} (with classes={CITYSCAPES.name}), or "
            "train id or class name by id, such as {7: road, 8: 1}"
        )
    train_ids: dict[int, int] = {}
    for key, given in mapping.items():
        value = classes.names.index(given) if given in classes.names else given
        value = classes.ignore_index if value is None or value == IGNORE else value
        where = f"{name}: mapping {{{key}: {given}}}"
        if isinstance(value, str):
            raise UserError(f"{where} names no class; {closest(value, (*classes.names, IGNORE))}")
        if value not in (*range(len(classes)), classes.ignore_index) or isinstance(value, bool):
            raise UserError(f"{where} gives no train id; expected 0 to {len(classes) - 1} or {classes.ignore_index}")
        id_ = int(key) if isinstance(key, str) and key.isdecimal() else key
        if key == REST and value == classes.ignore_index:
            continue
        if not isinstance(id_, int) or isinstance(id_, bool) or not 0 <= id_ <= LAST_ID:
            raise UserError(f"{where} is for no id; expected an id from 0 to {LAST_ID}, or {REST}: {IGNORE}")
        train_ids[id_] = value
    return id_table(classes, train_ids, ignore_rest=REST in mapping)


def _existing(name: str, option: str, value: str, root: Path, expected: str) -> Path:
    """A file named from the working folder or from the root."""
    path = Path(value.replace("\\", "/")).expanduser()
    for candidate in (path, root / path):
        if candidate.is_file():
            return candidate
    raise UserError(f"{name}: {option}={value}: no such file here or in {root}; expected {expected}")


def _name(root: Path, patterns: Sequence[Pattern]) -> str:
    """A name that tells data sets in one folder apart: ``Folder yard day`` for ``day/**/*.jpg`` in ``yard``."""
    words = []
    for pattern in patterns:
        without_ending = re.sub(r"\.[^./]*$", "", pattern.text.replace("\\", "/"))
        words.append(" ".join(re.findall(r"[^\W_]+", " ".join(without_ending.split("/")[-4:]))))
    return f"Folder {plain(root).name} {'+'.join(words)}"[:_LONGEST_NAME].strip()
