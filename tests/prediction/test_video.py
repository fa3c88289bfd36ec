"""Videos as OpenCV writes and reads them: every frame, once, in order, at its own size and pace."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from icda.errors import UserError
from icda.prediction.video import FALLBACK_FPS, VideoReader, VideoWriter


def frame(i: int, size: tuple[int, int]) -> np.ndarray:
    """RGB: red on the left, blue on the right, and the number as grey level in the middle."""
    picture = np.full((*size, 3), 20 + 8 * i, np.uint8)
    third = size[1] // 3
    picture[:, :third], picture[:, -third:] = (200, 0, 0), (0, 0, 200)
    return picture


def write(
    path: Path, count: int = 12, fps: float = 10, size: tuple[int, int] = (64, 96), codec: str = "mp4v"
) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size[::-1])
    assert writer.isOpened()
    for i in range(count):
        writer.write(frame(i, size)[:, :, ::-1])
    writer.release()
    return path


def number(picture: np.ndarray) -> int:
    """The number of a frame, told by its middle."""
    middle = picture[:, picture.shape[1] * 4 // 10 : picture.shape[1] * 6 // 10]
    return round((middle.mean() - 20) / 8)


@pytest.mark.parametrize(
    ("name", "codec"), [("a b ü.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mov", "mp4v"), ("a.mkv", "MJPG"), ("A", "avi")]
)
def test_reading(tmp_path, name, codec):
    if codec == "avi":  # the content counts, not the name
        path = write(tmp_path / "x.avi", codec="MJPG").rename(tmp_path / name)
    else:
        path = write(tmp_path / name, codec=codec)
    with VideoReader(path) as video:
        assert video.size == (64, 96) and video.fps == 10 and video.declared == 12
        frames = list(video)
    assert [number(picture) for picture in frames] == list(range(12))
    assert frames[0][:, :20, 0].mean() > 150 > 60 > frames[0][:, :20, 2].mean()  # red on the left: RGB, not BGR


def quarter_turn(path: Path) -> Path:
    """Have an MP4 file say that its pictures are to be turned by 90 degrees, as telephones do."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version and flags, times, id, duration, layer, volume: then the matrix
    assert struct.unpack(">9i", data[start : start + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def test_rotation_is_respected(tmp_path):
    with VideoReader(quarter_turn(write(tmp_path / "a.mp4"))) as video:
        assert video.size == (96, 64)
        picture = next(iter(video))
    assert picture.shape == (96, 64, 3)
    assert picture[:20, :, 0].mean() > 150 > 60 > picture[:20, :, 2].mean()  # what was left is at the top


def test_a_video_without_its_pace(tmp_path, monkeypatch, caplog):
    class Silent:
        """A capture that tells neither pace nor number of frames, as of a bare stream."""

        def __init__(self, path):
            self.capture = opened(path)
            self.isOpened, self.read, self.release = self.capture.isOpened, self.capture.read, self.capture.release

        def get(self, key):
            return {cv2.CAP_PROP_FPS: 0.0, cv2.CAP_PROP_FRAME_COUNT: -9.2e18}.get(key)

    path, opened = write(tmp_path / "a.avi", codec="MJPG"), cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Silent)
    with caplog.at_level(logging.WARNING), VideoReader(path) as video:
        assert video.fps == FALLBACK_FPS == 25 and video.declared is None
        assert sum(1 for _ in video) == 12
    assert "does not tell its frames per second; 25 are taken" in caplog.text


def test_files_that_are_no_videos(tmp_path):
    whole = write(tmp_path / "whole.mp4").read_bytes()
    for name, data in {"text.mp4": b"text" * 99, "empty.mkv": b"", "torn.mp4": whole[: len(whole) // 2]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} can be opened neither as an image nor as a video"):
            VideoReader(tmp_path / name)


def test_a_video_that_ends_early_gives_what_there_is(tmp_path):
    path = write(tmp_path / "a.avi", count=28, codec="MJPG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with VideoReader(path) as video:
        found = [number(picture) for picture in video]
    assert video.declared == 28 and 0 < len(found) < 28
    assert found == list(range(len(found)))


def test_a_broken_frame_in_the_middle_is_left_out(tmp_path):
    path = write(tmp_path / "a.mp4")
    pieces = path.read_bytes().split(start_of_frame := b"\x00\x00\x01\xb6")  # of MPEG-4 part 2
    assert len(pieces) == 13
    pieces[6] = b"\xff" * len(pieces[6])
    path.write_bytes(start_of_frame.join(pieces))
    with VideoReader(path) as video:
        found = [number(picture) for picture in video]
    assert video.declared == 12 and len(found) == 11 and found[:5] == list(range(5))


def test_leaving_in_the_middle_is_safe(tmp_path):
    with pytest.raises(ZeroDivisionError), VideoReader(write(tmp_path / "a.mp4")) as video:
        for i, _ in enumerate(video):
            if i == 3:
                raise ZeroDivisionError


@pytest.mark.parametrize("fps", [0.5, 10, 25, 24000 / 1001, 29.97, 60000 / 1001, 239.76])
def test_what_is_written_can_be_read_again(tmp_path, fps):
    writer = VideoWriter(tmp_path / "o ü.mp4", fps, (64, 96))
    for i in range(7):
        writer.write(frame(i, (64, 96)))
    writer.close()
    with VideoReader(tmp_path / "o ü.mp4") as video:
        assert video.size == (64, 96) and video.declared == 7 == writer.frames
        assert video.fps == pytest.approx(fps, abs=0.005)
        frames = list(video)
    assert [number(picture) for picture in frames] == list(range(7))
    assert np.abs(frames[3].astype(int) - frame(3, (64, 96))).mean() < 6


def test_of_odd_sizes_the_last_row_and_column_are_left_out(tmp_path):
    writer = VideoWriter(tmp_path / "o.mp4", 10, (63, 97))
    writer.write(frame(4, (63, 97)))
    writer.close()
    with VideoReader(tmp_path / "o.mp4") as video:
        assert video.size == (62, 96)
        assert np.abs(next(iter(video)).astype(int) - frame(4, (63, 97))[:62, :96]).mean() < 8


def test_writing_where_it_cannot_be(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*cannot be written with 64 x 96 pixels and 10 frames/s"):
        VideoWriter(tmp_path / "nowhere" / "o.mp4", 10, (64, 96))


def test_a_full_disk_is_noticed(tmp_path):
    writer = VideoWriter(tmp_path / "o.mp4", 10, (64, 96))
    for i in range(7):
        writer.write(frame(i, (64, 96)))
    writer.frames += 3  # as if OpenCV, which tells nobody, had dropped three
    with pytest.raises(UserError, match=r"was not written whole: .* \(7, 64, 96\), expected \(10, 64, 96\)"):
        writer.close()


def test_no_frame_leaves_no_file(tmp_path):
    VideoWriter(tmp_path / "o.mp4", 10, (64, 96)).close()
    assert list(tmp_path.iterdir()) == []


def test_a_video_has_its_name_only_once_it_plays(tmp_path):
    path = write(tmp_path / "o.mp4")
    before = path.read_bytes()
    writer = VideoWriter(path, 10, (64, 96))
    writer.write(frame(0, (64, 96)))
    assert path.read_bytes() == before  # as a process that is killed here leaves it
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.mp4", "o.unfinished.mp4"]
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["o.mp4"]
    with VideoReader(path) as video:
        assert sum(1 for _ in video) == 1
