"""CEM's inverse: a day-like reference made from a night image itself."""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np

from icda.transforms import light
from icda.transforms.checks import check_number, check_range, check_rgb


class LiftIllumination(A.ImageOnlyTransform):
    """Lifts a night image towards daylight; it stands in for a day reference where there is none.

    Noise is reduced first, because all that follows amplifies it. Then, in linear light: colour cast reduced
    (partial grey world), exposure raised to a target mean by x g / (1 + x (g - 1)), which keeps black and white
    and rolls highlights off. Last, local contrast (CLAHE on lightness). An image that is bright enough already
    keeps its exposure. Nothing is random unless `strength` is a range.

    Args:
        strength: Share of the change that is made, 0..1: one number, or a range to draw from.
        mean: Target mean of linear light, 0.01..0.9 (0.2 is a normally exposed day image).
        max_gain: Largest gain g, 1..200; bounds how far noise is amplified.
        white_balance: Share of the colour cast that is removed, 0..1.
        clip_limit: Contrast limit of CLAHE, 0..40; 0 leaves local contrast as it is.
        tiles: Number of CLAHE's tiles along each side, 1..64.
        denoise: Strength of noise reduction, in grey levels of the night image, 0..100; 0 is off.
        p: Probability.

    Raises:
        UserError: If an argument is out of range, or, on a call, if the image is not RGB uint8.

    Targets:
        image: RGB (H, W, 3) uint8.
    """

    def __init__(
        self,
        strength: float | tuple[float, float] = 1.0,
        mean: float = 0.18,
        max_gain: float = 40.0,
        white_balance: float = 0.6,
        clip_limit: float = 1.5,
        tiles: int = 8,
        denoise: float = 8.0,
        p: float = 1.0,
    ) -> None:
        owner = type(self).__name__
        super().__init__(p=check_number(owner, "p", p, 0, 1))
        self.strength = check_range(owner, "strength", strength, 0, 1)
        self.mean = check_number(owner, "mean", mean, 0.01, 0.9)
        self.max_gain = check_number(owner, "max_gain", max_gain, 1, 200)
        self.white_balance = check_number(owner, "white_balance", white_balance, 0, 1)
        self.clip_limit = check_number(owner, "clip_limit", clip_limit, 0, 40)
        self.tiles = check_range(owner, "tiles", tiles, 1, 64, integer=True)[0]
        self.denoise = check_number(owner, "denoise", denoise, 0, 100)

    def get_params(self) -> dict[str, Any]:
        """Draws the strength."""
        return {"strength": self.py_random.uniform(*self.strength)}

    def apply(self, img: np.ndarray, strength: float, **params: Any) -> np.ndarray:
        """The lifted image."""
        check_rgb(type(self).__name__, "image", img)
        if strength == 0:
            return img
        clean = self._denoised(img) if self.denoise > 0 else img
        linear = light.srgb_to_linear(clean)
        linear = cv2.transform(linear, np.diag(_grey_world(linear, self.white_balance)))
        bright = light.luma(linear)
        gain = np.float32(exposure_gain(bright, self.mean, self.max_gain))
        lifted = light.linear_to_srgb(light.scale(linear, gain / (1 + bright * (gain - 1))))
        if self.clip_limit > 0:
            lightness, a, b = cv2.split(cv2.cvtColor(lifted, cv2.COLOR_RGB2LAB))
            lightness = cv2.createCLAHE(self.clip_limit, (self.tiles, self.tiles)).apply(lightness)
            lifted = cv2.cvtColor(cv2.merge([lightness, a, b]), cv2.COLOR_LAB2RGB)
        return lifted if strength == 1 else cv2.addWeighted(lifted, strength, img, 1 - strength, 0)

    def _denoised(self, image: np.ndarray) -> np.ndarray:
        """Brightness smoothed within edges, colour (where the eye and the network see less) more coarsely."""
        bright, red, blue = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb))
        bright = cv2.bilateralFilter(bright, 5, 2 * self.denoise, 2)
        height, width = image.shape[:2]
        size = ((width + 1) // 2, (height + 1) // 2)

        def smooth(plane: np.ndarray) -> np.ndarray:
            half = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
            return light.enlarge(cv2.blur(half, (3, 3)), height, width)

        return cv2.cvtColor(cv2.merge([bright, smooth(red), smooth(blue)]), cv2.COLOR_YCrCb2RGB)


def exposure_gain(bright: np.ndarray, mean: float, most: float) -> float:
    """The gain g in 1..most with which x g / (1 + x (g - 1)) has the wanted mean, or comes nearest to it.

    Args:
        bright: Linear luminance, (H, W) float32 in 0..1.
        mean: Wanted mean, 0..1.
        most: Largest gain.

    Returns:
        The gain; 1 where the mean is high enough already.
    """
    values = light.shrink(bright, 128).astype(np.float64)
    low, high = 1.0, float(most)
    for _ in range(24):
        gain = (low + high) / 2
        if (values * gain / (1 + values * (gain - 1))).mean() < mean:
            low = gain
        else:
            high = gain
    return low


def _grey_world(linear: np.ndarray, share: float, most: float = 1.6) -> np.ndarray:
    """Gains of R, G, B, (3,) float32, that remove a share of the mean colour and keep mean luma.

    Bounded to 1 / most .. most, for a picture may be of one colour.
    """
    means = light.shrink(np.minimum(linear, 0.5), 64).reshape(-1, 3).mean(0) + 1e-4
    gains = np.clip((means.mean() / means) ** share, 1 / most, most)
    return (gains * (light.LUMA @ means) / (light.LUMA @ (gains * means))).astype(np.float32)
