"""The demo's camera and canvas: polygons in metres become one buffer of surface ids.

A surface is a patch of one plane with one label, one colour and one glow. Drawing writes only its id, so that
image and label cannot disagree, and because the inverse depth of a plane is linear in the picture, the buffer
also gives the place in the world of every pixel, which the light needs (``icda.data.demo.light``).
World axes: x right, y up, z along the street, in metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np

from icda.data.classes import CITYSCAPES

OVERSAMPLING = 2
NEAR = 0.8
"""Nearest depth that is drawn, metres."""
GLOW_RANGE = 12.0
"""Largest glow that a surface can have, in units of a white, well lit wall."""
WHITE = np.iinfo(np.uint8).max

Colour = tuple[float, float, float]
BLACK: Colour = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the street.

    Args:
        position: World position (x, y, z), metres; y is its height above the road.
        yaw: Turn to the right, radians.
        focal: Focal length in picture widths.
        horizon: Row of the horizon in picture heights, 0 at the top.
        size: Picture (height, width), pixels.
    """

    position: Colour
    yaw: float
    focal: float
    horizon: float
    size: tuple[int, int]

    @cached_property
    def rotation(self) -> np.ndarray:
        """World to camera rotation, (3, 3)."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])

    @property
    def pixels(self) -> float:
        """Focal length in pixels."""
        return self.focal * self.size[1]

    @property
    def skyline(self) -> float:
        """Row of the horizon in pixels."""
        return self.horizon * self.size[0]

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """Camera coordinates of world points, (..., 3) metres to (..., 3) metres."""
        return (points - np.asarray(self.position)) @ self.rotation.T

    def project(self, points: np.ndarray) -> np.ndarray:
        """Picture positions (column, row) of points in camera coordinates with depth > 0, (..., 3) to (..., 2)."""
        flat = points[..., :2] * (self.pixels / points[..., 2:])
        flat[..., 1] *= -1
        return np.add(flat, (self.size[1] / 2, self.skyline))

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Camera coordinates at depth 1 of the pixel centres: x per column (W,) and y per row (H,), float32."""
        height, width = self.size
        columns = (np.arange(width) + 0.5 - width / 2) / self.pixels
        rows = (self.skyline - np.arange(height) - 0.5) / self.pixels
        return columns.astype(np.float32), rows.astype(np.float32)


class Texture(NamedTuple):
    """A tile of the texture atlas, its scale in tiles per metre and its strength in 0..1."""

    tile: int
    scale: float
    strength: float


PLAIN = Texture(0, 0.25, 0.10)


@dataclass(frozen=True)
class Paint:
    """What a surface looks like.

    Args:
        label: Train id of Cityscapes, or its ignore index.
        colour: Albedo as (r, g, b) in 0..1, gamma 2 (linear albedo is its square).
        texture: Texture that is multiplied onto the albedo.
        night: Linear light that the surface sends out by night.
        day: The same by day.
        normal: Normal for shading, where it is not that of the plane.
        gloss: Share of the sky that a window or a car's roof mirrors by day, 0..1.
    """

    label: int
    colour: Colour
    texture: Texture = PLAIN
    night: Colour = BLACK
    day: Colour = BLACK
    normal: Colour | None = None
    gloss: float = 0.0


@dataclass
class Canvas:
    """A buffer of surface ids, drawn from far to near (painter's algorithm).

    Surface 0 is the sky. ``ids`` is (OVERSAMPLING * H, OVERSAMPLING * W) uint16; ``contact`` and ``sunless`` are
    (H, W) uint8 and say where things keep the ground from the sky's light (below cars) and from the sun's.
    """

    camera: Camera
    ids: np.ndarray = field(init=False)
    contact: np.ndarray = field(init=False)
    sunless: np.ndarray = field(init=False)
    paints: list[Paint] = field(init=False)
    planes: list[np.ndarray] = field(init=False)
    directions: list[np.ndarray] = field(init=False)
    normals: list[np.ndarray | Colour] = field(init=False)

    def __post_init__(self) -> None:
        height, width = self.camera.size
        self.ids = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING), np.uint16)
        self.contact = np.zeros((height, width), np.uint8)
        self.sunless = np.zeros((height, width), np.uint8)
        self.paints = [Paint(CITYSCAPES.names.index("sky"), BLACK)]
        self.planes = [np.zeros(3)]
        self.directions = [np.zeros(3)]
        self.normals = [np.zeros(3)]
        # What faces the camera.
        self._forward = self.camera.rotation.T @ np.array([0.0, 0.0, -1.0])

    def add_surface(self, paint: Paint, point: np.ndarray, normal: np.ndarray) -> int:
        """Register a plane through ``point`` (camera coordinates) with ``normal`` (world); return its id."""
        facing = self.camera.rotation @ normal
        offset = float(facing @ point)
        if offset > 0:  # towards the camera
            normal, facing, offset = -normal, -facing, -offset
        self.planes.append(facing / min(offset, -1e-3))
        self.directions.append(normal)
        self.normals.append(normal if paint.normal is None else paint.normal)
        self.paints.append(paint)
        assert len(self.paints) <= np.iinfo(self.ids.dtype).max, len(self.paints)
        return len(self.paints) - 1

    def polygon(self, points: np.ndarray, paint: Paint) -> None:
        """Draw one flat polygon, (K, 3) world metres; what is nearer than ``NEAR`` is cut off."""
        cam = _clip_near(self.camera.to_camera(np.asarray(points, np.float64)))
        if len(cam) < 3:
            return
        normal = self._normal(cam)
        if normal is None:
            return
        surface = self.add_surface(paint, cam[0], normal)
        cv2.fillPoly(self.ids, [self._pixels(cam)], surface)

    def polygons(self, points: np.ndarray, paint: Paint) -> None:
        """Draw polygons that lie in one plane and do not overlap, (N, K, 3) world metres.

        A polygon that reaches nearer than ``NEAR`` is left out.
        """
        if len(points) == 0:
            return
        cam = self.camera.to_camera(np.asarray(points, np.float64))
        cam = cam[cam[..., 2].min(axis=1) > NEAR]
        if len(cam) == 0:
            return
        normal = self._normal(cam[0])
        if normal is not None:
            cv2.fillPoly(self.ids, list(self._pixels(cam)), self.add_surface(paint, cam[0, 0], normal))

    def billboard(self, foot: np.ndarray, outline: np.ndarray, paint: Paint) -> None:
        """Draw a polygon that faces the camera; ``outline`` (K, 2) is (right, up) in metres from ``foot``."""
        cam = self.camera.to_camera(np.asarray(foot, np.float64))
        if cam[2] < NEAR:
            return
        points = np.repeat(cam[None], len(outline), axis=0)
        points[:, :2] += outline
        surface = self.add_surface(paint, cam, self._forward)
        cv2.fillPoly(self.ids, [self._pixels(points)], surface)

    def disc(self, centre: np.ndarray, radius: float, paint: Paint) -> None:
        """Draw a disc that faces the camera; ``centre`` world metres, ``radius`` metres."""
        self.discs(np.asarray(centre, np.float64)[None], np.array([radius]), [paint])

    def discs(self, centres: np.ndarray, radii: np.ndarray, paints: Sequence[Paint]) -> None:
        """Draw N discs that face the camera, the first one first; ``centres`` (N, 3), ``radii`` (N,), metres."""
        cam = self.camera.to_camera(centres)
        if cam[:, 2].min() < NEAR:
            return
        sizes = np.maximum(1, np.rint(radii * (self.camera.pixels * OVERSAMPLING) / cam[:, 2])).astype(int).tolist()
        for point, at, size, paint in zip(cam, self._pixels(cam).tolist(), sizes, paints, strict=True):
            cv2.circle(self.ids, at, size, self.add_surface(paint, point, self._forward), cv2.FILLED)

    def stroke(self, foot: np.ndarray, line: np.ndarray, width: float, paint: Paint) -> None:
        """Draw an open line that faces the camera, (K, 2) metres from ``foot``, ``width`` metres thick."""
        cam = self.camera.to_camera(np.asarray(foot, np.float64))
        if cam[2] < NEAR:
            return
        points = np.repeat(cam[None], len(line), axis=0)
        points[:, :2] += line
        surface = self.add_surface(paint, cam, self._forward)
        thick = max(1, round(width * self.camera.pixels * OVERSAMPLING / cam[2]))
        cv2.polylines(self.ids, [self._pixels(points)], False, surface, thick)

    def screen(self, outline: np.ndarray, paint: Paint) -> None:
        """Draw a polygon given in picture widths and heights, (K, 2) in 0..1, just before the lens."""
        surface = self.add_surface(paint, np.array([0.0, 0.0, NEAR]), np.array([0.0, 0.6, -0.8]))
        scale = np.array(self.ids.shape[::-1])
        cv2.fillPoly(self.ids, [np.rint(outline * scale).astype(np.int32)], surface)

    def shadow(self, points: np.ndarray, layer: np.ndarray) -> None:
        """Darken the ground inside a polygon (K, 3) in ``layer``, which is ``contact`` or ``sunless``."""
        cam = _clip_near(self.camera.to_camera(np.asarray(points, np.float64)))
        if len(cam) >= 3:
            cv2.fillPoly(layer, [self._pixels(cam) // OVERSAMPLING], WHITE)

    def label(self) -> np.ndarray:
        """Train ids, (H, W) uint8."""
        table = np.array([paint.label for paint in self.paints], np.uint8)
        return table[self.surface_of_pixel()]

    def surface_of_pixel(self) -> np.ndarray:
        """Surface id of every pixel of the picture, (H, W) uint16."""
        return self.ids[1::OVERSAMPLING, 1::OVERSAMPLING]

    def _normal(self, cam: np.ndarray) -> np.ndarray | None:
        """Unit normal (world) of a polygon in camera coordinates; None where its first corners are in one line."""
        (ax, ay, az), (bx, by, bz) = (cam[1] - cam[0]).tolist(), (cam[2] - cam[0]).tolist()
        normal = np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
        length = float(normal @ normal) ** 0.5
        return None if length < 1e-9 else self.camera.rotation.T @ (normal / length)

    def _pixels(self, cam: np.ndarray) -> np.ndarray:
        return np.rint(self.camera.project(cam) * OVERSAMPLING - 0.5).clip(-30000, 30000).astype(np.int32)


def _clip_near(points: np.ndarray) -> np.ndarray:
    """The part of a polygon in camera coordinates with depth >= NEAR (Sutherland and Hodgman)."""
    if points[:, 2].min() >= NEAR:
        return points
    kept = []
    for this, following in zip(points, np.roll(points, -1, axis=0), strict=True):
        inside, next_inside = this[2] >= NEAR, following[2] >= NEAR
        if inside:
            kept.append(this)
        if inside != next_inside:
            kept.append(this + (following - this) * (NEAR - this[2]) / (following[2] - this[2]))
    return np.array(kept).reshape(-1, 3)
