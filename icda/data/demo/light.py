"""The demo's light: what a camera sees of a canvas by day and by night.

Everything is linear light until the sensor: albedo x (sky + sun or lamps) + glow, haze or bloom, exposure, colour
cast, shot and read noise, and last the sRGB curve in 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from icda.data.demo.canvas import GLOW_RANGE, OVERSAMPLING, WHITE, Canvas, Colour

TILE = 128
FULL_WELL = 2.5
"""Linear light at which the sensor is saturated."""
TILES = ("noise", "brick", "slab", "leaf", "asphalt", "plank", "stone")


@dataclass(frozen=True)
class Lamp:
    """A lamp at a world position (x, y, z); ``power`` is (r, g, b), ``aim`` the direction it prefers."""

    position: Colour
    power: Colour
    aim: Colour = (0.0, -1.0, 0.0)
    focus: float = 1.0


@dataclass(frozen=True)
class Sensor:
    """The camera's electronics.

    Args:
        exposure: Factor on linear light.
        balance: Factor per channel (r, g, b).
        shot: Variance of the noise per unit of light, after exposure.
        read: Standard deviation of the noise in the dark, after exposure.
        vignette: Loss of light in the corners, 0..1.
    """

    exposure: float
    balance: Colour
    shot: float
    read: float
    vignette: float = 0.2


@dataclass(frozen=True)
class DayLight:
    """Sun and sky. ``sun`` is the direction to the sun, ``sunshine`` its light (0 under clouds)."""

    sun: Colour
    sunshine: float
    sky: Colour
    haze: float
    clouds: float


@dataclass(frozen=True)
class NightLight:
    """Lamps, and what little light the night sky gives."""

    lamps: tuple[Lamp, ...]
    ambient: Colour
    skyglow: Colour
    bloom: float
    wet: float


@dataclass(frozen=True)
class Geometry:
    """What every pixel shows.

    Args:
        surface: Surface id, (H, W) uint16.
        place: World place, (3, H, W) float32, metres.
        normal: Unit normal in the world, (3, H, W) float32.
        depth: Depth, (H, W) float32, metres.
        albedo: Linear albedo with its texture, (3, H, W) float32.
        gloss: Share of mirrored sky, (H, W) float32.
    """

    surface: np.ndarray
    place: np.ndarray
    normal: np.ndarray
    depth: np.ndarray
    albedo: np.ndarray
    gloss: np.ndarray

    @property
    def ground(self) -> np.ndarray:
        """Whether a pixel shows flat ground, (H, W) bool."""
        return (self.place[1] < 0.3) & (self.normal[1] > 0.9)


@cache
def texture_atlas() -> np.ndarray:
    """All tiles side by side, each with a border of one pixel that wraps, (TILE + 2, n * (TILE + 2)) float32.

    Values are factors on the albedo with mean 0 (strength times value, plus 1).
    """
    rng = np.random.default_rng(len(TILES))
    rows, columns = np.mgrid[:TILE, :TILE]

    def noise(sigma: float) -> np.ndarray:
        field = cv2.GaussianBlur(np.tile(rng.standard_normal((TILE, TILE)), (3, 3)), (0, 0), sigma)
        field = field[TILE : 2 * TILE, TILE : 2 * TILE]
        return (field / field.std()).astype(np.float32)

    def blocks(height: int, width: int, gap: int, shift: bool) -> np.ndarray:
        offset = (rows // height % 2) * (width // 2) if shift else 0
        joint = (rows % height < gap) | ((columns + offset) % width < gap)
        value = rng.standard_normal((TILE // height + 1, TILE // width + 2)).astype(np.float32)
        tone = value[rows // height, (columns + offset) // width % (TILE // width)] * 0.5
        return np.where(joint, -2.0, tone + 0.25 * noise(1)).astype(np.float32)

    tiles = {
        "noise": noise(6) * 0.7 + noise(2) * 0.4,
        "brick": blocks(8, 16, 2, True),
        "slab": blocks(32, 32, 2, False) + 0.3 * noise(1.5),
        "leaf": np.tanh(noise(2.2) * 1.4) * 0.9 + noise(5) * 0.5,
        "asphalt": noise(1.0) * 0.6 + noise(9) * 0.6,
        "plank": np.where(columns % 16 < 3, -2.0, 0.4).astype(np.float32) + 0.3 * noise(2),
        "stone": blocks(16, 32, 2, True) + 0.5 * noise(3),
    }
    return np.concatenate([np.pad(tiles[name], 1, mode="wrap") for name in TILES], axis=1).astype(np.float32)


def geometry(canvas: Canvas) -> Geometry:
    """What every pixel of ``canvas`` shows, with the textures already on the albedo."""
    paints = canvas.paints
    surface = np.ascontiguousarray(canvas.surface_of_pixel())
    packed = np.zeros((len(paints), 4), np.uint8)
    packed[:, :3] = np.clip([paint.colour for paint in paints], 0, 1) * np.float64(WHITE) + 0.5
    packed[:, 3] = [round(paint.gloss * WHITE) for paint in paints]
    albedo, gloss = _gather(packed, canvas.ids)

    across, upward = canvas.camera.rays()
    a, b, c = _per_pixel(canvas.planes, surface)
    # The inverse depth of a plane is linear in the picture.
    depth = 1 / np.clip(a * across + b * upward[:, None] + c, 1 / 400, 2.0)
    place = np.empty((3, *depth.shape), np.float32)
    x, y, z = (float(v) for v in canvas.camera.position)
    cos, sin = float(np.cos(canvas.camera.yaw)), float(np.sin(canvas.camera.yaw))
    place[0] = (cos * across + sin) * depth + x
    place[1] = upward[:, None] * depth + y
    place[2] = (cos - sin * across) * depth + z
    normal = _per_pixel(canvas.normals, surface)
    albedo *= _texture_factor(canvas, surface, place, depth)
    return Geometry(surface, place, normal, depth, albedo, gloss)


def _per_pixel(table: Sequence[Sequence[float] | np.ndarray], surface: np.ndarray) -> np.ndarray:
    """Look up one vector per surface (n, K) for every pixel, (K, H, W) float32."""
    columns = np.ascontiguousarray(np.array(table, np.float32).T)
    return np.take(columns, surface, axis=1)


def _texture_factor(canvas: Canvas, surface: np.ndarray, place: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Factor of the texture on the albedo, (H, W); textures lie in the world, so they move with the camera."""
    tile, scale, strength = _per_pixel([paint.texture for paint in canvas.paints], surface)
    side, up, ahead = np.abs(_per_pixel(canvas.directions, surface))
    flat = up > 0.7
    column = np.where(flat, place[0], place[0] * ahead + place[2] * side) * scale
    row = np.where(flat, place[2], place[1]) * -scale
    column, row = (TILE * (value - np.floor(value)) + np.float32(0.5) for value in (column, row))
    value = cv2.remap(texture_atlas(), column + tile * (TILE + 2), row, cv2.INTER_LINEAR)
    # Where a pixel covers many texels the texture fades out instead of flickering.
    footprint = depth * scale * (TILE / canvas.camera.pixels)
    return np.clip(1 + strength * np.minimum(2.5 / np.maximum(footprint, 1e-3), 1) * value, 0.15, 2.5)


def _gather(packed: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Look up RGBA bytes at the fine resolution and reduce by area: squared colour (3, H, W) and alpha (H, W)."""
    fine = np.take(packed.view(np.uint32)[:, 0], ids).view(np.uint8).reshape(*ids.shape, 4)
    small = cv2.resize(fine, None, fx=1 / OVERSAMPLING, fy=1 / OVERSAMPLING, interpolation=cv2.INTER_AREA)
    value = np.stack(cv2.split(small)) * np.float32(1 / WHITE)
    return value[:3] ** 2, value[3]


def glow(canvas: Canvas, night: bool) -> np.ndarray:
    """Light that surfaces send out, (3, H, W) float32, linear."""
    light = np.array([paint.night if night else paint.day for paint in canvas.paints])
    packed = np.zeros((len(light), 4), np.uint8)
    packed[:, :3] = np.sqrt(np.clip(light / GLOW_RANGE, 0, 1)) * WHITE + 0.5
    return _gather(packed, canvas.ids)[0] * np.float32(GLOW_RANGE)


def _planes(colour: Colour | np.ndarray) -> np.ndarray:
    """A colour as (3, 1, 1) float32, to be broadcast over a picture."""
    return np.asarray(colour, np.float32)[:, None, None]


def shine_day(canvas: Canvas, scene: Geometry, light: DayLight, rng: np.random.Generator) -> np.ndarray:
    """Linear light of a day picture, (3, H, W) float32."""
    sky_colour = _planes(light.sky)
    contact, sunless = _ground_shadows(canvas, scene)
    upward = scene.normal[1]
    from_sky = (0.62 + 0.38 * upward) * (1 - 0.7 * contact)
    from_sun = np.maximum(_dot(scene.normal, np.asarray(light.sun, np.float32)), 0) * light.sunshine
    from_sun *= (1 - sunless) * (1 - contact)
    warm = _planes((1.05, 1.0, 0.9))
    colour = scene.albedo * (from_sky * (0.55 + 0.45 * sky_colour) + from_sun * warm)
    if any(any(paint.day) for paint in canvas.paints):
        colour += glow(canvas, night=False)

    dome = _sky(canvas, sky_colour, light.clouds, rng)
    # A window mirrors the part of the sky above it; the mean of the dome is near enough.
    colour += scene.gloss * (0.35 + 0.25 * np.abs(upward)) * dome.mean(axis=(1, 2), keepdims=True)
    fog = 1 - np.exp(-scene.depth * light.haze)
    colour += fog * (0.85 * dome[:, -1:, :1] - colour)
    return np.where(scene.surface == 0, dome, colour)


def shine_night(canvas: Canvas, scene: Geometry, light: NightLight, rng: np.random.Generator) -> np.ndarray:
    """Linear light of a night picture, (3, H, W) float32."""
    contact, _ = _ground_shadows(canvas, scene)
    received = (0.7 + 0.3 * scene.normal[1]) * (1 - 0.6 * contact) * _planes(light.ambient)
    received += _lamp_light(scene, light.lamps) * (1 - 0.8 * contact)
    colour = scene.albedo * received + glow(canvas, night=True)

    height, width = scene.depth.shape
    horizon = canvas.camera.skyline
    above = np.clip((horizon - np.arange(height)) / horizon, 0, 1)[:, None].astype(np.float32)
    dome = (
        (0.25 + 0.9 * np.exp(-3.5 * above)) * (1 + 0.25 * _cloud_field(height, width, rng)) * _planes(light.skyglow)
    )
    colour = np.where(scene.surface == 0, dome, colour)
    if light.wet > 0:
        colour += _wet_road(colour, scene, horizon) * light.wet
    return colour + _bloom(colour) * light.bloom


def _dot(field: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Scalar product of a field (3, H, W) and one vector (3,); written out, so that no thread count changes it."""
    return field[0] * vector[0] + field[1] * vector[1] + field[2] * vector[2]


def _lamp_light(scene: Geometry, lamps: tuple[Lamp, ...]) -> np.ndarray:
    """Light of all lamps on every pixel, (3, H, W): inverse square, Lambert, and each lamp's own lobe."""
    total = np.zeros_like(scene.albedo)
    for lamp in lamps:
        to_lamp = np.array(lamp.position, np.float32)[:, None, None] - scene.place
        squared = to_lamp[0] ** 2 + to_lamp[1] ** 2 + to_lamp[2] ** 2 + np.float32(0.4)
        inverse = 1 / np.sqrt(squared)
        facing = (
            to_lamp[0] * scene.normal[0] + to_lamp[1] * scene.normal[1] + to_lamp[2] * scene.normal[2]
        ) * inverse
        aimed = np.maximum(_dot(to_lamp, -np.array(lamp.aim, np.float32)) * inverse, np.float32(0.02))
        # A fifth of the cosine law is replaced by a constant: rough, dusty things send light back at any angle.
        strength = np.maximum(0.2 + 0.8 * facing, np.float32(0.03)) / squared
        strength *= aimed if lamp.focus == 1 else aimed ** np.float32(lamp.focus)
        for channel, power in enumerate(lamp.power):
            total[channel] += strength * np.float32(power)
    return total


def develop(light: np.ndarray, sensor: Sensor, rng: np.random.Generator) -> np.ndarray:
    """Turn linear light (3, H, W) into a picture (H, W, 3) uint8 RGB."""
    height, width = light.shape[1:]
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)
    lens = 1 - np.float32(sensor.vignette / 2) * (rows**2 + columns**2)
    raw = light * lens
    raw *= _planes(sensor.balance) * np.float32(sensor.exposure)
    noise = rng.standard_normal(raw.shape, dtype=np.float32)
    noise *= np.sqrt(np.clip(raw, 0, 1) * np.float32(sensor.shot) + np.float32(sensor.read**2))
    raw += noise
    curve = _sensor_curve()
    raw *= np.float32((len(curve) - 1) / FULL_WELL)
    np.clip(raw, 0, len(curve) - 1, out=raw)
    return cv2.merge(list(curve[raw.astype(np.uint16)]))


@cache
def _sensor_curve() -> np.ndarray:
    """sRGB bytes of linear light 0..FULL_WELL; a soft shoulder keeps lamps and clouds from being cut off hard."""
    linear = np.linspace(0, FULL_WELL, 1 << 15)
    linear = np.where(linear > 0.7, 0.7 + 0.3 * np.tanh((linear - 0.7) / 0.6), linear)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * WHITE).astype(np.uint8)


def _ground_shadows(canvas: Canvas, scene: Geometry) -> tuple[np.ndarray, np.ndarray]:
    ground = scene.ground * np.float32(1 / WHITE)
    contact = cv2.GaussianBlur(canvas.contact, (0, 0), canvas.camera.size[0] / 100)
    sunless = cv2.GaussianBlur(canvas.sunless, (3, 3), 0)
    return contact * ground, sunless * ground


def _cloud_field(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise, (H, W) float32, about -1..1, stretched sideways like clouds near the horizon."""
    total = np.zeros((height, width), np.float32)
    for cells, weight in ((4, 0.55), (9, 0.3), (20, 0.15)):
        coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        total += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return total * 1.6


def _sky(canvas: Canvas, colour: np.ndarray, clouds: float, rng: np.random.Generator) -> np.ndarray:
    """The sky by day, (3, H, W): pale at the horizon, ``colour`` (3, 1, 1) above, clouds."""
    height, width = canvas.camera.size
    above = np.clip(1 - np.arange(height) / canvas.camera.skyline, 0, 1).astype(np.float32)[:, None]
    pale = _planes((0.95, 0.97, 1.0))
    clear = pale + (colour - pale) * above**0.6
    cover = np.clip(_cloud_field(height, width, rng) * 0.9 + clouds * 2 - 0.9, 0, 1)
    return clear + (0.9 * cover) * (pale - clear)


def _wet_road(colour: np.ndarray, scene: Geometry, horizon: float) -> np.ndarray:
    """Mirror image of the lights on flat ground, smeared downwards, (3, H, W)."""
    height = colour.shape[1]
    mirrored = np.clip(np.rint(2 * horizon - np.arange(height)), 0, height - 1).astype(np.int64)
    bright = np.clip(colour - 0.25, 0, 4)
    smear = np.stack([cv2.blur(plane, (5, max(3, height // 5)))[mirrored] for plane in bright])
    return smear * scene.ground


def _bloom(colour: np.ndarray) -> np.ndarray:
    """Light that the lens scatters around bright parts, (3, H, W)."""
    height, width = colour.shape[1:]
    total = np.clip(colour - 0.8, 0, GLOW_RANGE)
    for index, bright in enumerate(total):
        small = cv2.resize(bright, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
        wide = cv2.GaussianBlur(small, (0, 0), height / 90) * 0.5 + cv2.GaussianBlur(small, (0, 0), height / 30) * 0.3
        tight = cv2.GaussianBlur(bright, (0, 0), height / 110) * 0.5
        total[index] = tight + cv2.resize(wide, (width, height), interpolation=cv2.INTER_LINEAR)
    return total
