"""What a video of a prediction shows, frame by frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from icda.data.classes import ClassSet
from icda.prediction.video import VideoWriter
from icda.viz import confidence_map, overlay, side_by_side

FILMS = ("side_by_side", "overlay")
"""The setting ``video``; the file is named so, with the ending ``.mp4``."""
FILM_FILES = tuple(f"{kind}.mp4" for kind in FILMS)
WIDTH = 1920
"""The most pixels that the three pictures of ``side_by_side`` are wide together: full HD."""


def film_frame(
    kind: str,
    image: np.ndarray,
    labels: np.ndarray,
    confidence: np.ndarray | None,
    classes: ClassSet,
    opacity: float = 0.5,
) -> np.ndarray:
    """A frame of the video that is written.

    Args:
        kind: One of ``FILMS``.
        image: The frame that was segmented, RGB (H, W, 3) uint8.
        labels: Train ids (H, W) uint8.
        confidence: Their probabilities (H, W) float; read for ``side_by_side``.
        classes: The label space.
        opacity: Of the classes' colours, 0..1.

    Returns:
        RGB uint8: of ``overlay`` the size of the frame; of ``side_by_side`` three pictures with their names above.
    """
    blended = overlay(image, labels, classes, opacity)
    if kind == "overlay":
        return blended
    assert confidence is not None, kind
    pictures = {"night": image, "prediction": blended, "confidence (dark 0, yellow 1)": confidence_map(confidence)}
    return side_by_side(pictures, WIDTH)


class Film:
    """The video of a prediction: an MP4 file that grows by a frame with each call.

    Args:
        folder: Where ``<kind>.mp4`` goes; it exists.
        kind: One of ``FILMS``.
        fps: Frames per second.
        size: Height and width of the frames that are segmented.
        classes: The label space.
        opacity: Of the classes' colours, 0..1.

    Raises:
        UserError: If no such video can be written.
    """

    def __init__(
        self, folder: Path, kind: str, fps: float, size: tuple[int, int], classes: ClassSet, opacity: float
    ) -> None:
        self.kind = kind
        self.classes = classes
        self.opacity = opacity
        labels, image = np.zeros(size, np.uint8), np.zeros((*size, 3), np.uint8)
        frame = film_frame(kind, image, labels, labels.astype(np.float32), classes)
        self._writer = VideoWriter(folder / f"{kind}.mp4", fps, (frame.shape[0], frame.shape[1]))

    @property
    def needs_confidence(self) -> bool:
        """Whether confidences are shown."""
        return self.kind == "side_by_side"

    @property
    def told(self) -> str:
        """What there is of it, for a message when it ends early."""
        path, frames = self._writer.path, self._writer.frames
        if frames == 0:
            return f"no frame was segmented, there is no {path.name}"
        return f"{path} holds the first {frames} frame{'s' if frames > 1 else ''}"

    def write(self, image: np.ndarray, labels: np.ndarray, confidence: np.ndarray | None) -> None:
        """Append a frame; see ``film_frame``."""
        self._writer.write(film_frame(self.kind, image, labels, confidence, self.classes, self.opacity))

    def close(self) -> None:
        """Finish the file; see ``VideoWriter.close``."""
        self._writer.close()
