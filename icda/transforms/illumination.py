"""CEM's illumination part: makes a labelled day image look like night (method section 2).

Two ways that look at night images: a translation made beforehand, as published, and the transfer of colour
and tone from a night image of the target set. `icda.transforms.relight` needs neither.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np

from icda.errors import UserError
from icda.transforms import light
from icda.transforms.checks import check_number, check_range, check_rgb


class _Companion(A.ImageOnlyTransform):
    """A transform that needs a second image, given under `metadata_key` in the same call."""

    def __init__(self, metadata_key: str, p: float) -> None:
        owner = type(self).__name__
        super().__init__(p=check_number(owner, "p", p, 0, 1))
        if not isinstance(metadata_key, str) or metadata_key in {"", "image", "mask", "images", "masks"}:
            raise UserError(f"{owner}: metadata_key is {metadata_key!r}; give a key of its own, a string.")
        self.metadata_key = metadata_key

    @property
    def targets_as_params(self) -> list[str]:
        """The key of the second image."""
        return [self.metadata_key]

    def update_transform_params(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Adds the image's shape; the first to see a call's data, so it reports a missing second image."""
        if data.get(self.metadata_key) is None:
            owner, key = type(self).__name__, self.metadata_key
            raise UserError(f"{owner}: no {key!r} was given; call the pipeline with {key}=<RGB image, uint8>.")
        return super().update_transform_params(params, data)


class TranslatedIllumination(_Companion):
    """Replaces the image by its night translation, given beside it.

    The published set-up: translations made beforehand by a generative network (CycleGAN). The translation
    must show the image as it is at this point of the pipeline: crop and flip it along
    (`additional_targets={"translated": "image"}` does so), or crop before.

    Args:
        metadata_key: The key under which the call gives the translation: `pipeline(image=..., translated=...)`.
        p: Probability.

    Raises:
        UserError: If an argument is wrong; on a call, if the translation is missing, or is not RGB uint8 of the
            image's size.

    Targets:
        image: RGB (H, W, 3) uint8.
    """

    def __init__(self, metadata_key: str = "translated", p: float = 1.0) -> None:
        super().__init__(metadata_key, p)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Checks the translation and hands it on."""
        owner, key = type(self).__name__, self.metadata_key
        return {"translated": check_rgb(owner, key, data[key], params["shape"][:2])}

    def apply(self, img: np.ndarray, translated: np.ndarray, **params: Any) -> np.ndarray:
        """The translation, a copy."""
        check_rgb(type(self).__name__, "image", img, translated.shape[:2])
        return translated.copy()


class StyleIllumination(_Companion):
    """Gives the image the light of a night image: its layout, tone, colour and noise. Nothing is trained.

    1. Layout. By day the sky is the brightest region, by night a dark one: no tone curve can turn that around.
       So the image is split into large-scale brightness (which keeps edges) and detail, and the former is
       moved towards that of the night image at the same place, whose own detail is blurred away.
    2. Tone. A monotone curve of bounded slope moves the distribution of luma to the night image's.
    3. Colour. Mean and covariance of colourfulness move to the night image's, luma stays.
    4. Noise of the night image's level is added.

    With strength 0 nothing changes. The night image may have any size.

    Args:
        metadata_key: The key under which the call gives the night image, RGB (h, w, 3) uint8.
        strength: Range of the share of the change that is made, 0..1 (geometric in brightness).
        layout: Range of the share of large-scale brightness that is exchanged, 0..1.
        layout_detail: Range of how much of the layout is two-dimensional, 0..1; the rest is the mean of each
            row, which holds for any street.
        flip: Probability that the night image's layout is mirrored.
        max_slope: Steepest slope of the tone curve, 1..10.
        noise: Range of the added noise, 0..4, as a multiple of the night image's.
        p: Probability.

    Raises:
        UserError: If an argument is out of range; on a call, if image or night image is not RGB uint8, or the
            night image is missing.

    Targets:
        image: RGB (H, W, 3) uint8.
    """

    def __init__(
        self,
        metadata_key: str = "style_image",
        strength: tuple[float, float] = (0.7, 1.0),
        layout: tuple[float, float] = (0.6, 1.0),
        layout_detail: tuple[float, float] = (0.0, 0.6),
        flip: float = 0.5,
        max_slope: float = 3.0,
        noise: tuple[float, float] = (0.5, 1.5),
        p: float = 1.0,
    ) -> None:
        super().__init__(metadata_key, p)
        owner = type(self).__name__
        self.strength = check_range(owner, "strength", strength, 0, 1)
        self.layout = check_range(owner, "layout", layout, 0, 1)
        self.layout_detail = check_range(owner, "layout_detail", layout_detail, 0, 1)
        self.flip = check_number(owner, "flip", flip, 0, 1)
        self.max_slope = check_number(owner, "max_slope", max_slope, 1, 10)
        self.noise = check_range(owner, "noise", noise, 0, 4)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Checks the night image and draws all amounts."""
        key = self.metadata_key
        return {
            "style": check_rgb(type(self).__name__, key, data[key]),
            "strength": self.py_random.uniform(*self.strength),
            "layout": self.py_random.uniform(*self.layout),
            "layout_detail": self.py_random.uniform(*self.layout_detail),
            "mirrored": self.py_random.random() < self.flip,
            "noise": self.py_random.uniform(*self.noise),
            "noise_seed": int(self.random_generator.integers(2**32)),
        }

    def apply(
        self,
        img: np.ndarray,
        style: np.ndarray,
        strength: float,
        layout: float,
        layout_detail: float,
        mirrored: bool,
        noise: float,
        noise_seed: int,
        **params: Any,
    ) -> np.ndarray:
        """The image in the light of `style`."""
        check_rgb(type(self).__name__, "image", img)
        if strength == 0:
            return img
        height, width = img.shape[:2]
        rgb = img.astype(np.float32)
        bright = light.luma(rgb)
        field = _layout_field(style, layout_detail, mirrored)
        field_luma = light.luma(field)
        # 1. Brightness moves in its logarithm; + 1 level keeps black finite.
        base = np.maximum(light.base_layer(bright), 1)
        moved = light.enlarge(cv2.log(field_luma + 1), height, width) - cv2.log(base + 1)
        moved *= np.float32(layout)
        tint = (field + 1) / (field_luma + 1)[..., None]
        rgb *= light.enlarge(cv2.pow(tint, layout * strength), height, width)
        # 2.
        lit = bright * cv2.exp(moved)
        gray = cv2.cvtColor(style, cv2.COLOR_RGB2GRAY)
        # Thinned out, not averaged: lamps and noise belong to the distribution.
        curve = light.tone_curve(lit[::3, ::3], _thin(gray), self.max_slope)
        moved += _curve_gain(curve, lit)
        rgb = light.scale(rgb, cv2.exp(moved * np.float32(strength)))
        # 3.
        matrix = light.chroma_matrix(_thin(rgb).reshape(-1, 3), _thin(style).reshape(-1, 3), gain=(0.4, 1.5))
        rgb = cv2.transform(rgb, np.eye(3, dtype=np.float32) * (1 - strength) + matrix * strength)
        # 4.
        sigma = strength * noise * light.noise_level(gray)
        if sigma > 0:
            rgb += light.grain(np.random.default_rng(noise_seed), height, width) * np.float32(sigma)
        # cv2 rounds half to even and saturates, but takes the absolute value first: no value may be below 0.
        return cv2.convertScaleAbs(np.maximum(rgb, 0, out=rgb)).reshape(img.shape)


def _thin(image: np.ndarray, longest: int = 160) -> np.ndarray:
    """Every n-th pixel, about `longest` of them along the longer side."""
    step = max(1, round(max(image.shape[:2]) / longest))
    return image[::step, ::step]


def _layout_field(style: np.ndarray, detail: float, mirrored: bool, longest: int = 64) -> np.ndarray:
    """Where a night image is light and which colour it has there, (h, w, 3) float32 in 0..255, blurred.

    `detail` blends, geometrically, from the mean of each row (0) to the two-dimensional field (1).
    """
    small = light.shrink(style, longest)
    sigma = 0.1 * max(small.shape[:2])
    field = cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    field = field[:, ::-1] if mirrored else field
    rows = field.mean(1, keepdims=True)
    return np.ascontiguousarray((field + 1) ** detail * (rows + 1) ** (1 - detail) - 1, np.float32)


def _curve_gain(curve: np.ndarray, values: np.ndarray, steps: int = 1024, most: float = 4.0) -> np.ndarray:
    """Logarithm of the factor by which a tone curve changes each value, (H, W) float32.

    Looked up in a table; the factor is at most `most`, for what is nearly black has no colour to amplify.
    """
    top = float(curve[0, -1]) + 1
    grid = (np.arange(steps) + 0.5) * top / steps
    factor = (np.interp(grid, *curve) + 1e-2) / (grid + 1e-2)
    table = np.log(np.clip(factor, 1e-3, most)).astype(np.float32)
    index = np.clip(values * np.float32(steps / top), 0, steps - 1).astype(np.uint16)
    return table.take(index)
