"""The demo's scenes: a random street, who is on it, and its picture by day and by night with an exact label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from icda.data.classes import CITYSCAPES
from icda.data.demo import street as street
from icda.data.demo import things as things
from icda.data.demo.canvas import Camera, Canvas, Colour, Paint
from icda.data.demo.light import (
    DayLight,
    Lamp,
    NightLight,
    Sensor,
    develop,
    geometry,
    shine_day,
    shine_night,
)

LAMP_COLOURS: tuple[Colour, ...] = ((1.0, 0.56, 0.20), (1.0, 0.62, 0.26), (1.0, 0.86, 0.62), (0.84, 0.95, 1.0))
LANE = -3.2
TRAM_LANE = -6.55
Draw = Callable[[Canvas, np.random.Generator], None]


@dataclass(frozen=True)
class Style:
    """What differs between the two data sets besides the time of day.

    Args:
        palette: Colours of houses.
        eye: Height of the camera, metres.
        focal: Focal length in picture widths.
        horizon: Row of the horizon in picture heights.
        balance: Factor per channel of the day pictures.
        bonnet: Whether the ego car's bonnet is in the picture.
    """

    palette: tuple[Colour, ...]
    eye: float
    focal: float
    horizon: float
    balance: Colour
    bonnet: bool


SOURCE_STYLE = Style(
    palette=((0.72, 0.66, 0.54), (0.62, 0.40, 0.33), (0.75, 0.72, 0.66), (0.68, 0.58, 0.42), (0.56, 0.55, 0.54)),
    eye=1.45, focal=0.86, horizon=0.46, balance=(0.97, 1.03, 0.98), bonnet=True,
)  # fmt: skip
TARGET_STYLE = Style(
    palette=((0.78, 0.74, 0.66), (0.70, 0.60, 0.52), (0.62, 0.62, 0.60), (0.74, 0.66, 0.46), (0.66, 0.48, 0.40)),
    eye=1.70, focal=0.80, horizon=0.49, balance=(1.04, 1.0, 0.95), bonnet=False,
)  # fmt: skip


class Item(NamedTuple):
    """Something on the street. ``strip`` counts lanes away from the camera's; nearer strips hide farther ones."""

    strip: int
    z: float
    seed: int
    draw: Draw


@dataclass(frozen=True)
class Place:
    """What stays: the road, both rows of houses and gardens, and the street furniture."""

    seed: int
    road: street.Road
    style: Style
    segments: tuple[tuple[float, float, float, str, int], ...]
    items: tuple[Item, ...]
    lamps: tuple[Lamp, ...]


class Traffic(NamedTuple):
    """Who is there: all that moves, and the headlights among it."""

    items: tuple[Item, ...]
    lamps: tuple[Lamp, ...]


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def make_place(rng: np.random.Generator, style: Style) -> Place:
    """A random street."""
    tram_lane = bool(rng.random() < 0.45)
    verges = rng.random(2) < 0.45
    curb_right = 1.75 + rng.choice((0.4, 2.2), p=(0.4, 0.6))
    curb_left = -4.8 - (3.4 if tram_lane else rng.choice((0.2, 2.1)))
    road = street.Road(
        line_left=curb_left - rng.uniform(2.4, 3.6) - 1.2 * verges[0], curb_left=curb_left, curb_right=curb_right,
        line_right=curb_right + rng.uniform(2.4, 3.6) + 1.2 * verges[1], tram_lane=tram_lane,
        verge_left=bool(verges[0]), verge_right=bool(verges[1]),
    )  # fmt: skip
    segments = []
    for x in (road.line_left, road.line_right):
        at = rng.uniform(0, 3) + abs(x) * 0.4 - 9
        while at < 75:
            far = at + rng.uniform(8, 18)
            kind = str(rng.choice(("building", "wall", "fence", "park"), p=(0.42, 0.18, 0.22, 0.18)))
            segments.append((x, at, far, kind, _seed(rng)))
            at = far
    items, lamps = _furniture(rng, road)
    return Place(_seed(rng), road, style, tuple(segments), tuple(items), tuple(lamps))


def _furniture(rng: np.random.Generator, road: street.Road) -> tuple[list[Item], list[Lamp]]:
    items: list[Item] = []
    lamps: list[Lamp] = []
    colour = np.asarray(LAMP_COLOURS[rng.integers(len(LAMP_COLOURS))])
    pitch, phase, top = rng.uniform(16, 24), rng.uniform(6, 13), rng.uniform(5.2, 6.8)
    for side, curb, start in ((1, road.curb_right, phase), (-1, road.curb_left, phase + pitch / 2)):
        x = curb + side * 0.5
        for z in np.arange(start, 64, pitch):
            power = colour * rng.uniform(22, 40) * (rng.random() > 0.2)
            light = tuple(float(c) for c in power) if power.any() else street.BLACK
            post = partial(_lamp_post, x=x, z=float(z), top=top, light=light)
            items.append(Item(3, float(z), _seed(rng), post))
            if power.any() and z < 55:
                lamps.append(Lamp((x - side * 1.4, top - 0.2, float(z)), light))
    for side, curb, line in ((1, road.curb_right, road.line_right), (-1, road.curb_left, road.line_left)):
        x = curb + side * 0.55
        if rng.random() < 0.42:
            z, state = rng.uniform(8.5, 15), int(rng.integers(3))
            items.append(Item(3, z, _seed(rng), partial(street.traffic_light, x=x, z=z, state=state)))
        for _ in range(rng.integers(0, 3)):
            z, kind = rng.uniform(7.5, 22), int(rng.integers(5))
            items.append(Item(3, z, _seed(rng), partial(street.traffic_sign, x=x, z=z, kind=kind)))
        verge = road.verge_right if side > 0 else road.verge_left
        for z in np.arange(rng.uniform(9, 16), 50, rng.uniform(9, 14)) if rng.random() < 0.3 + 0.4 * verge else ():
            items.append(
                Item(3, float(z), _seed(rng), partial(street.tree, x=x + side * 0.3, z=float(z), small=True))
            )
        if rng.random() < 0.25:
            z = rng.uniform(8, 20)
            items.append(Item(5, z, _seed(rng), partial(street.clutter, x=line - side * 0.6, z=z)))
    return items, lamps


def _lamp_post(canvas: Canvas, _: np.random.Generator, x: float, z: float, top: float, light: Colour) -> None:
    # A dead lamp is drawn too; it only gives no light.
    if light == street.BLACK:
        light = (1e-3, 1e-3, 1e-3)
        street.lamp_post(canvas, x, z, top, light, lit=False)
    else:
        street.lamp_post(canvas, x, z, top, light, lit=True)


def make_traffic(rng: np.random.Generator, place: Place) -> Traffic:
    """Random cars and people for a place."""
    items: list[Item] = []
    lamps: list[Lamp] = []

    def add(strip: int, draw: Draw, frame: things.Frame) -> None:
        items.append(Item(strip, frame.z, _seed(rng), draw))

    def vehicle(strip: int, frame: things.Frame, weights: tuple[float, float, float], length: float = 4.3) -> None:
        kind = (things.car, things.truck, things.bus)[rng.choice(3, p=weights)]
        length = {things.car: 4.3, things.truck: 8.0, things.bus: 11.0}[kind]
        frame = replace(frame, z=frame.z + (length - 4.3) / 2)
        add(strip, partial(_vehicle, kind=kind, frame=frame, length=length), frame)
        front = frame.z - np.cos(np.pi - frame.yaw) * length / 2
        if np.cos(frame.yaw) < 0:
            lamps.append(Lamp((frame.x, 0.75, front - 0.3), (5.0, 4.8, 4.2), (0.0, -0.25, -0.97), 3.0))

    if rng.random() < 0.55:
        x = rng.normal(0, 0.25)
        vehicle(0, things.Frame(x, rng.uniform(9, 22), rng.normal(0, 0.03)), (0.52, 0.25, 0.23))
    at = rng.uniform(9, 24)
    while at < 55 and rng.random() < 0.75:
        vehicle(1, things.Frame(LANE + rng.normal(0, 0.15), at, np.pi + rng.normal(0, 0.03)), (0.64, 0.18, 0.18))
        at += rng.uniform(14, 26)
    if place.road.tram_lane and rng.random() < 0.62:
        frame = things.Frame(TRAM_LANE, rng.uniform(19, 30), float(rng.choice((0.0, np.pi))))
        add(2, partial(_vehicle, kind=things.tram, frame=frame, length=20.0), frame)
    _parked(rng, place.road, add)
    _people(rng, place.road, add)
    _two_wheelers(rng, place.road, add)
    return Traffic(tuple(items), tuple(lamps[:2]))


Add = Callable[[int, Draw, things.Frame], None]


def _vehicle(
    canvas: Canvas,
    rng: np.random.Generator,
    kind: Callable[[Canvas, np.random.Generator, things.Frame, bool], None],
    frame: things.Frame,
    length: float,
    on: bool = True,
) -> None:
    kind(canvas, rng, frame, on)


def _parked(rng: np.random.Generator, road: street.Road, add: Add) -> None:
    for x, curb in ((road.curb_right - 1.05, road.curb_right), (road.curb_left + 1.05, road.curb_left)):
        if abs(curb) < 3 or (road.tram_lane and curb < 0) or (curb < 0 and curb > -6):
            continue
        for z in np.arange(rng.uniform(7, 11), 55, 6.0):
            if rng.random() < 0.5:
                frame = things.Frame(x + rng.normal(0, 0.08), float(z), float(rng.choice((0.0, np.pi))))
                strip = 1 if curb > 0 else 2
                add(strip, partial(_vehicle, kind=things.car, frame=frame, length=4.3, on=False), frame)


def _people(rng: np.random.Generator, road: street.Road, add: Add) -> None:
    for curb, line in ((road.curb_right, road.line_right), (road.curb_left, road.line_left)):
        for _ in range(rng.choice(4, p=(0.25, 0.35, 0.25, 0.15))):
            frame = things.Frame(float(curb + rng.uniform(0.2, 0.85) * (line - curb)), rng.uniform(7, 26))
            add(4, partial(things.person, frame=frame), frame)
    if rng.random() < 0.35:
        z = rng.uniform(8, 17)
        for _ in range(rng.integers(1, 3)):
            x = rng.uniform(-4.5, 1.5)
            frame = things.Frame(x, z + rng.uniform(0, 1))
            add(0 if x > -1.6 else 1, partial(things.person, frame=frame), frame)


def _two_wheelers(rng: np.random.Generator, road: street.Road, add: Add) -> None:
    for kind, ridden, parked in ((things.bicycle, 0.34, 0.34), (things.motorcycle, 0.24, 0.24)):
        if rng.random() < ridden:
            across = rng.random() < 0.6
            x, z = (
                (rng.uniform(-4.2, 1.4), rng.uniform(7, 15))
                if across
                else (rng.choice((1.3, LANE)), rng.uniform(7, 15))
            )
            squash = rng.uniform(0.7, 1.0) if across else rng.uniform(0.12, 0.4)
            frame = things.Frame(float(x), float(z))
            add(0 if x > -1.6 else 1, partial(kind, frame=frame, squash=squash, ridden=True), frame)
        if rng.random() < parked:
            curb, line = (
                (road.curb_right, road.line_right) if rng.random() < 0.6 else (road.curb_left, road.line_left)
            )
            share, z = rng.uniform(0.3, 0.8), rng.uniform(max(8.0, 1.15 * abs(line)), 16)
            for index in range(rng.integers(1, 4)):
                frame = things.Frame(curb + share * (line - curb), float(z + 0.9 * index))
                squash = rng.uniform(0.65, 1.0)
                add(4, partial(kind, frame=frame, squash=squash, ridden=False), frame)


def draw(place: Place, traffic: Traffic, camera: Camera, bonnet: bool) -> Canvas:
    """Draw a place with its traffic; the same place gives the same static things for every camera."""
    canvas = Canvas(camera)
    street.ground(canvas, np.random.default_rng(place.seed), place.road)
    street.backdrop(canvas, np.random.default_rng(place.seed + 1), place.style.palette)
    for x, near, far, kind, seed in sorted(place.segments, key=lambda segment: -segment[1]):
        rng = np.random.default_rng(seed)
        if kind == "building":
            street.building(canvas, rng, x, near, far, place.style.palette)
            continue
        street.park(canvas, rng, x, near, far, trees=kind == "park" or rng.random() < 0.6)
        if kind == "wall":
            street.wall(canvas, rng, x, near, far)
        elif kind == "fence":
            street.fence(canvas, rng, x, near, far)
    for item in sorted((*place.items, *traffic.items), key=lambda item: (-item.strip, -item.z)):
        item.draw(canvas, np.random.default_rng(item.seed))
    if bonnet:
        columns = np.linspace(0, 1, 24)
        arch = 0.955 + 0.09 * np.abs(columns - 0.5) ** 2 * 4
        outline = np.concatenate([np.stack([columns, arch], axis=-1), [(1, 1.01), (0, 1.01)]])
        canvas.screen(outline, Paint(CITYSCAPES.ignore_index, (0.22, 0.23, 0.25), gloss=0.2))
    return canvas


def aim_camera(rng: np.random.Generator, style: Style, size: tuple[int, int]) -> Camera:
    """A camera in the ego lane; ``size`` is (height, width) in pixels."""
    return Camera(
        position=(float(rng.normal(0, 0.2)), style.eye + float(rng.normal(0, 0.05)), float(rng.uniform(-1, 1))),
        yaw=float(rng.normal(0, 0.035)), focal=style.focal,
        horizon=style.horizon + float(rng.normal(0, 0.012)), size=size,
    )  # fmt: skip


def move_camera(rng: np.random.Generator, camera: Camera) -> Camera:
    """The same place seen on another drive: some decimetres aside, up to 1.5 m along, turned by up to 2 degrees."""
    x, y, z = camera.position
    return replace(
        camera,
        position=(
            float(x + rng.uniform(-0.45, 0.45)),
            float(y + rng.normal(0, 0.04)),
            float(z + rng.uniform(-1.5, 1.5)),
        ),
        yaw=camera.yaw + float(rng.uniform(-0.035, 0.035)),
        horizon=camera.horizon + float(rng.uniform(-0.012, 0.012)),
    )


def day_picture(
    rng: np.random.Generator, place: Place, traffic: Traffic, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """A place by day.

    Returns:
        Image (H, W, 3) uint8 RGB, and train ids (H, W) uint8.
    """
    canvas = draw(place, traffic, camera, place.style.bonnet)
    clouds = float(rng.uniform(0, 1))
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.1)
    sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(height), np.sin(azimuth) * np.cos(height)])
    light = DayLight(
        sun=tuple(float(s) for s in sun), sunshine=float(max(0.0, 1.25 - 1.5 * clouds)),
        sky=(0.36 + 0.12 * clouds, 0.60, 0.98 - 0.1 * clouds), haze=float(rng.uniform(0.0015, 0.005)), clouds=clouds,
    )  # fmt: skip
    if light.sunshine > 0:
        _cast_shadows(canvas, place, sun)
    balance = np.asarray(place.style.balance) * (1 + rng.normal(0, 0.03, 3))
    sensor = Sensor(
        exposure=float(rng.uniform(0.72, 1.02)) / (0.8 + 0.3 * light.sunshine),
        balance=tuple(float(b) for b in balance), shot=4e-5, read=0.0015,
    )  # fmt: skip
    return develop(shine_day(canvas, geometry(canvas), light, rng), sensor, rng), canvas.label()


def _cast_shadows(canvas: Canvas, place: Place, sun: np.ndarray) -> None:
    reach = -sun[[0, 2]] / sun[1]
    for x, near, far, kind, _ in place.segments:
        dx, dz = reach * (9.0 if kind == "building" else 2.0)
        if np.sign(dx) == -np.sign(x) and kind != "park":
            quad = np.array([(x, 0, near), (x, 0, far), (x + dx, 0, far + dz), (x + dx, 0, near + dz)])
            canvas.shadow(quad, canvas.sunless)


def night_picture(
    rng: np.random.Generator, place: Place, traffic: Traffic, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """A place by night.

    Returns:
        Image (H, W, 3) uint8 RGB, and train ids (H, W) uint8.
    """
    canvas = draw(place, traffic, camera, place.style.bonnet)
    x, _, z = camera.position
    beam = float(rng.uniform(6, 15))
    ego = Lamp((x, 0.75, z + 0.5), (beam, beam * 0.95, beam * 0.85), (0.0, -0.06, 0.998), 10.0)
    lamps = sorted(place.lamps, key=lambda lamp: lamp.position[2])[:6]
    gloom = float(rng.uniform(0.5, 1.5))
    glow = np.array((0.055, 0.042, 0.036)) if rng.random() < 0.5 else np.array((0.030, 0.036, 0.055))
    light = NightLight(
        lamps=(*lamps, *traffic.lamps, ego), ambient=tuple(float(g) for g in (0.6 * glow + 0.035) * gloom),
        skyglow=tuple(float(g) for g in glow * gloom * 0.8), bloom=float(rng.uniform(0.4, 1.0)),
        wet=float(rng.uniform(0.12, 0.4)) if rng.random() < 0.35 else 0.0,
    )  # fmt: skip
    warm = rng.normal(0, 0.1)
    balance = np.array((1 + warm, 1.0, 1 - warm)) * (1 + rng.normal(0, 0.03, 3))
    sensor = Sensor(
        exposure=float(np.exp(rng.uniform(np.log(0.55), np.log(2.0)))), balance=tuple(float(b) for b in balance),
        shot=float(rng.uniform(4e-4, 1.4e-3)), read=float(rng.uniform(0.003, 0.008)), vignette=0.35,
    )  # fmt: skip
    return develop(shine_night(canvas, geometry(canvas), light, rng), sensor, rng), canvas.label()


def source_sample(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A labelled day picture in the style of the source data set: image (H, W, 3) and train ids (H, W), uint8."""
    place = make_place(rng, SOURCE_STYLE)
    return day_picture(rng, place, make_traffic(rng, place), aim_camera(rng, SOURCE_STYLE, size))


def target_sample(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A place of the target data set by night and, from another drive, by day.

    Returns:
        Night image (H, W, 3), its train ids (H, W), and the day image (H, W, 3), all uint8.
    """
    place = make_place(rng, TARGET_STYLE)
    camera = aim_camera(rng, TARGET_STYLE, size)
    night, label = night_picture(rng, place, make_traffic(rng, place), camera)
    day, _ = day_picture(rng, place, make_traffic(rng, place), move_camera(rng, camera))
    return night, label, day
