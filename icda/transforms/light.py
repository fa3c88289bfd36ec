"""Light and tone of images: linear light, large-scale brightness, tone curves, colour statistics, noise.

Building blocks of the illumination transforms; plain numpy and OpenCV, no randomness but from a generator
that is passed in.
"""

from __future__ import annotations

import cv2
import numpy as np

LUMA = np.array((0.299, 0.587, 0.114), np.float32)
"""Weights of R, G, B in luma (ITU-R BT.601), as `cv2.COLOR_RGB2GRAY` has them."""

_LEVELS = 255
# Fine enough that neighbouring entries are 0.2 grey levels apart at the dark end, where sRGB is steepest.
_LINEAR_STEPS = 1 << 14


def srgb_to_linear(image: np.ndarray) -> np.ndarray:
    """sRGB (..., uint8) to linear light, float32 in 0..1 (IEC 61966-2-1)."""
    value = np.arange(_LEVELS + 1) / _LEVELS
    table = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return cv2.LUT(image, table.astype(np.float32)).reshape(image.shape)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light (float32, 1 is white; clipped to 0..1) to sRGB, uint8."""
    value = np.arange(_LINEAR_STEPS) / (_LINEAR_STEPS - 1)
    table = np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)
    table = np.rint(table * _LEVELS).astype(np.uint8)
    # cv2 rounds and saturates in one pass.
    index = cv2.multiply(linear, _LINEAR_STEPS - 1.0, dtype=cv2.CV_16U)
    return table.take(np.minimum(index, _LINEAR_STEPS - 1).reshape(linear.shape))


def luma(rgb: np.ndarray) -> np.ndarray:
    """Luma of float32 RGB (H, W, 3): (H, W) float32."""
    return cv2.transform(rgb, LUMA[None]).reshape(rgb.shape[:2])


def scale(rgb: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) float32 times a factor per pixel, (H, W) float32."""
    return cv2.multiply(rgb, cv2.merge([factor, factor, factor]))


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """Area-averaged copy whose longer side is at most `longest` pixels; float32."""
    height, width = image.shape[:2]
    factor = min(1.0, longest / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(image.astype(np.float32, copy=False), size, interpolation=cv2.INTER_AREA)


def enlarge(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear enlargement of (h, w) or (h, w, C) to (H, W[, C])."""
    return cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR)


def base_layer(gray: np.ndarray, longest: int = 128, radius: float = 0.06, edge: float = 24.0) -> np.ndarray:
    """Large-scale brightness that keeps the borders of large regions (fast guided filter, He and Sun 2015).

    Edges stay where they are, so dividing by it leaves no halo along a skyline.

    Args:
        gray: Brightness, (H, W) float32.
        longest: Longer side at which the filter's coefficients are computed, pixels.
        radius: Radius of its window, share of the longer side.
        edge: Contrast, in the units of `gray`, above which a border is kept.

    Returns:
        (H, W) float32.
    """
    small = shrink(gray, longest)
    side = 2 * max(1, round(radius * max(small.shape))) + 1

    def mean(array: np.ndarray) -> np.ndarray:
        return cv2.blur(array, (side, side), borderType=cv2.BORDER_REFLECT_101)

    average = mean(small)
    variance = np.maximum(mean(small * small) - average * average, 0)
    slope = variance / (variance + np.float32(edge**2))
    slope, constant = mean(slope), mean(average - slope * average)
    height, width = gray.shape
    return enlarge(slope, height, width) * gray + enlarge(constant, height, width)


def tone_curve(source: np.ndarray, target: np.ndarray, max_slope: float, knots: int = 33) -> np.ndarray:
    """Monotone tone curve that moves the distribution of `source` to that of `target`, with bounded slope.

    Histogram matching with `knots` quantiles instead of all grey levels; no stretch steeper than `max_slope`,
    which keeps it from tearing the few levels of a flat region apart. What the bound costs in brightness is
    made up for as far as the bound allows.

    Args:
        source: Values, any shape.
        target: Values, any shape.
        max_slope: Largest slope, above 0.
        knots: Number of quantiles, at least 2.

    Returns:
        The curve's points, (2, knots) float64: source values (ascending), and where they go (ascending, at
        least 0).
    """
    shares = np.linspace(0, 1, knots)
    start, goal = np.quantile(source, shares), np.quantile(target, shares)
    rise, limit = np.diff(goal), max_slope * np.diff(start)
    # Where the bound cuts, the other stretches rise more steeply than asked, until the means agree.
    low, high = 1.0, 8.0
    for _ in range(16):
        middle = (low + high) / 2
        mapped = goal[0] + np.concatenate([[0.0], np.cumsum(np.minimum(middle * rise, limit))])
        low, high = (middle, high) if mapped.mean() < goal.mean() else (low, middle)
    mapped = goal[0] + np.concatenate([[0.0], np.cumsum(np.minimum(low * rise, limit))])
    # The shift may go up to the goal's fifth percentile only: lifted blacks look like fog, not like night.
    shift = min(goal.mean() - mapped.mean(), np.quantile(target, 0.05) - mapped[0])
    return np.stack([start, np.maximum(mapped + shift, 0)])


def chroma_matrix(source: np.ndarray, target: np.ndarray, gain: tuple[float, float]) -> np.ndarray:
    """Linear map of RGB that moves mean and covariance of colourfulness and keeps luma.

    Colourfulness of a pixel is (R - Y, B - Y) / Y, weighted with Y in all statistics. The map between the two
    Gaussians is the optimal transport one (Pitie and Kokaram 2007); its gains are bounded.

    Args:
        source: RGB values, (n, 3) float32, not negative.
        target: RGB values, (m, 3) float32, not negative.
        gain: Smallest and largest gain of colourfulness along any direction.

    Returns:
        (3, 3) float32; `rgb @ matrix.T` is the changed colour.
    """
    (mean_s, cov_s), (mean_t, cov_t) = _chroma_statistics(source), _chroma_statistics(target)
    root_s = _power(cov_s, 0.5)
    inverse = _power(cov_s, -0.5)
    values, vectors = np.linalg.eigh(inverse @ _power(root_s @ cov_t @ root_s, 0.5) @ inverse)
    change = (vectors * np.clip(values, *gain)) @ vectors.T
    shift = mean_t - change @ mean_s
    # (R, G, B) -> (Y, R - Y, B - Y), the change, and back.
    weights = LUMA.astype(np.float64)
    forward = np.stack([weights, np.array((1, 0, 0)) - weights, np.array((0, 0, 1)) - weights])
    middle = np.eye(3)
    middle[1:, 0], middle[1:, 1:] = shift, change
    return (np.linalg.inv(forward) @ middle @ forward).astype(np.float32)


def _chroma_statistics(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rgb = rgb.astype(np.float64)
    bright = rgb @ LUMA
    weights = bright + 1e-3
    colour = (rgb[:, [0, 2]] - bright[:, None]) / (bright[:, None] + 1)  # + 1 level: black has no colour
    mean = (weights[:, None] * colour).sum(0) / weights.sum()
    off = colour - mean
    covariance = (weights[:, None] * off).T @ off / weights.sum()
    return mean, covariance + 1e-4 * np.eye(2)


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 1e-12) ** exponent) @ vectors.T


def noise_level(gray: np.ndarray) -> float:
    """Standard deviation of an image's noise (Immerkaer 1996, with a median against texture).

    Args:
        gray: Grey image, (H, W), any type.

    Returns:
        In the units of `gray`; 0 for images narrower than 3 pixels.
    """
    if min(gray.shape) < 3:
        return 0.0
    kernel = np.array([(1, -2, 1), (-2, 4, -2), (1, -2, 1)], np.float32)
    if gray.dtype == np.uint8:  # whole numbers: the median by counting takes a third of the time
        response = cv2.filter2D(gray, cv2.CV_16S, kernel)[1:-1:2, 1:-1:2]
        ranks = np.cumsum(np.bincount(np.abs(response).ravel()))
        middle = np.searchsorted(ranks, ((ranks[-1] - 1) // 2, ranks[-1] // 2), side="right").mean()
    else:
        response = cv2.filter2D(gray.astype(np.float32, copy=False), -1, kernel)[1:-1:2, 1:-1:2]
        middle = np.median(np.abs(response))
    # 6 is the kernel's norm, 0.6745 the median of |N(0, 1)|.
    return float(middle) / (6 * 0.6745)


def grain(generator: np.random.Generator, height: int, width: int, chroma: float = 0.5) -> np.ndarray:
    """Camera noise of unit strength: fine in brightness, coarser and weaker in colour.

    Returns:
        (H, W, 3) float32.
    """
    fine = generator.standard_normal((height, width), dtype=np.float32)
    half = ((height + 1) // 2, (width + 1) // 2, 3)
    coarse = generator.standard_normal(half, dtype=np.float32) * np.float32(chroma)
    return cv2.add(enlarge(coarse, height, width), cv2.merge([fine, fine, fine]))
