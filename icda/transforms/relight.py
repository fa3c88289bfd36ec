"""Day to night by physics of light alone; no night image is needed (illumination part of CEM)."""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np

from icda.transforms import light
from icda.transforms.checks import check_number, check_range, check_rgb

# Side of the small copy on which light fields are computed: they are smooth.
_FIELD = 96


class RelightIllumination(A.ImageOnlyTransform):
    """Turns a day image into a night image by re-lighting it in linear light.

    1. sRGB is decoded to linear light, and large-scale brightness (sun and shade) partly divided out.
    2. The sky - what is bright from the top of the image downwards - is darkened with a soft, edge-keeping
       mask, lightest near the horizon as over a town.
    3. A weak ambient light with a colour cast, street lamps with pools of light that fall with the inverse
       square of the distance, and the car's own headlights light the scene.
    4. Lamps glow: a small core and a halo are added.
    5. Exposure brings the mean to a drawn level; shot noise (grows with light) and read noise are added; sRGB
       is encoded again.

    Distances are shares of the image's longer side. The label stays true but for the small lamp cores.

    Args:
        exposure: Range of the mean of the result in linear light, 0..1 (0.01 is 10 % in sRGB, 0.05 is 25 %);
            drawn uniformly in its logarithm. An image that is darker already is not made brighter.
        flatten: Range of the share of large-scale brightness that is divided out, 0..1.
        sky: Range of what is left of the sky's brightness, 0..1, drawn uniformly in its logarithm.
        cast: Range of the ambient colour, -1 (blue) .. 1 (orange).
        lamps: Smallest and largest number of street lamps, 0..20.
        lamp_power: Range of a lamp's light at its brightest spot, as a multiple of the ambient light, 0..100.
        lamp_reach: Range of the distance at which a lamp's light has fallen to a half, 0.01..1.
        headlights: Range of the light of the own headlights, as `lamp_power`; 0 is off.
        glow: Range of the brightness of a lamp's halo, linear light, 0..1.
        shot_noise: Range of the variance of noise per unit of linear light, 0..0.1.
        read_noise: Range of the standard deviation of noise in the dark, linear light, 0..0.1.
        p: Probability.

    Raises:
        UserError: If an argument is out of range, or, on a call, if the image is not RGB uint8.

    Targets:
        image: RGB (H, W, 3) uint8.
    """

    def __init__(
        self,
        exposure: tuple[float, float] = (0.008, 0.05),
        flatten: tuple[float, float] = (0.2, 0.6),
        sky: tuple[float, float] = (0.005, 0.05),
        cast: tuple[float, float] = (-0.3, 0.7),
        lamps: tuple[int, int] = (1, 5),
        lamp_power: tuple[float, float] = (2.0, 12.0),
        lamp_reach: tuple[float, float] = (0.06, 0.25),
        headlights: tuple[float, float] = (0.0, 6.0),
        glow: tuple[float, float] = (0.02, 0.15),
        shot_noise: tuple[float, float] = (0.0, 4e-4),
        read_noise: tuple[float, float] = (0.0, 1.5e-3),
        p: float = 1.0,
    ) -> None:
        owner = type(self).__name__
        super().__init__(p=check_number(owner, "p", p, 0, 1))
        smallest = 1e-4  # drawn in the logarithm
        self.exposure = check_range(owner, "exposure", exposure, smallest, 1)
        self.flatten = check_range(owner, "flatten", flatten, 0, 1)
        self.sky = check_range(owner, "sky", sky, smallest, 1)
        self.cast = check_range(owner, "cast", cast, -1, 1)
        self.lamps = check_range(owner, "lamps", lamps, 0, 20, integer=True)
        self.lamp_power = check_range(owner, "lamp_power", lamp_power, 0, 100)
        self.lamp_reach = check_range(owner, "lamp_reach", lamp_reach, 0.01, 1)
        self.headlights = check_range(owner, "headlights", headlights, 0, 100)
        self.glow = check_range(owner, "glow", glow, 0, 1)
        self.shot_noise = check_range(owner, "shot_noise", shot_noise, 0, 0.1)
        self.read_noise = check_range(owner, "read_noise", read_noise, 0, 0.1)

    def get_params(self) -> dict[str, Any]:
        """Draws everything that is drawn, so that one set of parameters means one image."""
        uniform = self.py_random.uniform

        def logarithmic(low: float, high: float) -> float:
            return float(np.exp(uniform(np.log(low), np.log(high))))

        lamps = [
            {
                "x": uniform(0, 1),
                "y": uniform(0.25, 0.5),
                "drop": uniform(0.15, 0.4),  # from lamp down to the middle of its pool
                "power": uniform(*self.lamp_power),
                "reach": uniform(*self.lamp_reach),
                "colour": uniform(-0.3, 1),
                "glow": uniform(*self.glow),
                "core": uniform(0.004, 0.008),
            }
            for _ in range(self.py_random.randint(*self.lamps))
        ]
        return {
            "exposure": logarithmic(*self.exposure),
            "flatten": uniform(*self.flatten),
            "sky": logarithmic(*self.sky),
            "horizon": uniform(0.4, 0.6),
            "cast": uniform(*self.cast),
            "lamps": lamps,
            "headlights": uniform(*self.headlights),
            "shot_noise": uniform(*self.shot_noise),
            "read_noise": uniform(*self.read_noise),
            "noise_seed": int(self.random_generator.integers(2**32)),
        }

    def apply(
        self,
        img: np.ndarray,
        exposure: float,
        flatten: float,
        sky: float,
        horizon: float,
        cast: float,
        lamps: list[dict[str, float]],
        headlights: float,
        shot_noise: float,
        read_noise: float,
        noise_seed: int,
        **params: Any,
    ) -> np.ndarray:
        """The image by night."""
        check_rgb(type(self).__name__, "image", img)
        height, width = img.shape[:2]
        mask = sky_mask(img, horizon)
        linear = light.srgb_to_linear(img)
        bright = light.luma(linear)
        # + 0.02: the deepest shade is not lifted to daylight.
        base = np.maximum(light.base_layer(bright, edge=0.1), 0) + np.float32(0.02)
        gain = cv2.pow(base, -flatten)
        gain *= cv2.exp(mask * np.float32(np.log(sky)))
        fields = light_fields(height, width, cast, lamps, headlights)
        linear *= light.enlarge(fields[0], height, width)
        linear = light.scale(linear, gain)

        mean, peak = float(light.luma(linear).mean()), float(bright.mean())
        linear *= np.float32(min(exposure, peak) / max(mean, 1e-6))
        linear += light.enlarge(fields[1], height, width)
        if shot_noise > 0 or read_noise > 0:
            sigma = cv2.sqrt(light.luma(linear) * np.float32(shot_noise) + np.float32(read_noise**2))
            linear += light.scale(light.grain(np.random.default_rng(noise_seed), height, width), sigma)
        return light.linear_to_srgb(linear)


def sky_mask(image: np.ndarray, horizon: float) -> np.ndarray:
    """Soft mask of what is bright from the top of the image downwards: the sky of a day image.

    Args:
        image: RGB (H, W, 3) uint8.
        horizon: Height above which there may be sky, share of the image's height from the top.

    Returns:
        (H, W) float32 in 0..1, following the image's edges.
    """
    height, width = image.shape[:2]
    # Blue or white, and bright: the smaller of green and blue, for walls in the sun are yellowish.
    full = cv2.min(cv2.extractChannel(image, 1), cv2.extractChannel(image, 2)).astype(np.float32)
    small = light.shrink(full, _FIELD)
    bright = 1 / (1 + np.exp((150 - small) / 12))
    # A column's sky ends where it is first interrupted; neighbours bridge thin wires and poles.
    bridged = cv2.dilate(bright, np.ones((1, 3), np.uint8))
    joined = np.minimum.accumulate(bridged, axis=0) * bright
    rows = np.linspace(0, 1, len(small), dtype=np.float32)[:, None]
    joined = (joined / (1 + np.exp((rows - horizon) / 0.04))).astype(np.float32)
    coarse = light.enlarge(cv2.blur(joined, (3, 3)), height, width)
    # Sharpened by the full-size brightness, so that the skyline does not glow.
    return coarse * (1 / (1 + cv2.exp((np.float32(140) - full) / np.float32(10))))


def _colour(warmth: float) -> np.ndarray:
    """Colour of a light, (3,) float32 with luma 1: -1 bluish, 0 white, 1 sodium orange."""
    warm, cold = np.array((1.0, 0.62, 0.22)), np.array((0.6, 0.8, 1.0))
    colour = 1 + abs(warmth) * ((warm if warmth > 0 else cold) - 1)
    return (colour / (colour @ light.LUMA)).astype(np.float32)


def light_fields(
    height: int, width: int, cast: float, lamps: list[dict[str, float]], headlights: float
) -> tuple[np.ndarray, np.ndarray]:
    """The light that falls on the scene, and the light that lamps send into the camera.

    Returns:
        Two arrays (h, w, 3) float32, of a small size with the image's proportions for the first and of at
        most 256 pixels for the second (lamp cores are small): factor on reflected light with 1 for unit white
        light, and linear light to add.
    """
    longest = max(height, width)
    grids = []
    for limit in (_FIELD, 256):
        factor = min(1.0, limit / longest)
        h, w = max(1, round(height * factor)), max(1, round(width * factor))
        grids.append(((np.arange(h) + 0.5)[:, None] / max(h, w), (np.arange(w) + 0.5)[None, :] / max(h, w)))
    (y, x), (fine_y, fine_x) = (tuple(a.astype(np.float32) for a in g) for g in grids)
    bottom, right = height / longest, width / longest

    scene = np.broadcast_to(_colour(cast), (y.size, x.size, 3)).copy()
    glare = np.zeros((3, fine_y.size, fine_x.size), np.float32)
    for lamp in lamps:
        at_x, at_y = lamp["x"] * right, lamp["y"] * bottom
        pool_y = at_y + lamp["drop"] * bottom
        # A pool on the ground is seen at a grazing angle: flatter than wide.
        squared = ((x - at_x) / lamp["reach"]) ** 2 + ((y - pool_y) / (0.6 * lamp["reach"])) ** 2
        colour = _colour(lamp["colour"])
        scene += (np.float32(lamp["power"]) / (1 + squared))[..., None] * colour
        squared = ((fine_x - at_x) ** 2 + (fine_y - at_y) ** 2) / np.float32(lamp["core"] ** 2)
        halo = np.float32(lamp["glow"]) / (1 + squared / 9) + np.exp(-squared)
        glare += halo * colour[:, None, None]
    if headlights > 0:
        squared = ((x - 0.5 * right) / 0.45) ** 2 + ((y - 0.85 * bottom) / 0.22) ** 2
        scene += (np.float32(headlights) / (1 + squared) ** 2)[..., None] * _colour(0.15)
    return scene, cv2.merge(list(glare))
