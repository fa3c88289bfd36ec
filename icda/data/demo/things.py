"""The demo's movable things: cars, trucks, buses, trams, people, bicycles and motorcycles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from icda.data.classes import CITYSCAPES
from icda.data.demo.canvas import BLACK, PLAIN, Canvas, Colour, Paint, Texture
from icda.data.demo.light import TILES

ID = {name: index for index, name in enumerate(CITYSCAPES.names)}

CAR_COLOURS: tuple[Colour, ...] = (
    (0.75, 0.76, 0.78), (0.20, 0.21, 0.24), (0.55, 0.10, 0.12), (0.14, 0.25, 0.52), (0.88, 0.88, 0.88),
    (0.42, 0.44, 0.47), (0.10, 0.10, 0.11), (0.30, 0.36, 0.32), (0.62, 0.55, 0.42),
)  # fmt: skip
BUS_COLOURS: tuple[Colour, ...] = ((0.92, 0.72, 0.12), (0.78, 0.12, 0.14), (0.90, 0.45, 0.10))
TRAM_COLOURS: tuple[Colour, ...] = ((0.10, 0.30, 0.68), (0.08, 0.45, 0.28), (0.20, 0.22, 0.62))
TRUCK_COLOURS: tuple[Colour, ...] = ((0.15, 0.32, 0.60), (0.60, 0.14, 0.14), (0.18, 0.42, 0.30), (0.80, 0.78, 0.74))
CLOTHES: tuple[Colour, ...] = (
    (0.75, 0.15, 0.15), (0.15, 0.25, 0.55), (0.85, 0.82, 0.75), (0.18, 0.18, 0.20), (0.85, 0.65, 0.15),
    (0.35, 0.45, 0.30), (0.60, 0.30, 0.50),
)  # fmt: skip
SKIN: tuple[Colour, ...] = ((0.87, 0.70, 0.60), (0.74, 0.54, 0.42), (0.45, 0.31, 0.24))
GLASS: Colour = (0.16, 0.19, 0.23)
TYRE: Colour = (0.10, 0.10, 0.11)
HEADLIGHT: Colour = (11.0, 10.5, 9.0)
TAILLIGHT: Colour = (3.2, 0.25, 0.15)
PLANK = TILES.index("plank")


def choose(rng: np.random.Generator, colours: Sequence[Colour], spread: float = 0.04) -> Colour:
    """One of ``colours``, a little changed."""
    base = np.asarray(colours[rng.integers(len(colours))]) + rng.normal(0, spread, 3)
    red, green, blue = np.clip(base + rng.normal(0, spread), 0.03, 0.97)
    return float(red), float(green), float(blue)


@dataclass(frozen=True)
class Frame:
    """Place of a thing: its middle at (x, 0, z) metres, turned by ``yaw`` (0 drives away from the camera)."""

    x: float
    z: float
    yaw: float = 0.0

    def world(self, along: float | np.ndarray, up: float | np.ndarray, across: float | np.ndarray) -> np.ndarray:
        """World points of local ones (metres; forward, up, to the right), broadcast together, (..., 3)."""
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        x = self.x + across * cos + along * sin
        z = self.z + along * cos - across * sin
        points = np.empty((*np.shape(x + up), 3))
        points[..., 0], points[..., 1], points[..., 2] = x, up, z
        return points

    def sees(self, canvas: Canvas, along: float, across: float) -> bool:
        """Whether the camera looks at the face at (along, across) from the middle, with that outward direction."""
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        right, ahead = across * cos + along * sin, along * cos - across * sin
        eye_x, _, eye_z = canvas.camera.position
        return right * (eye_x - self.x - right) + ahead * (eye_z - self.z - ahead) > 0


def rectangle(left: float, bottom: float, right: float, top: float) -> np.ndarray:
    """Corners of a rectangle, (4, 2)."""
    return np.array([(left, bottom), (right, bottom), (right, top), (left, top)], np.float64)


def _circle(radius_x: float, radius_y: float, centre: tuple[float, float], corners: int = 14) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(angle) * radius_x + centre[0], np.sin(angle) * radius_y + centre[1]], axis=-1)


def hull(canvas: Canvas, frame: Frame, profile: np.ndarray, paints: Sequence[Paint], half: float, side: Paint) -> int:
    """Draw a profile (K, 2) of (along, up), extruded to both sides by ``half`` metres.

    ``paints[i]`` is for the face between corners i and i + 1 (counter-clockwise seen from the right: the bottom
    runs forwards). Returns the side that faces the camera, 1 for the right one and -1 for the left one.
    """
    eye = np.asarray(canvas.camera.position)
    following = np.roll(profile, -1, axis=0)
    middle = frame.world((profile[:, 0] + following[:, 0]) / 2, (profile[:, 1] + following[:, 1]) / 2, 0.0)
    turned = np.stack([following[:, 1] - profile[:, 1], profile[:, 0] - following[:, 0]], axis=-1)
    outward = frame.world(turned[:, 0], turned[:, 1], 0.0) - frame.world(0.0, 0.0, 0.0)
    visible = np.einsum("kc,kc->k", outward, eye - middle) > 0
    for index in np.argsort(-np.linalg.norm(middle - eye, axis=1)):
        if visible[index]:
            ends = np.stack([profile[index], following[index], following[index], profile[index]])
            canvas.polygon(frame.world(ends[:, 0], ends[:, 1], np.array([-half, -half, half, half])), paints[index])
    facing = 1 if frame.sees(canvas, 0, half) else -1
    if frame.sees(canvas, 0, facing * half):
        canvas.polygon(frame.world(profile[:, 0], profile[:, 1], facing * half), side)
    return facing


def on_side(canvas: Canvas, frame: Frame, outlines: Sequence[np.ndarray], across: float, paint: Paint) -> None:
    """Draw outlines of (along, up) on the side wall at ``across`` metres, if it faces the camera."""
    if frame.sees(canvas, 0, across):
        points = [frame.world(line[:, 0], line[:, 1], across * 1.004) for line in outlines]
        canvas.polygons(np.stack(points), paint)


def on_end(canvas: Canvas, frame: Frame, outlines: Sequence[np.ndarray], along: float, paint: Paint) -> None:
    """Draw outlines of (across, up) on the front (along > 0) or back wall, if it faces the camera."""
    if frame.sees(canvas, along, 0):
        points = [frame.world(along * 1.004, line[:, 1], line[:, 0]) for line in outlines]
        canvas.polygons(np.stack(points), paint)


def lights(canvas: Canvas, frame: Frame, label: int, length: float, half: float, height: float, on: bool) -> None:
    """Draw head and tail lights of a vehicle of ``length`` metres; they glow by night if ``on``."""
    left, right = (_circle(0.17, 0.12, (side * (half - 0.28), height), 10) for side in (-1, 1))
    head = Paint(label, (0.92, 0.92, 0.88), night=HEADLIGHT if on else BLACK)
    tail = Paint(label, (0.75, 0.08, 0.08), night=TAILLIGHT if on else BLACK)
    on_end(canvas, frame, [left, right], length / 2, head)
    on_end(canvas, frame, [left, right], -length / 2, tail)


def footprint(canvas: Canvas, frame: Frame, length: float, half: float) -> None:
    """Darken the ground below a vehicle."""
    ends = np.array([-1, 1, 1, -1]) * length / 2
    canvas.shadow(frame.world(ends, 0.0, np.array([-half, -half, half, half])), canvas.contact)


def wheels(canvas: Canvas, frame: Frame, label: int, places: Sequence[float], radius: float, across: float) -> None:
    """Draw wheels on the side at ``across`` metres."""
    on_side(canvas, frame, [_circle(radius, radius, (at, radius)) for at in places], across, Paint(label, TYRE))
    rims = [_circle(radius * 0.55, radius * 0.55, (at, radius)) for at in places]
    on_side(canvas, frame, rims, across * 1.01, Paint(label, (0.5, 0.5, 0.52)))


def car(canvas: Canvas, rng: np.random.Generator, frame: Frame, on: bool) -> None:
    """Draw a car; its lights are on if ``on``."""
    label, body = ID["car"], choose(rng, CAR_COLOURS)
    tall = rng.uniform(0.94, 1.16)
    estate = rng.random() < 0.4
    rear = -2.0 if estate else -1.65
    profile = np.array([
        (-2.1, 0.30), (2.1, 0.30), (2.15, 0.62), (2.0, 0.80), (1.0, 0.97), (0.3, 1.46),
        (-1.6 if estate else -1.2, 1.46), (rear, 1.0), (-2.12, 0.92),
    ]) * (1, tall)  # fmt: skip
    shell = Paint(label, body, gloss=0.05)
    glass = Paint(label, GLASS, gloss=0.14)
    dark = Paint(label, (0.08, 0.08, 0.09))
    paints = [dark, shell, shell, shell, glass, shell, glass, shell, shell]
    facing = hull(canvas, frame, profile, paints, 0.9, shell)
    cabin = np.array([(0.85, 0.98), (0.25, 1.38), (-0.35, 1.38), (-0.35, 0.98)]) * (1, tall)
    back = np.array([(-0.45, 0.98), (-0.45, 1.38), (rear + 0.5, 1.38), (rear + 0.25, 0.98)]) * (1, tall)
    on_side(canvas, frame, [cabin, back], facing * 0.9, glass)
    sill = rectangle(-2.05, 0.26, 2.05, 0.36)
    on_side(canvas, frame, [sill], facing * 0.9, dark)
    wheels(canvas, frame, label, (-1.35, 1.35), 0.34, facing * 0.91)
    on_end(canvas, frame, [rectangle(-0.85, 0.3, 0.85, 0.42)], -2.1, dark)
    on_end(canvas, frame, [rectangle(-0.8, 0.32, 0.8, 0.55)], 2.15, dark)
    on_end(canvas, frame, [rectangle(-0.26, 0.48, 0.26, 0.60)], -2.13, Paint(label, (0.9, 0.9, 0.85)))
    on_end(canvas, frame, [rectangle(-0.26, 0.40, 0.26, 0.51)], 2.17, Paint(label, (0.9, 0.9, 0.85)))
    lights(canvas, frame, label, 4.3, 0.9, 0.72, on)


def _long_vehicle(
    canvas: Canvas, frame: Frame, profile: np.ndarray, half: float, body: Paint, front: Paint, back: Paint
) -> int:
    dark = Paint(body.label, (0.08, 0.08, 0.09))
    paints = [dark, front, *[body] * (len(profile) - 3), back]
    return hull(canvas, frame, profile, paints, half, body)


def bus(canvas: Canvas, rng: np.random.Generator, frame: Frame, on: bool) -> None:
    """Draw a city bus: one strong colour, large windows, a lit board above the windscreen."""
    label, half, length, top = ID["bus"], 1.25, rng.uniform(9, 12), 3.0
    body = Paint(label, choose(rng, BUS_COLOURS, 0.02), gloss=0.05)
    inside = (0.75, 0.68, 0.50) if on else BLACK
    glass = Paint(label, GLASS, gloss=0.12, night=inside)
    profile = np.array([(-1, 0.35), (1, 0.35), (1, top), (-1, top)]) * (length / 2, 1)
    facing = _long_vehicle(canvas, frame, profile, half, body, body, body)
    count = int(length // 1.7)
    edges = np.linspace(-length / 2 + 0.4, length / 2 - 0.4, count + 1)
    panes = [rectangle(a + 0.08, 1.3, b - 0.08, 2.4) for a, b in pairwise(edges)]
    on_side(canvas, frame, panes, facing * half, glass)
    on_side(canvas, frame, [rectangle(-length / 2, 0.35, length / 2, 0.5)], facing * half, Paint(label, TYRE))
    wheels(canvas, frame, label, (-length / 2 + 2.2, length / 2 - 2.4), 0.48, facing * half)
    on_end(canvas, frame, [rectangle(-1.1, 1.05, 1.1, 2.45)], length / 2, Paint(label, GLASS, gloss=0.12))
    on_end(canvas, frame, [rectangle(-1.0, 1.4, 1.0, 2.35)], -length / 2, glass)
    board = Paint(label, (0.25, 0.16, 0.05), night=(3.0, 1.4, 0.2) if on else BLACK, day=(0.5, 0.25, 0.02))
    on_end(canvas, frame, [rectangle(-0.8, 2.56, 0.8, 2.86)], length / 2, board)
    lights(canvas, frame, label, length, half, 0.75, on)


def truck(canvas: Canvas, rng: np.random.Generator, frame: Frame, on: bool) -> None:
    """Draw a lorry: a coloured cab, a closed pale box without windows, higher than the cab."""
    label, half = ID["truck"], 1.2
    length, top = rng.uniform(6.5, 8.5), rng.uniform(3.3, 3.7)
    front, start = length / 2, length / 2 - 2.0
    cab_colour = choose(rng, TRUCK_COLOURS)
    cab = Paint(label, cab_colour, gloss=0.05)
    box = Paint(label, choose(rng, ((0.82, 0.82, 0.80), (0.70, 0.72, 0.74), (0.86, 0.82, 0.70)), 0.03), PLAIN)
    ribbed = Paint(label, box.colour, Texture(PLANK, 0.16, 0.10))
    dark = Paint(label, (0.09, 0.09, 0.10))
    box_profile = np.array([(-front, 0.95), (start - 0.2, 0.95), (start - 0.2, top), (-front, top)])
    cab_profile = np.array([(start, 0.45), (front, 0.45), (front, 1.5), (front - 0.25, 2.7), (start, 2.7)])
    glass = Paint(label, GLASS, gloss=0.12)
    parts = [
        lambda: hull(canvas, frame, box_profile, [dark, ribbed, box, ribbed], half, ribbed),
        lambda: hull(canvas, frame, cab_profile, [dark, cab, glass, cab, cab], half - 0.05, cab),
    ]
    frame_profile = rectangle(-front + 0.2, 0.5, start, 0.95)
    hull(canvas, frame, frame_profile, [dark] * 4, half - 0.2, dark)
    facing = 1
    for part in parts if frame.sees(canvas, front, 0) else parts[::-1]:
        facing = part()
    on_side(canvas, frame, [rectangle(start + 0.5, 1.55, front - 0.35, 2.4)], facing * (half - 0.05), glass)
    stripe = rectangle(-front + 0.4, 1.9, start - 0.6, 2.3)
    on_side(canvas, frame, [stripe], facing * half, Paint(label, cab_colour))
    wheels(canvas, frame, label, (-front + 1.3, front - 1.0), 0.5, facing * half)
    on_end(canvas, frame, [rectangle(-0.04, 1.0, 0.04, top - 0.1)], -front, dark)
    bars = [rectangle(at, 0.98, at + 0.4, 1.14) for at in np.arange(-1.15, 1.0, 0.8)]
    on_end(canvas, frame, bars, -front, Paint(label, (0.85, 0.15, 0.12), night=(0.5, 0.06, 0.04)))
    lights(canvas, frame, label, length, half, 0.75, on)


def tram(canvas: Canvas, rng: np.random.Generator, frame: Frame, on: bool) -> None:
    """Draw a tram (class train): cream above, a coloured skirt, one dark band of windows, a pantograph."""
    label, half, length = ID["train"], 1.25, rng.uniform(16, 24)
    end = length / 2
    skirt = choose(rng, TRAM_COLOURS, 0.02)
    cream = Paint(label, (0.86, 0.84, 0.74), gloss=0.05)
    colour = Paint(label, skirt, gloss=0.05)
    glass = Paint(label, (0.10, 0.12, 0.15), gloss=0.12)
    profile = np.array([
        (-end + 0.3, 0.25), (end - 0.3, 0.25), (end, 1.3), (end - 0.5, 2.7), (end - 1.0, 3.4), (-end + 1.0, 3.4),
        (-end + 0.5, 2.7), (-end, 1.3),
    ])  # fmt: skip
    dark = Paint(label, (0.08, 0.08, 0.09))
    paints = [dark, colour, glass, cream, cream, cream, glass, colour]
    facing = hull(canvas, frame, profile, paints, half, cream)
    low = np.array([(-end + 0.3, 0.25), (end - 0.3, 0.25), (end, 1.3), (-end, 1.3)])
    on_side(canvas, frame, [low], facing * half, colour)
    band = np.array([(-end + 0.15, 1.55), (end - 0.15, 1.55), (end - 0.45, 2.6), (-end + 0.45, 2.6)])
    on_side(canvas, frame, [band], facing * half, glass)
    panes = [rectangle(at, 1.62, at + 1.5, 2.53) for at in np.arange(-end + 1.0, end - 2.0, 1.8)]
    inside = (0.85, 0.85, 0.72) if on else BLACK
    on_side(canvas, frame, panes, facing * half, Paint(label, GLASS, gloss=0.12, night=inside))
    joints = [rectangle(at, 0.3, at + 0.35, 3.35) for at in (-end / 3, end / 3)]
    on_side(canvas, frame, joints, facing * half, dark)
    lights(canvas, frame, label, length, half, 0.95, on)


def _height(rng: np.random.Generator) -> float:
    return rng.uniform(1.6, 1.95)


def person(canvas: Canvas, rng: np.random.Generator, frame: Frame) -> None:
    """Draw somebody on foot."""
    label, tall = ID["person"], _height(rng) / 1.75
    foot = frame.world(0.0, 0.0, 0.0)
    trousers = Paint(label, choose(rng, ((0.15, 0.17, 0.25), (0.12, 0.12, 0.13), (0.45, 0.38, 0.28))))
    coat = Paint(label, choose(rng, CLOTHES))
    skin = Paint(label, choose(rng, SKIN, 0.02))
    stride = rng.uniform(0.08, 0.32) * rng.choice((-1, 1))
    canvas.shadow(
        frame.world(np.array([-0.3, 0.3, 0.3, -0.3]), 0.0, np.array([-0.3, -0.3, 0.3, 0.3])), canvas.contact
    )
    for side in (-1, 1):
        knee = (side * stride * 0.6, 0.48 * tall)
        leg = np.array([(side * 0.07, 0.95 * tall), knee, (side * stride, 0.05)])
        canvas.stroke(foot, leg, 0.19, trousers)
    torso = np.array([(-0.20, 0.85), (0.20, 0.85), (0.25, 1.35), (0.17, 1.5), (-0.17, 1.5), (-0.25, 1.35)])
    swing = rng.uniform(0.0, 0.15)
    for side in (-1, 1):
        arm = np.array([(side * 0.23, 1.40), (side * (0.31 + swing / 2), 1.12), (side * (0.26 + swing), 0.86)])
        canvas.stroke(foot, arm * (1, tall), 0.13, coat)
    canvas.billboard(foot, torso * (1, tall), coat)
    if rng.random() < 0.25:
        canvas.billboard(foot, rectangle(0.2, 0.65, 0.5, 1.0), Paint(label, choose(rng, CLOTHES)))
    canvas.disc(frame.world(0.0, 1.62 * tall, 0.0), 0.135, skin)
    canvas.billboard(foot, _circle(0.14, 0.09, (0.0, 1.70 * tall), 10), Paint(label, (0.2, 0.14, 0.1)))


def _seated(canvas: Canvas, rng: np.random.Generator, foot: np.ndarray, squash: float, helmet: bool) -> None:
    """Draw a rider whose saddle is above ``foot``; ``squash`` shortens everything along the way of travel."""
    label = ID["rider"]
    coat = Paint(label, choose(rng, CLOTHES))
    trousers = Paint(label, choose(rng, ((0.15, 0.17, 0.25), (0.12, 0.12, 0.13))))
    scale = (squash, 1)
    for side in (-1, 1):
        leg = np.array([(-0.15, 0.98), (0.22 + 0.1 * side, 0.72), (0.05 + 0.16 * side, 0.25)]) * scale
        canvas.stroke(foot, np.add(leg, (side * 0.13 * (1 - squash), 0)), 0.18, trousers)
    torso = np.array([(-0.34, 0.92), (0.02, 0.88), (0.32, 1.38), (0.20, 1.56), (-0.04, 1.48)]) * scale
    wide = (1 - squash) * 0.22
    torso[:, 0] += np.array([-wide, wide, wide, wide * 0.5, -wide])
    canvas.billboard(foot, torso, coat)
    for side in (-1, 1):
        arm = np.array([(0.18, 1.42), (0.32, 1.15), (0.50, 1.05)]) * scale
        arm[:, 0] += side * np.array([0.22, 0.32, 0.25]) * (1 - squash)
        canvas.stroke(foot, arm, 0.12, coat)
    head = np.add(foot, (0.26 * squash, 1.70, 0.0))
    canvas.disc(head, 0.14, Paint(label, choose(rng, SKIN, 0.02)))
    if helmet:
        dome = _circle(0.17, 0.13, (0.26 * squash, 1.76), 10)
        canvas.billboard(foot, dome, Paint(label, choose(rng, ((0.9, 0.9, 0.9), (0.8, 0.2, 0.1), (0.1, 0.1, 0.1)))))


def bicycle(canvas: Canvas, rng: np.random.Generator, frame: Frame, squash: float, ridden: bool) -> None:
    """Draw a bicycle, seen from its side (``squash`` 1) to along its way (0.1), with or without a rider."""
    label = ID["bicycle"]
    foot = frame.world(0.0, 0.0, 0.0)
    frame_paint = Paint(
        label, choose(rng, ((0.75, 0.15, 0.12), (0.1, 0.45, 0.55), (0.9, 0.85, 0.2), (0.9, 0.9, 0.9)))
    )
    tyre, spokes = Paint(label, TYRE), Paint(label, (0.36, 0.37, 0.38))
    for at in (-0.54, 0.54):
        centre = (at * squash, 0.35)
        canvas.billboard(foot, _circle(max(0.36 * squash, 0.07), 0.36, centre), tyre)
        canvas.billboard(foot, _circle(max(0.27 * squash, 0.02), 0.27, centre), spokes)
    scale = (squash, 1)
    for line in (
        [(-0.54, 0.35), (-0.18, 0.85), (0.38, 0.80), (0.54, 0.35)],
        [(-0.54, 0.35), (-0.02, 0.32), (0.38, 0.80), (0.36, 1.05), (0.50, 1.06)],
        [(-0.02, 0.32), (-0.2, 0.95)],
    ):
        canvas.stroke(foot, np.array(line) * scale, 0.085, frame_paint)
    canvas.stroke(foot, np.array([(-0.34, 0.98), (-0.08, 0.98)]) * scale, 0.10, tyre)
    bar = 0.28 * (1 - squash) + 0.05
    canvas.stroke(foot, np.add([(-bar, 1.05), (bar, 1.05)], (0.42 * squash, 0)), 0.08, tyre)
    if ridden:
        _seated(canvas, rng, foot, squash, helmet=rng.random() < 0.6)
        lamp = Paint(label, (0.9, 0.9, 0.8), night=(6.0, 6.0, 5.0))
        canvas.disc(np.add(foot, (0.55 * squash, 0.85, 0.0)), 0.06, lamp)


def motorcycle(canvas: Canvas, rng: np.random.Generator, frame: Frame, squash: float, ridden: bool) -> None:
    """Draw a motorcycle: fat black wheels, a coloured tank, a grey engine."""
    label = ID["motorcycle"]
    foot = frame.world(0.0, 0.0, 0.0)
    scale = (squash, 1)
    colour = Paint(
        label,
        choose(rng, ((0.80, 0.10, 0.08), (0.08, 0.16, 0.60), (0.85, 0.50, 0.05), (0.08, 0.35, 0.12))),
        gloss=0.1,
    )
    black, steel = Paint(label, TYRE), Paint(label, (0.50, 0.50, 0.52))
    for at in (-0.68, 0.70):
        centre = (at * squash, 0.33)
        canvas.billboard(foot, _circle(max(0.34 * squash, 0.12), 0.34, centre), black)
        canvas.billboard(foot, _circle(max(0.15 * squash, 0.03), 0.15, centre), steel)
    body = np.array([(-0.45, 0.25), (0.40, 0.25), (0.50, 0.62), (-0.55, 0.60)]) * scale
    body[:, 0] += np.array([-1, 1, 1, -1]) * 0.2 * (1 - squash)
    canvas.billboard(foot, body, steel)
    shell = np.array(
        [(-0.95, 0.72), (-0.60, 0.60), (0.55, 0.55), (0.72, 0.95), (0.45, 1.08), (0.05, 0.85), (-0.8, 0.88)]
    )
    shell = shell * scale
    shell[:, 0] += np.array([-1, -1, 1, 1, 1, -1, -1]) * 0.25 * (1 - squash)
    canvas.billboard(foot, shell, colour)
    seat = np.array([(-0.85, 0.84), (0.0, 0.80), (0.0, 0.92), (-0.85, 0.94)]) * scale
    canvas.billboard(foot, seat, black)
    canvas.stroke(foot, np.array([(0.70, 0.33), (0.42, 1.12)]) * scale, 0.10, steel)
    bar = 0.35 * (1 - squash) + 0.08
    canvas.stroke(foot, np.add([(-bar, 1.12), (bar, 1.12)], (0.42 * squash, 0)), 0.09, black)
    if ridden:
        _seated(canvas, rng, foot, squash, helmet=True)
    lamp = Paint(label, (0.92, 0.92, 0.85), night=HEADLIGHT if ridden else BLACK)
    canvas.disc(np.add(foot, (0.66 * squash, 0.92, 0.0)), 0.10, lamp)
