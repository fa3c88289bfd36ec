"""Which day image shows the place of a night image: read from lists, or found by position.

A data set takes its day references from list files of two columns ``night,day``, from the positions of both drives
(the nearest day image is taken), from its own rule for file names, or it has none.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from icda.data.io import IMAGE_ENDINGS
from icda.data.prepared import whole_file
from icda.errors import UserError

UNPAIRED = ("drop", "keep", "error")
"""What may become of images without a day reference."""
EARTH_RADIUS = 6_371_008.8
"""Mean radius of the earth in metres."""
TIE = 1e-3
"""Metres; day positions whose distances differ by no more are equally near. Far below what GPS can tell."""
_BLOCK = 2**19  # elements of the largest temporary array


@dataclass(frozen=True)
class Positions:
    """Where images were taken.

    Args:
        keys: Key of each image, as in the files without the image ending.
        latitude: (N,) float64, degrees north.
        longitude: (N,) float64, degrees east.
        skipped: Number of rows in the files that hold no position, headers among them.
    """

    keys: tuple[str, ...]
    latitude: np.ndarray
    longitude: np.ndarray
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, keys: Iterable[str]) -> Positions:
        """The positions of these keys, in their order; keys that have none are left out.

        Args:
            keys: Keys as the data set has them. Each is looked up whole or, where it is not found, by its last part
                (the file's name), if only one position has that.
        """
        whole: dict[str, int] = {}
        last: dict[str, list[int]] = {}
        for i, key in enumerate(self.keys):
            if whole.setdefault(key, i) == i:  # of a key that comes twice, the first position counts
                last.setdefault(_last(key), []).append(i)
        found: dict[str, int] = {}
        for key in keys:
            candidates = [whole[key]] if key in whole else last.get(_last(key), [])
            if len(candidates) == 1:
                found[key] = candidates[0]
        rows = np.fromiter(found.values(), dtype=np.intp, count=len(found))
        return Positions(tuple(found), self.latitude[rows], self.longitude[rows], self.skipped)


@dataclass(frozen=True)
class Match:
    """The day image nearest to a night image.

    Args:
        night: Key of the night image.
        day: Key of the nearest day image; None if that is beyond reach.
        distance: To the nearest day image, metres; infinite if there are no day images.
    """

    night: str
    day: str | None
    distance: float


def read_pairs(name: str, file: str | Path, endings: Sequence[str] = ()) -> list[tuple[int, str, str]]:
    """Read a list of pairs: a CSV file of two columns ``night,day``, as ``zurich_dn_pair_train.csv`` or ``corresp``.

    Empty lines and a first line ``night,day`` are passed over. Keys come back with ``/`` and without image ending.

    Args:
        name: Name of the data set, for messages.
        file: The list.
        endings: Ends of file names that are removed from keys besides ``.png``, ``.jpg`` and ``.jpeg``.

    Returns:
        Line number (from 1), key of the night image and key of the day image of every pair, in the file's order.

    Raises:
        UserError: If the file cannot be read or a line has not two columns.
    """
    pairs = []
    for line, row in _rows(name, Path(file), "list of pairs"):
        if not pairs and [cell.lower() for cell in row] == ["night", "day"]:
            continue
        if len(row) != 2 or not all(row):
            raise UserError(
                f"{name}: {file}, line {line} is {','.join(row)[:200]!r}; expected two columns night,day, such as "
                "train/night/<sequence>/<frame>,train/day/<sequence>/<frame>"
            )
        night, day = (_key(cell, endings) for cell in row)
        pairs.append((line, night, day))
    return pairs


def write_pairs(file: str | Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Write a list of pairs that :func:`read_pairs` reads, whole or not at all. Missing folders are made.

    Args:
        file: Where to write; a file that is there is replaced.
        pairs: Key of the night image and key of the day image, in the order of the lines.

    Raises:
        UserError: If a key cannot stand in a list, or the file cannot be written.
    """
    file = Path(file)
    rows = [tuple(pair) for pair in pairs]
    for row in rows:
        if any(key != key.strip() or not key or len(key.splitlines()) != 1 for key in row):
            raise UserError(f"{file}: {row} cannot stand in a list of pairs; rename the file: no spaces at its ends")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    try:
        with whole_file(file) as stream:
            stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise UserError(f"cannot write the list of pairs {file}: {error.strerror}") from error


def references_from_lists(
    name: str,
    files: Sequence[Path],
    night: Mapping[str, Path],
    day: Mapping[str, Path],
    endings: Sequence[str] = (),
    check: bool = True,
) -> tuple[dict[str, Path], int]:
    """Day image of each night image that lists of pairs name.

    Args:
        name: Name of the data set, for messages.
        files: The lists.
        night: File of each night image, by its key in the lists.
        day: File of each day image, by its key in the lists.
        endings: See :func:`read_pairs`.
        check: Whether a line that names a missing file is refused; False passes it over and counts it.

    Returns:
        Day image by the key of the night image, and the number of lines passed over.

    Raises:
        UserError: If a list cannot be read, names a missing file, or pairs a night image with two day images.
    """
    found: dict[str, Path] = {}
    passed_over = 0
    for file in files:
        for line, night_key, day_key in read_pairs(name, file, endings):
            lacking = "night" if night_key not in night else "day" if day_key not in day else None
            if lacking and check:
                raise UserError(
                    f"{name}: {file}, line {line} names a {lacking} image that is missing: "
                    f"{night_key if lacking == 'night' else day_key}; unzip the whole package, or correct the line"
                )
            if lacking:
                passed_over += 1
            elif found.setdefault(night_key, day[day_key]) != day[day_key]:
                raise UserError(
                    f"{name}: {file}, line {line} pairs {night_key} a second time, with another day image: {day_key} "
                    f"and {found[night_key]}; keep one of them"
                )
    return found, passed_over


def read_positions(name: str, files: Iterable[str | Path], endings: Sequence[str] = ()) -> Positions:
    """Read positions from CSV files of the columns key, latitude, longitude; further columns are left aside.

    Rows whose second and third column are no degrees, such as a header or a gap in the record, are passed over.

    Args:
        name: Name of the data set, for messages.
        files: The files.
        endings: See :func:`read_pairs`.

    Returns:
        The positions in the order of files and rows.

    Raises:
        UserError: If a file cannot be read.
    """
    keys, values, skipped = [], [], 0
    for file in files:
        for _, row in _rows(name, Path(file), "file of positions"):
            try:
                latitude, longitude = float(row[1]), float(row[2])
            except (IndexError, ValueError):
                skipped += 1
                continue
            # Written this way round, "not a number" is skipped as well.
            if row[0] and abs(latitude) <= 180 and abs(longitude) <= 180:
                keys.append(_key(row[0], endings))
                values.append((latitude, longitude))
            else:
                skipped += 1
    degrees = np.array(values, dtype=np.float64).reshape(-1, 2)
    return Positions(tuple(keys), degrees[:, 0], degrees[:, 1], skipped)


def nearest(night: Positions, day: Positions, max_distance: float | None = None) -> list[Match]:
    """The day image nearest to each night image, by great-circle distance (haversine formula).

    Args:
        night: Where the night images were taken.
        day: Where the day images were taken.
        max_distance: Metres; a day image farther away is not matched. None sets no limit.

    Returns:
        One match per night position, in their order. Of equally near day images (``TIE``) the one with the smallest
        key is taken.

    Raises:
        UserError: If ``max_distance`` is no positive number, or a latitude is beyond the poles.
    """
    check_distance("pairs from positions", max_distance)
    for key, latitude in ((k, x) for side in (night, day) for k, x in zip(side.keys, side.latitude, strict=True)):
        if abs(latitude) > 90:
            raise UserError(f"the position of {key} has latitude {latitude}; expected columns key,latitude,longitude")
    if not len(day):
        return [Match(key, None, math.inf) for key in night.keys]
    order = sorted(range(len(day)), key=day.keys.__getitem__)  # so that the first of equally near ones is taken
    latitude, longitude = np.radians(day.latitude[order]), np.radians(day.longitude[order])
    cosine = np.cos(latitude)
    chosen, distances = np.empty(len(night), dtype=np.intp), np.empty(len(night))
    rows = max(1, _BLOCK // len(day))
    for start in range(0, len(night), rows):
        block = slice(start, start + rows)
        phi, theta = (np.radians(angle[block])[:, None] for angle in (night.latitude, night.longitude))
        # hav is the haversine of the angle between the two places: (rows, N)
        hav = np.sin((latitude - phi) / 2) ** 2 + np.cos(phi) * cosine * np.sin((longitude - theta) / 2) ** 2
        least = 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.minimum(hav.min(axis=1), 1)))
        reach = np.sin(np.minimum((least + TIE) / (2 * EARTH_RADIUS), np.pi / 2)) ** 2
        chosen[block] = (hav <= reach[:, None]).argmax(axis=1)
        distances[block] = least
    limit = math.inf if max_distance is None else max_distance
    return [
        Match(key, day.keys[order[i]] if distance <= limit else None, distance)
        for key, i, distance in zip(night.keys, chosen.tolist(), distances.tolist(), strict=True)
    ]


def describe_distances(matches: Sequence[Match]) -> str:
    """How far away the nearest day images are: number, smallest, median, 90 %, largest, and how many beyond reach.

    Args:
        matches: What :func:`nearest` found.

    Returns:
        One line; distances in metres.
    """
    distances = np.array([match.distance for match in matches if math.isfinite(match.distance)])
    if not distances.size:
        return f"{len(matches)} positions, none with a day position to compare with"
    low, median, ninety, high = np.percentile(distances, (0, 50, 90, 100))
    beyond = sum(match.day is None for match in matches)
    return (
        f"{len(matches)} positions, nearest day image at {low:.1f} to {high:.1f} m, median {median:.1f} m, "
        f"90 % within {ninety:.1f} m, {beyond} beyond reach"
    )


def apply_unpaired(
    name: str, images: Mapping[str, Path], references: Mapping[str, Path], unpaired: str
) -> tuple[dict[str, Path], int]:
    """Decide what becomes of images without a day reference.

    Args:
        name: Name of the data set, for messages.
        images: File of each image, by key.
        references: Day reference by the key of its image.
        unpaired: ``drop`` leaves such images out, ``keep`` keeps them without reference, ``error`` refuses them.

    Returns:
        The images that remain, in their order, and how many had no reference.

    Raises:
        UserError: If ``unpaired`` is unknown, ``error`` is set and an image has no reference, or ``drop`` is set and
            none has.
    """
    check_unpaired(name, unpaired)
    without = [key for key in images if key not in references]
    if without and unpaired == "error":
        raise UserError(
            f"{name}: {len(without)} of {len(images)} images have no day reference, the first is "
            f"{images[without[0]]}; complete the pairs, or set unpaired=drop (they are left out) or unpaired=keep"
        )
    if without and unpaired == "drop" and len(without) == len(images):
        raise UserError(
            f"{name}: none of the {len(images)} images has a day reference; check the pairs (of gps: max_distance) "
            "or the reference images, or set unpaired=keep"
        )
    kept = {key: path for key, path in images.items() if unpaired == "keep" or key in references}
    return kept, len(without)


def describe_unpaired(images: Mapping[str, Path], references: Mapping[str, Path], unpaired: str) -> str:
    """What ``apply_unpaired`` does to images without a day reference, to follow another text; empty if all have one.

    Args:
        images: File of each image, by key.
        references: Day reference by the key of its image.
        unpaired: ``drop``, ``keep`` or ``error``.
    """
    without = [path for key, path in images.items() if key not in references]
    if not without:
        return ""
    what = {"drop": "left out", "keep": "kept; theirs are made from themselves"}.get(unpaired, "not to be")
    return f"; {len(without)} of {len(images)} images have none and are {what}, the first is {without[0]}"


def check_unpaired(name: str, unpaired: str) -> None:
    """Refuse a value of the setting ``unpaired`` that is not in ``UNPAIRED``.

    Raises:
        UserError: If it is not.
    """
    if unpaired not in UNPAIRED:
        raise UserError(f"{name}: unpaired is {unpaired!r}; choose one of {', '.join(UNPAIRED)}")


def check_distance(name: str, max_distance: float | None) -> None:
    """Refuse a largest distance that is no positive number of metres; None is no limit.

    Raises:
        UserError: If it is not.
    """
    number = isinstance(max_distance, int | float) and not isinstance(max_distance, bool)
    if max_distance is not None and not (number and max_distance > 0):
        raise UserError(f"{name}: max_distance is {max_distance!r}; expected metres above 0, or null for no limit")


def compare_pairs(
    first: Mapping[str, str], second: Mapping[str, str], names: tuple[str, str] = ("the first", "the second")
) -> str:
    """How two pairings of the same night images differ.

    Args:
        first: Key of the day image by key of the night image.
        second: The same, from another source.
        names: What to call the two.

    Returns:
        One line: the numbers of night images with equal day images, with different ones, and in one pairing only.
    """
    both = [key for key in first if key in second]
    differing = [key for key in both if first[key] != second[key]]
    line = (
        f"{len(both) - len(differing)} night images have the same day image in both, {len(differing)} another, "
        f"{len(first) - len(both)} are only in {names[0]}, {len(second) - len(both)} only in {names[1]}"
    )
    if differing:
        night = min(differing)
        line += f"; such as {night}: {first[night]} in {names[0]}, {second[night]} in {names[1]}"
    return line


def _rows(name: str, file: Path, what: str) -> list[tuple[int, list[str]]]:
    """Line number and stripped cells of every row of a CSV file that is not empty."""
    try:
        # Names on disk need not be UTF-8; Python writes such bytes as surrogates, and so does this.
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.reader(stream)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, csv.Error) as error:
        raise UserError(f"{name}: cannot read the {what} {file}: {error}") from error
    return [(line, row) for line, row in rows if any(row)]


def _key(cell: str, endings: Sequence[str]) -> str:
    """A key as ``list_files`` gives it: ``/`` between folders, no image ending."""
    key = cell.replace("\\", "/").removeprefix("./").lstrip("/")
    ending = next((e for e in (*endings, *IMAGE_ENDINGS) if key.lower().endswith(e.lower())), "")
    return key[: len(key) - len(ending)]


def _last(key: str) -> str:
    return key.rsplit("/", 1)[-1]
