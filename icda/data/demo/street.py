"""The demo's static things: buildings, walls, fences, trees, lamps, signs, traffic lights, and the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icda.data.classes import CITYSCAPES
from icda.data.demo.canvas import BLACK, PLAIN, Canvas, Colour, Paint, Texture
from icda.data.demo.light import TILES
from icda.data.demo.things import ID, choose, rectangle

BRICK, SLAB, LEAF, ASPHALT, PLANK, STONE = (
    TILES.index(name) for name in ("brick", "slab", "leaf", "asphalt", "plank", "stone")
)
GREENS: tuple[Colour, ...] = ((0.24, 0.38, 0.15), (0.30, 0.42, 0.16), (0.20, 0.34, 0.18), (0.36, 0.42, 0.18))
WINDOW_LIGHTS: tuple[Colour, ...] = ((1.1, 0.75, 0.36), (0.9, 0.75, 0.5), (0.65, 0.75, 0.85), (0.5, 0.3, 0.12))
GREY: Colour = (0.42, 0.44, 0.45)
FAR = 90.0


@dataclass(frozen=True)
class Road:
    """Places of the street's strips, metres to the right of the ego lane's middle, from left to right."""

    line_left: float
    curb_left: float
    curb_right: float
    line_right: float
    tram_lane: bool
    verge_left: bool
    verge_right: bool


def strip(left: float, right: float, near: float, far: float, height: float = 0.0) -> np.ndarray:
    """A flat rectangle on the ground, (4, 3)."""
    return np.array([(left, height, near), (right, height, near), (right, height, far), (left, height, far)])


def upright(x0: float, z0: float, x1: float, z1: float, bottom: float, top: float) -> np.ndarray:
    """A vertical rectangle above the ground line from (x0, z0) to (x1, z1), (4, 3)."""
    return np.array([(x0, bottom, z0), (x1, bottom, z1), (x1, top, z1), (x0, top, z0)])


def ground(canvas: Canvas, rng: np.random.Generator, road: Road) -> None:
    """Draw road, markings, rails, curbs, pavements and verges."""
    tone = rng.uniform(0.36, 0.44)
    asphalt = Paint(ID["road"], (tone, tone, tone + 0.01), Texture(ASPHALT, 0.35, 0.10))
    paving = Paint(ID["sidewalk"], choose(rng, ((0.66, 0.62, 0.58), (0.62, 0.60, 0.58), (0.68, 0.60, 0.54)), 0.015),
                   Texture(SLAB, 0.5, 0.13))  # fmt: skip
    curb = Paint(ID["sidewalk"], (0.74, 0.73, 0.71))
    grass = Paint(
        ID["terrain"], choose(rng, ((0.44, 0.47, 0.20), (0.50, 0.46, 0.24)), 0.02), Texture(LEAF, 0.6, 0.22)
    )
    canvas.polygon(strip(-200, 200, 0.1, 390), asphalt)
    for line, edge, verge in (
        (road.line_left, road.curb_left, road.verge_left), (road.line_right, road.curb_right, road.verge_right)
    ):  # fmt: skip
        canvas.polygon(strip(line, edge, 0.1, FAR), paving)
        inner = edge + np.sign(line) * 0.18
        if verge:
            canvas.polygon(strip(inner, inner + np.sign(line) * 1.5, 0.1, FAR), grass)
        canvas.polygon(strip(inner, edge, 0.1, FAR), curb)
    white = Paint(ID["road"], (0.86, 0.86, 0.84), Texture(ASPHALT, 0.35, 0.06))
    dashes = [strip(-1.72, -1.56, at, at + 3.0) for at in np.arange(rng.uniform(1, 5), 60, 6.0)]
    canvas.polygons(np.stack(dashes), white)
    if rng.random() < 0.35:
        near = rng.uniform(9, 17)
        bars = [strip(at, at + 0.5, near, near + 3.0) for at in np.arange(-4.6, 1.5, 1.0)]
        canvas.polygons(np.stack(bars), white)
    if rng.random() < 0.6:
        canvas.polygon(strip(road.curb_right - 0.45, road.curb_right - 0.33, 0.1, FAR), white)
    if road.tram_lane:
        rail = Paint(ID["road"], (0.24, 0.22, 0.21))
        for at in (-7.3, -5.85):
            canvas.polygon(strip(at - 0.09, at + 0.09, 0.1, FAR), rail)
    if rng.random() < 0.5:  # a patch of newer asphalt
        at, left = rng.uniform(5, 20), rng.uniform(-3, 0)
        dark = Paint(ID["road"], (tone - 0.07,) * 3, asphalt.texture)
        canvas.polygon(strip(left, left + rng.uniform(0.8, 2.0), at, at + rng.uniform(3, 9)), dark)


def building(
    canvas: Canvas, rng: np.random.Generator, x: float, near: float, far: float, palette: tuple[Colour, ...]
) -> None:
    """Draw a house whose front is the plane at ``x``, from depth ``near`` to ``far``."""
    side = np.sign(x)
    floors = int(rng.integers(2, 6))
    top = 3.6 + 3.0 * (floors - 1) + rng.uniform(0.2, 0.8)
    wall_colour = choose(rng, palette, 0.03)
    texture = Texture(BRICK, 0.4, 0.16) if rng.random() < 0.35 else Texture(0, 0.12, 0.08)
    wall = Paint(ID["building"], wall_colour, texture)
    roof = Paint(ID["building"], choose(rng, ((0.48, 0.24, 0.18), (0.36, 0.30, 0.28), (0.30, 0.31, 0.34))),
                 Texture(PLANK, 0.3, 0.12))  # fmt: skip
    depth = 10.0
    canvas.polygon(
        np.array([(x, top, near), (x, top, far), (x + side * 4, top + 3, far), (x + side * 4, top + 3, near)]), roof
    )
    gable = np.array([(x, 0, near), (x, top, near), (x + side * 4, top + 3, near), (x + side * depth, top + 1, near),
                      (x + side * depth, 0, near)])  # fmt: skip
    canvas.polygon(gable, Paint(ID["building"], wall_colour, texture))
    canvas.polygon(upright(x, near, x, far, 0, top), wall)
    trim = Paint(ID["building"], tuple(min(1.0, c * 1.15 + 0.03) for c in wall_colour))
    canvas.polygon(upright(x, near, x, far, top - 0.35, top), trim)
    canvas.polygon(upright(x, near, x, far, 3.35, 3.6), trim)
    _windows(canvas, rng, x, near, far, floors)
    _gable_windows(canvas, rng, x, near, side, floors)
    _ground_floor(canvas, rng, x, near, far)


def _glass(rng: np.random.Generator, lit: bool) -> Paint:
    light = WINDOW_LIGHTS[rng.integers(len(WINDOW_LIGHTS))] if lit else BLACK
    strength = rng.uniform(0.3, 1.0)
    return Paint(ID["building"], (0.22, 0.25, 0.30), PLAIN, night=tuple(c * strength for c in light), gloss=0.25)


def _windows(canvas: Canvas, rng: np.random.Generator, x: float, near: float, far: float, floors: int) -> None:
    pitch, wide, tall = rng.uniform(2.0, 2.8), rng.uniform(1.0, 1.35), rng.uniform(1.5, 1.9)
    count = max(1, int((far - near) // pitch))
    starts = near + (far - near - count * pitch) / 2 + pitch * np.arange(count) + (pitch - wide) / 2
    cells = np.array([(z, 3.6 + 3.0 * floor + 0.75) for floor in range(floors - 1) for z in starts]).reshape(-1, 2)
    frame = Paint(ID["building"], (0.85, 0.84, 0.80))
    canvas.polygons(_panes(x, cells, wide + 0.24, tall + 0.24, -0.12), frame)
    kind = rng.choice(3, len(cells), p=(0.68, 0.2, 0.12))
    for index in range(3):
        canvas.polygons(_panes(x, cells[kind == index], wide, tall, 0.0), _glass(rng, index > 0))


def _panes(x: float, cells: np.ndarray, wide: float, tall: float, shift: float) -> np.ndarray:
    return np.array([upright(x, z + shift, x, z + shift + wide, y + shift, y + shift + tall) for z, y in cells])


def _gable_windows(canvas: Canvas, rng: np.random.Generator, x: float, near: float, side: float, floors: int) -> None:
    if rng.random() < 0.4:
        return
    lit = rng.integers(0, 2, (2, floors - 1))
    for column in range(2):
        left = x + side * (1.5 + 3.0 * column)
        for floor in range(floors - 1):
            bottom = 4.4 + 3.0 * floor
            pane = upright(left, near - 0.02, left + side * 1.1, near - 0.02, bottom, bottom + 1.5)
            canvas.polygon(pane, _glass(rng, bool(lit[column, floor]) and rng.random() < 0.6))


def _ground_floor(canvas: Canvas, rng: np.random.Generator, x: float, near: float, far: float) -> None:
    if rng.random() < 0.5:  # a row of shops
        for at in np.arange(near + 0.6, far - 3.0, 4.0):
            bright = rng.uniform(0.3, 1.4) if rng.random() < 0.6 else 0.0
            light = tuple(bright * c for c in (1.0, 0.86, 0.62))
            pane = Paint(ID["building"], (0.26, 0.28, 0.32), PLAIN, night=light, gloss=0.25)
            canvas.polygon(upright(x, at, x, at + 3.0, 0.5, 2.5), pane)
            sign = choose(rng, ((0.75, 0.15, 0.15), (0.15, 0.35, 0.65), (0.15, 0.45, 0.3), (0.8, 0.65, 0.2)))
            shine = tuple(0.9 * bright * c * c for c in sign)
            canvas.polygon(upright(x, at, x, at + 3.0, 2.65, 3.2), Paint(ID["building"], sign, night=shine))
        return
    door = Paint(ID["building"], choose(rng, ((0.35, 0.22, 0.15), (0.2, 0.3, 0.25))))
    at = rng.uniform(near + 0.5, max(near + 0.6, far - 1.8))
    canvas.polygon(upright(x, at, x, at + 1.2, 0.0, 2.3), door)
    cells = np.array([(z, 1.1) for z in np.arange(near + 1.0, far - 1.5, 2.6) if abs(z - at) > 1.5]).reshape(-1, 2)
    canvas.polygons(_panes(x, cells, 1.1, 1.5, 0.0), _glass(rng, rng.random() < 0.35))


def wall(canvas: Canvas, rng: np.random.Generator, x: float, near: float, far: float) -> None:
    """Draw a free-standing wall: stone or concrete, two to three metres, a pale coping."""
    top = rng.uniform(2.1, 3.0)
    colour = choose(rng, ((0.52, 0.47, 0.40), (0.55, 0.52, 0.50), (0.48, 0.42, 0.36)), 0.015)
    stone = Paint(ID["wall"], colour, Texture(STONE, 0.35, 0.24))
    canvas.polygon(upright(x, near, x + np.sign(x) * 6, near, 0, top), stone)
    canvas.polygon(upright(x, near, x, far, 0, top), stone)
    coping = Paint(ID["wall"], (0.68, 0.66, 0.62))
    canvas.polygon(upright(x, near - 0.1, x, far, top - 0.22, top + 0.05), coping)


def fence(canvas: Canvas, rng: np.random.Generator, x: float, near: float, far: float) -> None:
    """Draw a fence: uprights and two rails before a mesh, one to two metres."""
    top = rng.uniform(1.5, 2.1)
    colour = choose(rng, ((0.72, 0.52, 0.34), (0.80, 0.78, 0.72), (0.62, 0.42, 0.30)), 0.02)
    shade: Colour = (colour[0] * 0.62, colour[1] * 0.60, colour[2] * 0.58)
    canvas.polygon(upright(x, near, x, far, 0.05, top - 0.05), Paint(ID["fence"], shade))
    bar = Paint(ID["fence"], colour)
    starts = np.arange(near, far - 0.2, 0.42)
    canvas.polygons(np.array([upright(x, z, x, z + 0.22, 0.0, top) for z in starts]), bar)
    for height in (0.3, top - 0.35):
        canvas.polygon(upright(x, near, x, far, height, height + 0.13), bar)


def park(canvas: Canvas, rng: np.random.Generator, x: float, near: float, far: float, trees: bool) -> None:
    """Draw open ground behind the street: grass, bushes at its back, and trees."""
    side = np.sign(x)
    grass = Paint(
        ID["terrain"], choose(rng, ((0.44, 0.47, 0.20), (0.50, 0.46, 0.24)), 0.02), Texture(LEAF, 0.5, 0.22)
    )
    canvas.polygon(strip(x, x + side * 40, near, far, 0.02), grass)
    back = x + side * rng.uniform(7, 11)
    z = far - 0.5
    while z > near:
        radius = rng.uniform(1.0, 1.8) * (1 + max(z, 0) / 60)
        _clump(canvas, rng, np.array([back, 0.0, z]), radius, 4)
        z -= 1.3 * radius * (1 + max(z, 0) / 25)
    if trees:
        for z in np.arange(far - 2, near + 1, -rng.uniform(4, 6)):
            tree(canvas, rng, x + side * rng.uniform(2.0, 5.0), z)


def _clump(canvas: Canvas, rng: np.random.Generator, centre: np.ndarray, radius: float, count: int) -> None:
    """Draw a heap of leaves: discs, the dark low ones first."""
    green = np.array(choose(rng, GREENS, 0.015))
    sizes = radius * rng.uniform(0.4, 0.62, count)
    offsets = np.clip(rng.normal(0, 0.45, (count, 2)), -0.75, 0.75) * radius
    offsets[:, 1] = np.maximum(offsets[:, 1], 0.85 * sizes - centre[1])  # nothing below the ground
    offsets = offsets[np.argsort(offsets[:, 1])]
    light = 1 + 0.22 * offsets[:, 1] / radius + rng.normal(0, 0.05, count)
    colours = np.clip(green * light[:, None], 0.05, 0.9).tolist()
    normals = np.stack(
        [0.5 * offsets[:, 0] / radius, 0.45 + 0.5 * offsets[:, 1] / radius, np.full(count, -0.7)], axis=-1
    )
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    leaf = Texture(LEAF, 0.55, 0.34)
    paints = [
        Paint(ID["vegetation"], tuple(c), leaf, normal=tuple(n))
        for c, n in zip(colours, normals.tolist(), strict=True)
    ]
    centres = np.tile(centre, (count, 1))
    centres[:, :2] += offsets
    canvas.discs(centres, sizes, paints)


def tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, small: bool = False) -> None:
    """Draw a tree; its trunk is vegetation too, as in Cityscapes."""
    tall = rng.uniform(3.2, 4.2) if small else rng.uniform(4.5, 8.0)
    bark = Paint(ID["vegetation"], (0.30, 0.23, 0.17), Texture(PLANK, 0.8, 0.2))
    foot = np.array([x, 0.0, z])
    canvas.stroke(foot, np.array([(0.0, 0.0), (0.05, tall * 0.7)]), 0.3, bark)
    _clump(canvas, rng, np.add(foot, (0, tall * 0.85, 0)), tall * 0.38, 14 if z < 30 else 8)


def backdrop(canvas: Canvas, rng: np.random.Generator, palette: tuple[Colour, ...]) -> None:
    """Draw the end of the street: far houses and trees."""
    at = -50.0
    while at < 45:
        wide, z = rng.uniform(6, 12), rng.uniform(80, FAR)
        if rng.random() < 0.55:
            top = rng.uniform(6, 14)
            canvas.polygon(upright(at, z, at + wide, z, 0, top), Paint(ID["building"], choose(rng, palette)))
            spots = [
                (right, up) for right in np.arange(at + 1, at + wide - 1, 2.6) for up in np.arange(1.5, top - 2, 3)
            ]
            panes = np.array([upright(r, z - 0.1, r + 1.3, z - 0.1, u, u + 1.6) for r, u in spots])
            canvas.polygons(panes, _glass(rng, rng.random() < 0.5))
        else:
            for right in np.arange(at, at + wide, 4.5):
                _clump(canvas, rng, np.array([right, rng.uniform(1, 3), z]), rng.uniform(3.0, 4.5), 4)
        at += wide


def pole_width(canvas: Canvas, z: float, wide: float = 0.17) -> float:
    """Width of a pole in metres: ``wide``, but at least 1.1 % of the picture's width on the picture."""
    return max(wide, 0.011 / canvas.camera.focal * (z - canvas.camera.position[2]))


def _post(canvas: Canvas, x: float, z: float, top: float, colour: Colour, wide: float = 0.17) -> None:
    line = np.array([(0.0, 0.0), (0.0, top)])
    canvas.stroke(np.array([x, 0.0, z]), line, pole_width(canvas, z, wide), Paint(ID["pole"], colour))


def lamp_post(canvas: Canvas, x: float, z: float, top: float, light: Colour, lit: bool) -> None:
    """Draw a street lamp with an arm over the road; arm and head are pole."""
    side = -np.sign(x)
    foot = np.array([x, 0.0, z])
    line = np.array([(0.0, 0.0), (0.0, top - 0.4), (side * 0.5, top), (side * 1.6, top + 0.1)])
    canvas.stroke(foot, line, pole_width(canvas, z), Paint(ID["pole"], GREY))
    head = rectangle(side * 1.2 - 0.3, top - 0.08, side * 1.6 + 0.3, top + 0.24)
    canvas.billboard(foot, head, Paint(ID["pole"], (0.5, 0.5, 0.5)))
    bulb = rectangle(side * 1.2 - 0.25, top - 0.16, side * 1.6 + 0.25, top + 0.04)
    peak = max(light)
    canvas.billboard(foot, bulb, Paint(ID["pole"], (0.8, 0.8, 0.78), night=tuple(10 * c / peak * lit for c in light)))


def traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float, state: int) -> None:
    """Draw a traffic light on its post; ``state`` 0 shows red, 1 amber, 2 green."""
    label, low = ID["traffic light"], rng.uniform(2.2, 2.6)
    _post(canvas, x, z, low + 1.3, GREY)
    foot = np.array([x, 0.0, z - 0.1])
    canvas.billboard(foot, rectangle(-0.30, low, 0.30, low + 1.25), Paint(label, (0.10, 0.11, 0.10)))
    for index, colour in enumerate(((1.0, 0.08, 0.04), (1.0, 0.5, 0.04), (0.05, 0.9, 0.35))):
        on = index == state
        lamp = Paint(label, tuple(0.55 * c if on else 0.22 * c + 0.05 for c in colour),
                     night=tuple(7 * c for c in colour) if on else BLACK,
                     day=tuple(1.1 * c for c in colour) if on else BLACK)  # fmt: skip
        canvas.disc(np.array([x, low + 1.04 - 0.41 * index, z - 0.12]), 0.17, lamp)


def traffic_sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float, kind: int) -> None:
    """Draw a traffic sign on its post: 0 round and red, 1 triangle, 2 blue disc, 3 blue square, 4 yellow board."""
    label, height, size = ID["traffic sign"], rng.uniform(2.2, 2.6), rng.uniform(0.42, 0.5)
    _post(canvas, x, z, height, GREY, 0.12)
    foot = np.array([x, 0.0, z - 0.05])

    def face(colour: Colour) -> Paint:
        # Sign foil sends the car's own headlights straight back.
        return Paint(label, colour, night=tuple(0.22 * c * c for c in colour))

    red, white, blue = face((0.80, 0.08, 0.10)), face((0.93, 0.93, 0.92)), face((0.08, 0.25, 0.68))
    if kind == 0:
        canvas.disc(np.add(foot, (0, height, 0)), size, red)
        canvas.disc(np.add(foot, (0, height, 0)), size * 0.66, white)
    elif kind == 1:
        triangle = np.array([(0.0, 1.1), (-1.0, -0.65), (1.0, -0.65)])
        canvas.billboard(foot, triangle * size * 1.15 + (0, height), red)
        canvas.billboard(foot, triangle * size * 0.6 + (0, height), white)
    elif kind == 2:
        canvas.disc(np.add(foot, (0, height, 0)), size, blue)
        canvas.stroke(foot, np.array([(-0.2, height - 0.2), (0.15, height + 0.2)]), 0.1, white)
    elif kind == 3:
        canvas.billboard(foot, rectangle(-size, height - size, size, height + size), blue)
        canvas.billboard(foot, rectangle(-0.2, height - 0.25, 0.2, height + 0.25), white)
    else:
        board = rectangle(-size * 1.5, height - size * 0.8, size * 1.5, height + size * 0.8)
        canvas.billboard(foot, board, face((0.92, 0.75, 0.12)))
        canvas.billboard(foot, rectangle(-size, height - 0.07, size, height + 0.07), face((0.1, 0.1, 0.1)))


def clutter(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draw something on the pavement that has no class: a bin or a cabinet."""
    wide, tall = rng.uniform(0.5, 1.0), rng.uniform(0.9, 1.5)
    colour = choose(rng, ((0.25, 0.30, 0.28), (0.45, 0.42, 0.35), (0.70, 0.55, 0.15)))
    foot = np.array([x, 0.0, z])
    canvas.billboard(foot, rectangle(-wide / 2, 0, wide / 2, tall), Paint(CITYSCAPES.ignore_index, colour))
    top = Paint(CITYSCAPES.ignore_index, tuple(c * 0.6 for c in colour))
    canvas.billboard(foot, rectangle(-wide / 2, tall - 0.12, wide / 2, tall), top)
