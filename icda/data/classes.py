"""The classes of a label space: names, colours, the id that is ignored, and which classes are things.

A label space of one's own is a YAML file, for :func:`read_classes`::

    name: yard
    ignore_index: 255          # train id of pixels without a label; 255 unless given
    classes:
      - name: road
        color: [128, 64, 128]  # made where it is not given
        thing: false           # whether its objects can be counted; false unless given
        ids: [7, 14]           # ids in the label files that mean this class; its position unless given
      - name: car
    ignore_ids: [0, 2, 3]      # ids in the label files without a class; rest: all that are not named
"""

from __future__ import annotations

import colorsys
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from icda.errors import UserError

LAST_ID = 255
"""The largest id that a label file can hold."""
REST = "rest"
"""Stands for all ids that are not named."""

_FILE_KEYS = ("name", "classes", "ignore_index", "ignore_ids")
_CLASS_KEYS = ("name", "color", "thing", "ids")
_GOLDEN_RATIO = 0.618033988749895
_TONES = (
    (0.75, 0.95),
    (0.9, 0.6),
    (0.4, 0.85),
    (0.95, 0.4),
    (0.5, 0.6),
)  # saturation and value of made colours, in turn
_CANDIDATES = 1200  # colours to choose made ones from


@dataclass(frozen=True)
class ClassSet:
    """A label space. Train ids are ``0 .. len(classes) - 1``; ``ignore_index`` marks pixels without a label.

    Args:
        name: Name of the label space, for messages.
        names: One name per train id.
        palette: One (R, G, B) colour in 0..255 per train id.
        ignore_index: The train id of pixels that count nowhere, 0..255 and not a class.
        things: Train ids of countable objects; the feature distance (method section 7.3) looks only at these.
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    things: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.palette), (len(self.names), len(self.palette))
        assert not 0 <= self.ignore_index < len(self.names), (self.ignore_index, len(self.names))
        assert all(0 <= t < len(self.names) for t in self.things), (self.things, len(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def colorize(self, label: np.ndarray) -> np.ndarray:
        """Colours of a label map.

        Args:
            label: Train ids, (H, W), any integer type; ids that are not a class become black.

        Returns:
            RGB image, (H, W, 3) uint8.
        """
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.palette
        return table[label]


# cityscapesscripts/helpers/labels.py, train ids 0..18.
CITYSCAPES = ClassSet(
    name="cityscapes",
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
        (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    ignore_index=255,
    things=(6, 7, 11, 12, 13, 14, 15, 16, 17, 18),
)  # fmt: skip

# The 11 classes of the SegNet tutorial's CamVid; its void id is 11, which the adapter maps to 255.
CAMVID = ClassSet(
    name="camvid",
    names=(
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    ignore_index=255,
    things=(6, 8, 9, 10),
)  # fmt: skip


def read_classes(path: str | Path) -> tuple[ClassSet, np.ndarray | None]:
    """Read a label space from a YAML file, laid out as this module's description shows.

    Args:
        path: The file, UTF-8.

    Returns:
        The label space; and the train id of every id in a label file, (256,) uint8, or None if the file names no
        ids, so that label files hold train ids.

    Raises:
        UserError: If the file cannot be read, is not YAML, or describes no label space.
    """
    path = Path(path).expanduser()
    content = _load(path)
    _check_keys(path, "the file", content, _FILE_KEYS, required=("name", "classes"))
    entries = content["classes"]
    if not isinstance(entries, list):
        raise _faulty(path, f"classes is {entries!r:.60}, expected a list of classes")
    ignore_index = _id(path, "ignore_index", content.get("ignore_index", LAST_ID))
    if not 2 <= len(entries) <= LAST_ID:
        raise _faulty(path, f"there are {len(entries)} classes, expected 2 to {LAST_ID}")
    if ignore_index < len(entries):
        raise _faulty(
            path, f"ignore_index is {ignore_index}, the train id of a class; expected {len(entries)} or more"
        )
    entries = [_class_entry(path, f"classes[{index}]", entry) for index, entry in enumerate(entries)]
    names = [entry["name"] for entry in entries]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise _faulty(path, f"two classes have the name {doubled}; give each its own")
    classes = ClassSet(
        name=_text(path, "name", content["name"]),
        names=tuple(names),
        palette=_with_made_colors([entry["color"] for entry in entries]),
        ignore_index=ignore_index,
        things=tuple(index for index, entry in enumerate(entries) if entry["thing"]),
    )
    ignore_ids = content.get("ignore_ids")
    if ignore_ids is None and all(entry["ids"] is None for entry in entries):
        return classes, None
    return classes, _file_ids(path, classes, [entry["ids"] for entry in entries], ignore_ids)


def id_table(classes: ClassSet, train_ids: Mapping[int, int], ignore_rest: bool = False) -> np.ndarray:
    """Table from the ids in label files to train ids, for ``icda.data.io.read_label``.

    Args:
        classes: The label space.
        train_ids: Train id, or the ignore index, by id in the file, 0..255. The ignore index itself stays ignored
            where it is not among them.
        ignore_rest: Whether all other ids are ignored, too; False has them refused.

    Returns:
        (256,) uint8. Ids that are to be refused have a value that is neither a class nor the ignore index; with
        255 classes there is none, and they are ignored.
    """
    free = next((v for v in range(LAST_ID, len(classes) - 1, -1) if v != classes.ignore_index), classes.ignore_index)
    table = np.full(LAST_ID + 1, classes.ignore_index if ignore_rest else free, np.uint8)
    table[classes.ignore_index] = classes.ignore_index
    for file_id, train_id in train_ids.items():
        table[file_id] = train_id
    return table


def closest(name: object, known: Sequence[str]) -> str:
    """What a misspelt name may have meant, for messages.

    Args:
        name: What was given.
        known: What could have been given.
    """
    near = difflib.get_close_matches(str(name), known, 1, 0.6)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known[:30])}"


def _faulty(path: Path, reason: str) -> UserError:
    return UserError(f"class list {path}: {reason}")


def _load(path: Path) -> dict[Any, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError as error:
        raise _faulty(path, "there is no such file; give the path of a YAML file of classes") from error
    except OSError as error:  # OmegaConf raises one without a number where the content is a single value
        raise _faulty(path, f"it cannot be read: {error.strerror or 'it holds no keys name and classes'}") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise _faulty(path, f"it is not a YAML file that can be read: {error}") from error
    if not isinstance(content, dict):
        raise _faulty(path, "it holds a list; expected the keys name and classes, with the list under classes")
    return content


def _check_keys(
    path: Path, where: str, node: Mapping[Any, Any], known: Sequence[str], required: Sequence[str]
) -> None:
    for key in node:
        if key not in known:
            raise _faulty(path, f"{where} has the unknown key {key}; {closest(key, known)}")
    for key in required:
        if node.get(key) is None:
            raise _faulty(path, f"{where} has no {key}; it needs {' and '.join(required)}")


def _text(path: Path, where: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _faulty(path, f"{where} is {value!r}, expected a text; put it in quotes")
    return value.strip()


def _id(path: Path, where: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LAST_ID:
        raise _faulty(path, f"{where} is {value!r}, expected a whole number from 0 to {LAST_ID}")
    return value


def _class_entry(path: Path, where: str, entry: object) -> dict[str, Any]:
    """Name, colour, thing and ids of one class, checked; colour and ids are None where not given."""
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict):
        raise _faulty(path, f"{where} is {entry!r:.60}, expected a class, such as name: road")
    _check_keys(path, where, entry, _CLASS_KEYS, required=("name",))
    where = f"{where}, {_text(path, f'{where}.name', entry['name'])}:"
    color, thing, ids = entry.get("color"), entry.get("thing"), entry.get("ids")
    if color is not None:
        if not isinstance(color, list) or len(color) != 3:
            raise _faulty(path, f"{where} color is {color!r}, expected [red, green, blue]")
        color = tuple(_id(path, f"{where} a part of color", part) for part in color)
    if thing not in (None, False, True):
        raise _faulty(path, f"{where} thing is {thing!r}, expected true or false")
    if ids is not None:
        ids = [_id(path, f"{where} an id", value) for value in (ids if isinstance(ids, list) else [ids])]
    return {"name": entry["name"].strip(), "color": color, "thing": bool(thing), "ids": ids}


def _file_ids(path: Path, classes: ClassSet, ids: Sequence[list[int] | None], ignore_ids: object) -> np.ndarray:
    """The table of a class list that names ids; ``ids`` by class, None for a class that has its position."""
    train_ids: dict[int, int] = {}
    owner: dict[int, str] = {}

    def give(file_id: int, train_id: int, name: str) -> None:
        if file_id in owner:
            positions = " (a class without ids has its position as id)" if None in ids else ""
            raise _faulty(path, f"the id {file_id} is given twice, to {owner[file_id]} and to {name}{positions}")
        train_ids[file_id], owner[file_id] = train_id, name

    for train_id, (name, own) in enumerate(zip(classes.names, ids, strict=True)):
        for file_id in [train_id] if own is None else own:
            give(file_id, train_id, name)
    if ignore_ids is not None and ignore_ids != REST:
        if not isinstance(ignore_ids, list):
            raise _faulty(path, f"ignore_ids is {ignore_ids!r}, expected a list of ids, or {REST}")
        for file_id in dict.fromkeys(_id(path, "one of ignore_ids", value) for value in ignore_ids):
            give(file_id, classes.ignore_index, "ignore_ids")
    return id_table(classes, train_ids, ignore_rest=ignore_ids == REST)


def _with_made_colors(colors: Sequence[tuple[int, int, int] | None]) -> tuple[tuple[int, int, int], ...]:
    """Fill in missing colours: of hues a golden ratio apart, the one farthest from all others and from black."""
    made = np.array([_made_color(index) for index in range(_CANDIDATES)])
    distances = np.full(_CANDIDATES, np.inf)

    def take(color: Sequence[int]) -> None:
        np.minimum(distances, np.linalg.norm(made - np.asarray(color), axis=1), out=distances)

    for color in [(0, 0, 0), *(color for color in colors if color is not None)]:
        take(color)
    filled = []
    for color in colors:
        if color is None:
            color = tuple(made[distances.argmax()].tolist())
            take(color)
        filled.append(color)
    return tuple(filled)


def _made_color(index: int) -> tuple[int, int, int]:
    saturation, value = _TONES[index % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1, saturation, value)
    return round(red * LAST_ID), round(green * LAST_ID), round(blue * LAST_ID)
