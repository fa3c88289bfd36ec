"""Writing predictions as pictures, in the background."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from icda.data.classes import ClassSet
from icda.errors import UserError
from icda.viz import legend, overlay

JPEG_QUALITY = 95
JPEG_SIDE = 65_500
"""Pixels that the longer side of a JPEG may have at most: the limit of libjpeg."""
RESULTS = ("labels", "overlays", "colors", "confidence", "classes.json", "legend.png")
"""What ``PredictionWriter`` may write into its folder."""


class Background:
    """Runs calls in threads, a few ahead at most, so that memory stays bounded. For a ``with`` statement.

    Args:
        threads: How many; with one, calls run in order.
        waiting: Calls that may wait; ``submit`` waits for the first of more.
    """

    def __init__(self, threads: int = 2, waiting: int = 4) -> None:
        self.waiting = waiting
        self._pool = ThreadPoolExecutor(threads)
        self._pending: deque[Future] = deque()

    def __enter__(self) -> Background:
        return self

    def submit(self, call: Callable[..., object], *arguments: object) -> None:
        """Have a call made; raises what an earlier one raised."""
        if len(self._pending) >= self.waiting:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(call, *arguments))

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        self._pool.shutdown()
        if kind is None:
            for future in self._pending:
                future.result()


class PredictionWriter:
    """Writes predictions as pictures, and beside them ``classes.json`` and ``legend.png``, which tell the classes.

    Args:
        folder: Gets ``labels/<name>.png`` (train ids, one channel of 8 bit), ``overlays/<name>.jpg`` (the colours of
            the classes over the image), ``colors/<name>.png`` and ``confidence/<name>.png`` (one channel of 16 bit,
            65535 times the probability).
        classes: The label space.
        labels: Whether to write train ids.
        overlays: Whether to write overlays.
        colors: Whether to write colours.
        confidence: Whether to write confidences.
        opacity: Of the colours in overlays, 0..1.
    """

    def __init__(
        self,
        folder: Path,
        classes: ClassSet,
        *,
        labels: bool = True,
        overlays: bool = False,
        colors: bool = False,
        confidence: bool = False,
        opacity: float = 0.5,
    ) -> None:
        self.folder = folder
        self.classes = classes
        self.labels = labels
        self.overlays = overlays
        self.colors = colors
        self.confidence = confidence
        self.opacity = opacity
        described = [
            {"id": i, "name": name, "color": list(color)}
            for i, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True))
        ]
        content = {"name": classes.name, "ignore": classes.ignore_index, "classes": described}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "classes.json").write_text(json.dumps(content, indent=2) + "\n")
        write_picture(folder / "legend.png", legend(classes))

    def __call__(
        self, name: str, image: np.ndarray | None, labels: np.ndarray, confidence: np.ndarray | None = None
    ) -> None:
        """Write what is wanted of a prediction. Calls from several threads may overlap.

        Args:
            name: Relative path with ``/``, without ending.
            image: RGB (H, W, 3) uint8; read for overlays.
            labels: Train ids (H, W) uint8.
            confidence: Probabilities (H, W) float32; read if these are to be written.
        """
        if self.labels:
            write_picture(self.folder / "labels" / f"{name}.png", labels)
        if self.overlays:
            blended = overlay(image, labels, self.classes, self.opacity)
            write_picture(self.folder / "overlays" / f"{name}.jpg", blended)
        if self.colors:
            write_picture(self.folder / "colors" / f"{name}.png", self.classes.colorize(labels))
        if self.confidence:
            write_picture(self.folder / "confidence" / f"{name}.png", to_uint16(confidence))


def counted(count: int, unit: str) -> str:
    """A number with its unit, given in the plural: "1 image", "2 images"."""
    return f"{count} {unit if count != 1 else unit.removesuffix('s')}"


def to_uint16(confidence: np.ndarray) -> np.ndarray:
    """Probabilities (H, W) float, 0..1, as (H, W) uint16, 0..65535, rounded."""
    return np.rint(confidence * float(np.iinfo(np.uint16).max)).astype(np.uint16)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a PNG or JPEG file, by its ending, with its folders; any name that the file system takes will do.

    Args:
        path: Where it goes.
        picture: RGB (H, W, 3) uint8, or one channel (H, W) uint8 or uint16.

    Raises:
        OSError: If it cannot be written.
        UserError: If the format cannot hold it.
    """
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
    try:
        done, data = cv2.imencode(path.suffix, bgr, options)
    except cv2.error:
        done = False
    if not done:
        raise UserError(f"{path} cannot be made of {picture.shape[0]} x {picture.shape[1]} pixels (height x width)")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())
