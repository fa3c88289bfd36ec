"""Normalisation of what CEM has warped (method section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np

from icda.errors import UserError
from icda.transforms.arrays import set_where
from icda.transforms.checks import check_number, check_rgb

_LEVELS = np.iinfo(np.uint8).max


class NormalizeInside(A.ImageOnlyTransform):
    """Normalises RGB as `A.Normalize` does; with a fourth channel, what that one calls outside becomes exactly 0.

    0 is the mean colour, which no level of 8 bits needs to be: so it is set here, and a warp that comes before can
    move bytes instead of numbers of 32 bits.

    Args:
        mean: Mean of R, G, B, of values in 0..1.
        std: Their standard deviations, above 0.
        p: Probability.

    Raises:
        UserError: If an argument is out of range; on a call, if the image is neither RGB nor RGBA uint8.

    Targets:
        image: RGB (H, W, 3) or RGBA (H, W, 4) uint8, as `SpatialCEM(alpha=True)` makes it: 0 in the fourth channel
            is outside. It comes out as float32 (H, W, 3).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], p: float = 1.0) -> None:
        owner = type(self).__name__
        super().__init__(p=check_number(owner, "p", p, 0, 1))
        for name, values, low in (("mean", mean, -np.inf), ("std", std, 1e-6)):
            if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 3:
                raise UserError(f"{owner}: {name} is {values!r}; give three numbers, for R, G and B.")
            for value in values:
                check_number(owner, name, value, low)
        self.mean = tuple(mean)
        self.std = tuple(std)
        denominator = np.reciprocal(np.array(std, np.float32) * _LEVELS, dtype=np.float32)
        table = (
            np.arange(_LEVELS + 1, dtype=np.float32)[:, None] - np.array(mean, np.float32) * _LEVELS
        ) * denominator
        self._table = table[None]

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """The normalised image, (H, W, 3) float32."""
        if img.shape[2:] != (4,):
            return cv2.LUT(check_rgb(type(self).__name__, "image", img), self._table)
        rgb = check_rgb(type(self).__name__, "image", cv2.cvtColor(img, cv2.COLOR_RGBA2RGB))
        normalised = cv2.LUT(rgb, self._table)
        set_where(normalised, np.equal(cv2.extractChannel(img, 3), 0).view(np.uint8), 0)
        return normalised
