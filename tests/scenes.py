"""Small drawn street scenes with labels, for the trees of ``trees.py``."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import id2label, name2label
from PIL import Image, ImageDraw

SIZE = (64, 128)
DAY, NIGHT = 1.0, 0.25  # how bright a picture is
TRAIN_IDS = np.array([id2label[i].trainId for i in range(34)], np.uint8)
COLORS = np.array([id2label[i].color for i in range(34)], np.uint8)

_OBJECTS = (
    "car", "car", "person", "traffic sign", "pole", "wall", "fence", "traffic light", "terrain", "rider", "truck",
    "bus", "train", "motorcycle", "bicycle", "polegroup",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One place: rectangles of Cityscapes objects, painted in order, and smooth noise over them.

    Args:
        size: Height and width.
        objects: Name (Cityscapes) and left, top, right, bottom of each, inclusive.
        noise: (H, W, 3) float32 about 0.
    """

    size: tuple[int, int]
    objects: tuple[tuple[str, tuple[int, int, int, int]], ...]
    noise: np.ndarray

    @property
    def label_ids(self) -> np.ndarray:
        """Official label ids, (H, W) uint8."""
        return self._painted([name2label[name].id for name, _ in self.objects]).astype(np.uint8)

    @property
    def instance_ids(self) -> np.ndarray:
        """Official instance ids, (H, W) uint16."""
        seen: dict[str, int] = {}
        ids = []
        for name, _ in self.objects:
            label = name2label[name]
            ids.append(label.id * 1000 + seen.get(name, 0) if label.hasInstances else label.id)
            seen[name] = seen.get(name, 0) + 1
        return self._painted(ids).astype(np.uint16)

    @property
    def polygons(self) -> str:
        """The official JSON text."""
        height, width = self.size
        objects = [
            {"label": name, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}
            for name, (x0, y0, x1, y1) in self.objects
        ]
        return json.dumps({"imgHeight": height, "imgWidth": width, "objects": objects})

    def _painted(self, ids: Sequence[int]) -> np.ndarray:
        picture = Image.new("I", self.size[::-1], 0)
        draw = ImageDraw.Draw(picture)
        for (_, box), value in zip(self.objects, ids, strict=True):
            if value >= 0:  # as cityscapesscripts: a licence plate keeps the id of its car
                draw.rectangle(box, fill=value)
        return np.array(picture)

    def picture(self, light: float = DAY) -> np.ndarray:
        """RGB image, (H, W, 3) uint8; ``light`` scales its brightness."""
        day = cv2.GaussianBlur(COLORS[self.label_ids].astype(np.float32), (5, 5), 0) * 0.6 + 60 + self.noise
        return np.clip(day * light, 0, 255).astype(np.uint8)

    def invalid(self) -> np.ndarray:
        """What nobody can make out at night: where the noise is darkest. (H, W) bool."""
        return self.noise.mean(axis=-1) < np.quantile(self.noise.mean(axis=-1), 0.15)


def scene(key: str, size: tuple[int, int] = SIZE, seed: int = 0) -> Scene:
    """The scene of a place: sky, building, vegetation, road, pavement, the own car, and objects drawn for it."""
    height, width = size
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])

    def box(left: float, top: float, right: float, bottom: float) -> tuple[int, int, int, int]:
        x0, y0 = round(left * width), round(top * height)
        return x0, y0, max(x0, round(right * width) - 1), max(y0, round(bottom * height) - 1)

    edge, horizon = rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.6)
    objects = [
        ("sky", box(0, 0, 1, 0.5)),
        ("building", box(0, 0.1, edge, horizon)),
        ("vegetation", box(edge, 0.2, 1, horizon)),
        ("sidewalk", box(0, horizon, 1, horizon + 0.12)),
        ("road", box(0, horizon + 0.12, 1, 1)),
    ]
    for name in rng.choice(_OBJECTS, 5, replace=False):
        left, top = rng.uniform(0, 0.8), rng.uniform(0.3, 0.6)
        objects.append((str(name), box(left, top, left + rng.uniform(0.1, 0.2), top + rng.uniform(0.2, 0.3))))
        if name == "car":
            objects.append(("license plate", box(left + 0.03, top + 0.1, left + 0.08, top + 0.15)))
    objects.append(("ego vehicle", box(0, 0.94, 1, 1)))
    rows, columns = max(2, height // 12), max(2, width // 12)
    coarse = rng.normal(0, 20, (rows, columns, 1)) + rng.normal(0, 5, (rows, columns, 3))
    noise = cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return Scene(size, tuple(objects), noise)
