"""Reading and writing videos with OpenCV, frame by frame: what is written is opened again and compared."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from icda.data.io import resize_image
from icda.errors import UserError

log = logging.getLogger(__name__)

FALLBACK_FPS = 25.0
"""Frames per second of a video that does not tell its own."""
MAX_FPS = 1000.0
"""Containers that tell more mean the ticks of their clock, not frames."""
CODEC = "mp4v"
"""MPEG-4 part 2: OpenCV's wheels cannot write H.264."""


class VideoReader:
    """A video file. Frames are turned as its rotation metadata says and never held for longer than needed.

    Broken frames are left out.

    Args:
        path: Anything that OpenCV opens: mp4, avi, mov, mkv, ...

    Attributes:
        path: The file.
        size: Height and width of the frames.
        fps: Frames per second; ``FALLBACK_FPS`` where the file does not tell.
        declared: Number of frames that the container names; None if it names none.

    Raises:
        UserError: If the file cannot be opened or holds no frame.
    """

    def __init__(self, path: Path) -> None:
        # Read by OpenCV when it opens its first video: what FFmpeg has to say about a damaged file is no help.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        fps, declared = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.declared = int(declared) if declared > 0 else None
        self._read = 0
        self._first = self._grab() if self._capture.isOpened() else None
        if self._first is None:
            self._capture.release()
            raise UserError(
                f"{path} can be opened neither as an image nor as a video; give a PNG, a JPEG, a folder of these, or "
                "a whole video file such as .mp4, .avi, .mov or .mkv"
            )
        self.size: tuple[int, int] = self._first.shape[:2]
        self.fps = float(fps) if 0 < fps <= MAX_FPS else FALLBACK_FPS
        if self.fps != fps:
            log.warning("%s does not tell its frames per second; %g are taken", path, self.fps)
        self._ahead = ThreadPoolExecutor(1)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_error: object) -> None:
        self._ahead.shutdown()  # a capture must not be closed while it decodes
        self._capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames in order, RGB (H, W, 3) uint8, once. The next one is decoded while one is in use."""
        frame, self._first = self._first, None
        while frame is not None:
            following = self._ahead.submit(self._grab)
            yield resize_image(frame, self.size)  # a stream may change its size in the middle, a file cannot
            frame = following.result()

    def _grab(self) -> np.ndarray | None:
        """The next frame that can be read; None at the end."""
        while True:
            found, frame = self._capture.read()
            self._read += 1
            if found:
                return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            if self._read >= (self.declared or 0):  # before it, OpenCV says of a broken frame what it says of the end
                return None


class VideoWriter:
    """Writes frames to an MP4 file, which has another name (``x.unfinished.mp4``) until ``close``, since none plays.

    Args:
        path: Where it goes; its folder exists.
        fps: Frames per second.
        size: Height and width of the frames. The codec wants even numbers: of an odd one the last row or column is
            left out.

    Attributes:
        frames: How many were written.

    Raises:
        UserError: If no such video can be written.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self.path = path
        self.fps = fps
        self.size = size[0] - size[0] % 2, size[1] - size[1] % 2
        self.frames = 0
        self._unfinished = path.with_name(f"{path.stem}.unfinished{path.suffix}")
        self._writer = cv2.VideoWriter(str(self._unfinished), cv2.VideoWriter_fourcc(*CODEC), fps, self.size[::-1])
        if not self._writer.isOpened():
            raise UserError(
                f"{path} cannot be written with {size[0]} x {size[1]} pixels and {fps:g} frames/s; choose another "
                "place with hydra.run.dir=, or give overlays=false labels=true"
            )

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, RGB (H, W, 3) uint8."""
        height, width = self.size
        self._writer.write(cv2.cvtColor(frame[:height, :width], cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        """Finish the file, open it again and compare, and give it its name. Without a frame there is none.

        Raises:
            UserError: If it has other frames than were written, as on a full disk.
        """
        self._writer.release()
        if self.frames == 0:
            self._unfinished.unlink(missing_ok=True)
            return
        capture = cv2.VideoCapture(str(self._unfinished))
        keys = cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH
        found = tuple(int(capture.get(key)) for key in keys)
        fps = capture.get(cv2.CAP_PROP_FPS)
        capture.release()
        if found != (self.frames, *self.size):
            raise UserError(
                f"{self._unfinished} was not written whole: (frames, height, width) are {found}, expected "
                f"{(self.frames, *self.size)}; is the disk full?"
            )
        if abs(fps - self.fps) > 0.01:
            log.warning("%s has %.3f frames/s instead of %.3f", self.path, fps, self.fps)
        self._unfinished.replace(self.path)
