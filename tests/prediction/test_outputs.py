"""Predictions on disk, and calls in the background."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from icda.data.classes import CITYSCAPES
from icda.errors import UserError
from icda.prediction.outputs import Background, PredictionWriter, to_uint16, write_picture


def test_everything_is_written_and_can_be_read_with_what_stands_beside_it(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 18, 3), np.uint8)
    labels = rng.integers(0, 19, (12, 18)).astype(np.uint8)
    confidence = rng.random((12, 18)).astype(np.float32)
    writer = PredictionWriter(tmp_path / "run", CITYSCAPES, overlays=True, colors=True, confidence=True)
    writer("sub dir/ä 1.x", image, labels, confidence)
    run = tmp_path / "run"
    with Image.open(run / "labels" / "sub dir" / "ä 1.x.png") as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(picture, labels)
    with Image.open(run / "confidence" / "sub dir" / "ä 1.x.png") as picture:
        np.testing.assert_allclose(np.array(picture, np.float64) / 65535, confidence, atol=0.51 / 65535)
    described = json.loads((run / "classes.json").read_text())
    colors = np.array([entry["color"] for entry in described["classes"]], np.uint8)
    with Image.open(run / "colors" / "sub dir" / "ä 1.x.png") as picture:
        np.testing.assert_array_equal(picture, colors[labels])
    assert [entry["name"] for entry in described["classes"]] == list(CITYSCAPES.names)
    assert described["ignore"] == 255
    with Image.open(run / "overlays" / "sub dir" / "ä 1.x.jpg") as picture:
        assert picture.size == (18, 12)
    assert (run / "legend.png").is_file()


def test_only_what_is_wanted_is_written(tmp_path):
    PredictionWriter(tmp_path, CITYSCAPES)("a", None, np.zeros((4, 4), np.uint8))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.json", "labels", "legend.png"]


def test_confidence_is_rounded():
    values = np.array([[0, 0.5, 1, 1 / 65535, 1.49 / 65535]], np.float32)
    assert to_uint16(values).tolist() == [[0, 32768, 65535, 1, 1]] and to_uint16(values).dtype == np.uint16


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r"x\.png"):
        (tmp_path / "x.png").mkdir()
        write_picture(tmp_path / "x.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match=r"y\.jpg cannot be made of 1 x 70000 pixels"):
        write_picture(tmp_path / "y.jpg", np.zeros((1, 70000, 3), np.uint8))


def test_few_calls_wait():
    started, go = [], threading.Event()

    def call(i):
        started.append(i)
        go.wait(10)

    with Background(threads=1, waiting=2) as background:
        background.submit(call, 0)
        background.submit(call, 1)
        third = threading.Thread(target=background.submit, args=(call, 2))
        third.start()
        time.sleep(0.1)
        assert third.is_alive() and started == [0]
        go.set()
        third.join(10)
    assert started == [0, 1, 2]


def test_errors_come_back():
    def fail():
        raise UserError("disk")

    with pytest.raises(UserError, match="disk"), Background() as background:
        background.submit(fail)
    done = []
    with pytest.raises(ZeroDivisionError), Background() as background:
        background.submit(done.append, 1)
        raise ZeroDivisionError
    assert done == [1]
