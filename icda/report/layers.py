"""What the viewer of the evaluation page shows of an image, small enough to be embedded in the page."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from icda.evaluation import Scored
from icda.metrics import ConfusionMatrix
from icda.report.html import jpeg

PERCENT = 100
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601), those of OpenCV's grey pictures."""
_LEVEL = 4  # of deflate; 6 takes three times as long for a twelfth less
_QUALITIES = (70, 50, 35, 20, 10)


@dataclass(frozen=True)
class Layers:
    """One image with its label and prediction, at the size that is embedded.

    Args:
        picture: RGB (h, w, 3) uint8.
        truth: Train ids (h, w) uint8, and the ignore index.
        prediction: Train ids (h, w) uint8.
        confidence: Probabilities in percent (h, w) uint8, 0..100, rounded.
        counts: Pixels by label and prediction at the label's own size, (C, C) int64.
    """

    picture: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    counts: np.ndarray

    def plain(self, ignore_index: int) -> dict[str, Any]:
        """The layers as plain values for the page's script, with files and planes in base64.

        Args:
            ignore_index: The train id of pixels without a label.
        """
        matrix = ConfusionMatrix(len(self.counts), ignore_index)
        matrix.matrix += self.counts
        return {
            "height": self.truth.shape[0],
            "width": self.truth.shape[1],
            "picture": base64.b64encode(jpeg(self.picture)).decode("ascii"),
            "truth": packed(self.truth),
            "prediction": packed(self.prediction),
            "confidence": packed(self.confidence),
            "truthPixels": self.counts.sum(1).tolist(),
            "predictedPixels": self.counts.sum(0).tolist(),
            "iou": [None if np.isnan(value) else float(value) for value in matrix.iou()],
        }


def packed(plane: np.ndarray) -> str:
    """A plane of numbers, lossless and small, for the page's script.

    Each row is stored as its difference from the one above, modulo 256, which leaves most of a label map zero; all is
    deflated (zlib) and written in base64. Not a PNG, because a script could read one through a canvas alone, where
    colour management and the noise that some browsers add against tracking change ids.

    Args:
        plane: (h, w) uint8.
    """
    assert plane.dtype == np.uint8 and plane.ndim == 2, (plane.dtype, plane.shape)
    differences = np.diff(plane, axis=0, prepend=np.zeros_like(plane[:1]))
    return base64.b64encode(zlib.compress(differences.tobytes(), _LEVEL)).decode("ascii")


def embedded_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width of a picture whose longer side is brought down to ``side`` pixels, if it is longer."""
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def layers_of(scored: Scored, mean: np.ndarray, std: np.ndarray, side: int) -> Layers:
    """The layers of an image that was scored.

    Args:
        scored: The image and what came of it.
        mean: (3,) float of the normalisation.
        std: (3,) float of the normalisation.
        side: Longest side in pixels.
    """
    height, width = embedded_size(scored.label.shape, side)
    return Layers(
        picture(scored, mean, std, (height, width)),
        *(_nearest(ids, height, width) for ids in (scored.label, scored.prediction)),
        np.rint(_nearest(scored.confidence, height, width) * PERCENT).astype(np.uint8),
        scored.counts,
    )


def _nearest(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    if plane.shape == (height, width):
        return plane.copy()
    return cv2.resize(plane, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def picture(scored: Scored, mean: np.ndarray, std: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image at a size, as it entered the network.

    Args:
        scored: Holds the image.
        mean: (3,) float of the normalisation.
        std: (3,) float of the normalisation.
        size: Height and width (h, w).

    Returns:
        RGB (h, w, 3) uint8.
    """
    result = np.empty((*size, 3), np.uint8)
    for channel, plane in enumerate(scored.image.numpy()):
        shrinks = plane.shape[0] >= size[0] and plane.shape[1] >= size[1]
        resized = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        levels = (resized * std[channel] + mean[channel]) * np.iinfo(np.uint8).max
        result[..., channel] = np.clip(np.rint(levels), 0, np.iinfo(np.uint8).max)
    return result


def luma(scored: Scored, mean: np.ndarray, std: np.ndarray) -> float:
    """Mean brightness of the image as it entered the network, 0 (black) to 255 (white)."""
    channels = scored.image.mean((1, 2)).double().numpy() * std + mean
    return float(np.dot(LUMA, channels) * np.iinfo(np.uint8).max)


def thumbnail(scored: Scored, mean: np.ndarray, std: np.ndarray, side: int, limit: int) -> bytes:
    """A small JPEG of the image.

    Args:
        scored: Holds the image.
        mean: (3,) float of the normalisation.
        std: (3,) float of the normalisation.
        side: Longest side in pixels.
        limit: Bytes that it should not exceed: its quality falls until it does not.
    """
    small = picture(scored, mean, std, embedded_size(scored.label.shape, side))
    return next((data for data in _ever_smaller(small) if len(data) <= limit), None) or jpeg(small, _QUALITIES[-1])


def _ever_smaller(image: np.ndarray) -> Iterator[bytes]:
    for quality in _QUALITIES:
        yield jpeg(image, quality)
