"""Loggers: what they wrote, read with TensorBoard's own reader and the csv module; resumes, torn ends, full disks."""

from __future__ import annotations

import csv
import errno
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from icda.errors import UserError
from icda.training.loggers import LOGGERS, open_logger

ALL = {"scalars": 0, "images": 0}  # no sampling


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), ALL).Reload()


def read(kind: str, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every curve."""
    if kind == "tensorboard":
        board = events(folder)
        found = {name: [(e.step, e.value) for e in board.Scalars(name)] for name in board.Tags()["scalars"]}
        return {name: values for name, values in found.items() if values}  # a name outlasts its hidden values
    curves: dict[str, list[tuple[int, float]]] = {}
    with (folder / "scalars.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["name"], []).append((int(row["step"]), float(row["value"])))
    return curves


@pytest.fixture(params=["tensorboard", "csv"])
def kind(request) -> str:
    return request.param


def log_part(kind: str, folder: Path, start: int, stop: int, value: float) -> None:
    with open_logger(kind, folder, start) as logger:
        for step in range(start + 1, stop + 1):
            logger.scalars({"train/source": value + step / 64, "lr/head": 0.5}, step)
            if step % 5 == 0:
                logger.scalars({"val/miou": value}, step)
                logger.flush()


def test_a_run_stopped_at_7_and_resumed_at_5_shows_each_step_once(kind, tmp_path):
    log_part(kind, tmp_path, 0, 7, 1.0)
    log_part(kind, tmp_path, 5, 8, 2.0)
    log_part(kind, tmp_path, 5, 10, 3.0)  # all within a second
    curves = read(kind, tmp_path)
    expected = [(s, (1.0 if s <= 5 else 3.0) + s / 64) for s in range(1, 11)]
    assert curves["train/source"] == expected
    assert curves["lr/head"] == [(s, 0.5) for s in range(1, 11)]
    assert curves["val/miou"] == [(5, 1.0), (10, 3.0)]


@pytest.mark.parametrize("scored", [True, False])
def test_a_validation_that_was_cut_off_shows_once_when_it_is_made_up_for(kind, tmp_path, scored):
    """With the scores of step 5 logged, but not in its checkpoint; and with not even these."""
    log_part(kind, tmp_path, 0, 4, 1.0)
    with open_logger(kind, tmp_path, 4) as logger:
        logger.scalars({"train/source": 1 + 5 / 64, "lr/head": 0.5}, 5)
        if scored:
            logger.scalars({"val/miou": 1.0, "val_iou/road": 1.0}, 5)
            logger.image("train", np.zeros((2, 2, 3), np.uint8), 5)
        logger.scalars({"train/source": 1.5, "val/miou": 1.5}, 6)
    for value in (2.0, 3.0):  # the first part is killed before a checkpoint holds the scores
        with open_logger(kind, tmp_path, 5, validated=False) as logger:
            shown = read(kind, tmp_path)
            assert shown.keys() == {"train/source", "lr/head"} and [s for s, _ in shown["lr/head"]] == [1, 2, 3, 4, 5]
            logger.scalars({"val/miou": value}, 5)
            logger.image("train", np.full((2, 2, 3), int(value), np.uint8), 5)
    log_part(kind, tmp_path, 5, 7, 4.0)
    curves = read(kind, tmp_path)
    assert curves["val/miou"] == [(5, 3.0)] and "val_iou/road" not in curves
    assert curves["train/source"] == [(s, (1.0 if s <= 5 else 4.0) + s / 64) for s in range(1, 8)]
    assert curves["lr/head"] == [(s, 0.5) for s in range(1, 8)]
    if kind == "tensorboard":
        (event,) = events(tmp_path).Images("train")
        assert event.step == 5 and np.asarray(Image.open(io.BytesIO(event.encoded_image_string))).max() == 3


def test_repeated_scalars_keep_their_time(tmp_path):
    log_part("tensorboard", tmp_path, 0, 5, 1.0)
    before = [e.wall_time for e in events(tmp_path).Scalars("train/source")]
    open_logger("tensorboard", tmp_path, 5, validated=False).close()
    assert [e.wall_time for e in events(tmp_path).Scalars("train/source")] == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros", "length"])
def test_damaged_event_files_cost_what_follows_the_damage(tmp_path, damage):
    log_part("tensorboard", tmp_path, 0, 4, 1.0)
    (file,) = (tmp_path / "tensorboard").iterdir()
    whole = file.stat().st_size
    with open_logger("tensorboard", tmp_path, 4) as logger:
        logger.scalars({"train/source": 5.0}, 5)
    content = file.read_bytes()
    torn = {
        "cut": content[:-3],
        "flipped": content[:-6] + bytes([content[-6] ^ 1]) + content[-5:],
        "zeros": content + bytes(40),
        "length": content + b"\xff" * 40,
    }[damage]
    assert len(content) == whole
    file.write_bytes(torn)
    open_logger("tensorboard", tmp_path, 5, validated=False).close()
    steps = [step for step, _ in read("tensorboard", tmp_path)["lr/head"]]
    assert steps == ([1, 2, 3, 4] if damage in ("zeros", "length") else [1, 2, 3])
    assert read("tensorboard", tmp_path)["train/source"][-1] == (5, 5.0)
    open_logger("tensorboard", tmp_path, 4, validated=False).close()
    assert [step for step, _ in read("tensorboard", tmp_path)["train/source"]] == steps


@pytest.mark.parametrize("validated", [True, False])
def test_the_curves_of_another_run_are_dropped(kind, tmp_path, validated):
    log_part(kind, tmp_path, 0, 7, 1.0)
    with open_logger(kind, tmp_path, 5, validated, own=False) as logger:
        logger.scalars({"train/mix": 2.0}, 6)
    assert read(kind, tmp_path) == {"train/mix": [(6, 2.0)]}
    log_part(kind, tmp_path, 6, 7, 3.0)
    assert read(kind, tmp_path)["train/mix"] == [(6, 2.0)]
    if kind == "tensorboard":  # kept, but not where any reader of event files would look
        (old,) = (p for p in (tmp_path / "tensorboard").iterdir() if "tfevents" not in p.name)
        assert old.stat().st_size > 500


def test_a_run_that_starts_anew_shows_nothing_of_the_one_before(kind, tmp_path):
    log_part(kind, tmp_path, 0, 7, 1.0)
    log_part(kind, tmp_path, 0, 2, 2.0)
    assert read(kind, tmp_path)["train/source"] == [(1, 2 + 1 / 64), (2, 2 + 2 / 64)]


def test_many_restarts_within_a_second_are_read_in_their_order(tmp_path):
    for part in range(12):  # as many as make a name's order differ from the number's, were they only counted
        log_part("tensorboard", tmp_path, part, part + 3, float(part))
    values = read("tensorboard", tmp_path)["train/source"]
    assert [step for step, _ in values] == list(range(1, 15))
    assert [int(value) for _, value in values] == [*range(12), 11, 11]


@pytest.mark.slow
def test_what_a_killed_process_logged_is_there(kind, tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from icda.training.loggers import open_logger\n"
        "logger = open_logger(sys.argv[1], Path(sys.argv[2]), 0)\n"
        "logger.scalars({'a': 1.5}, 1); logger.scalars({'a': 2.5}, 2); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, kind, str(tmp_path)], capture_output=True)
    assert done.returncode == -9 and done.stderr == b""
    assert read(kind, tmp_path) == {"a": [(1, 1.5), (2, 2.5)]}


def test_a_torn_end_is_dropped(kind, tmp_path):
    log_part(kind, tmp_path, 0, 7, 1.0)
    (file,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 5)  # in lr/head of step 7
    log_part(kind, tmp_path, 7, 8, 2.0)
    curves = read(kind, tmp_path)
    assert [step for step, _ in curves["lr/head"]] == [1, 2, 3, 4, 5, 6, 8]
    assert all(value == 0.5 for _, value in curves["lr/head"])


def test_values_come_back_as_they_were(kind, tmp_path):
    values = {"a": 1 / 3, "b": float("nan"), "c": float("inf"), "d": -0.0, "e": 1e-30, 'val_iou/a "b", c': 2}
    with open_logger(kind, tmp_path, 0) as logger:
        logger.scalars(values, 1)
        logger.scalars({}, 2)
    curves = read(kind, tmp_path)
    assert curves.keys() == values.keys()
    for name, value in values.items():
        expected = value if kind == "csv" else np.float32(value)  # TensorBoard's curves are of float32
        np.testing.assert_array_equal(curves[name], [(1, expected)])


def test_the_csv_file_is_what_stands_here(tmp_path):
    with open_logger("csv", tmp_path, 0) as logger:
        logger.scalars({"train/mix": 0.1, "lr/head": 6e-05}, 50)
        assert (tmp_path / "scalars.csv").read_text() == "step,name,value\n50,train/mix,0.1\n50,lr/head,6e-05\n"
        logger.image("val", np.zeros((2, 2, 3), np.uint8), 50)
    assert [p.name for p in tmp_path.iterdir()] == ["scalars.csv"]


def test_zeros_and_an_unclosed_quote_in_the_csv_file_cost_only_their_lines(tmp_path):
    path = tmp_path / "scalars.csv"
    path.write_bytes(b'step,name,value\n1,a,1.0\n2,a\n\0\0\0\0\n3,a,3.0\n4,"b,5\n')
    with open_logger("csv", tmp_path, 4):
        pass
    assert path.read_text() == "step,name,value\n1,a,1.0\n3,a,3.0\n"


@pytest.mark.parametrize(
    "damage",
    [
        b'2,"b,2.0\n',
        b'2,b,"2.0\n',
        b'2,b"c,2.0\n',
        b"2,b\xff,2.0\n",
        b"2,b," + b"1" * 200_000 + b"\n",
        b"2," + b"b" * 200_000 + b",2.0\n",
        b"9" * 5000 + b",b,2.0\n",
        b"2,b,two\nx,b,2.0\n2,b,2.0,2.0\n2,b\n\n\r\n",
        b"2,b\r2,2.0\n",
    ],
)
def test_a_damaged_line_of_the_csv_file_costs_only_itself(tmp_path, damage):
    path, good = tmp_path / "scalars.csv", (b"1,a,1.0\n", b'3,"val_iou/a ""b"", c",0.5\n', b"3,a,nan\n")
    path.write_bytes(b"step,name,value\n" + damage.join((b"", *good, b"")) + b"4,a,4")
    for _ in range(2):
        with open_logger("csv", tmp_path, 4):
            pass
        assert path.read_bytes() == b"step,name,value\n" + b"".join(good)


@pytest.mark.parametrize("header", [b'step,"name,value\n', b"x" * 200_000 + b"\n", b"\xff\xfe\n", b"epoch,loss"])
def test_a_damaged_head_of_the_csv_file_is_told_in_a_line(tmp_path, header):
    (tmp_path / "scalars.csv").write_bytes(header)
    with pytest.raises(UserError, match="expected step, name, value") as caught:
        open_logger("csv", tmp_path, 3)
    assert len(str(caught.value)) < 300 + len(str(tmp_path)) and "\n" not in str(caught.value)
    assert (tmp_path / "scalars.csv").read_bytes() == header


@pytest.mark.parametrize("step", [0, 3])
def test_another_csv_file_is_not_overwritten(tmp_path, step):
    (tmp_path / "scalars.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(UserError, match=r"has the columns epoch, loss, expected step, name, value"):
        open_logger("csv", tmp_path, step)
    assert (tmp_path / "scalars.csv").read_text() == "epoch,loss\n1,2\n"


def test_pictures(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (9, 4, 6, 3), np.uint8)
    for start, stop in ((0, 7), (5, 8)):
        with open_logger("tensorboard", tmp_path, start) as logger:
            for step in range(start + 1, stop + 1):
                logger.image("val", pictures[step], step)
    found = events(tmp_path).Images("val")
    assert [e.step for e in found] == list(range(1, 9))
    for event in found:
        np.testing.assert_array_equal(Image.open(io.BytesIO(event.encoded_image_string)), pictures[event.step])


def test_none_writes_nothing(tmp_path):
    with open_logger("none", tmp_path, 0) as logger:
        logger.scalars({"a": 1.0}, 1)
        logger.image("val", np.zeros((2, 2, 3), np.uint8), 1)
        logger.flush()
    assert list(tmp_path.iterdir()) == []


def test_another_name_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"logger=wandb is not known; choose one of none, tensorboard, csv"):
        open_logger("wandb", tmp_path, 0)
    assert LOGGERS == ("none", "tensorboard", "csv")


def test_without_tensorboard_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(UserError, match=r"logger=tensorboard needs TensorBoard.*logger=csv"):
        open_logger("tensorboard", tmp_path, 0)


@pytest.mark.slow
def test_tensorboard_is_imported_only_where_it_is_used(tmp_path):
    code = (
        "import sys; from pathlib import Path; from icda.training.loggers import open_logger\n"
        "open_logger('csv', Path(sys.argv[1]), 0).close(); open_logger('none', Path(sys.argv[1]), 0).close()\n"
        "sys.exit('tensorboard' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does: the write that goes past the size takes a part, the next one fails."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_error_of_the_call_and_leaves_whole_pieces(kind, tmp_path, capfd):
    logger = open_logger(kind, tmp_path, 0)
    logger.scalars({"a": 1.0}, 1)
    (file,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    whole = file.read_bytes()
    with files_of_at_most(len(whole) + 10), pytest.raises(OSError) as caught:
        logger.scalars({f"curve {i}": 1.0 for i in range(100)}, 2)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(file)
    assert file.read_bytes() == whole
    logger.scalars({"a": 3.0}, 3)  # there is room again
    logger.flush()
    logger.close()
    logger.close()
    assert read(kind, tmp_path) == {"a": [(1, 1.0), (3, 3.0)]}
    assert capfd.readouterr().err == ""  # no thread has printed a traceback


def test_a_disk_that_is_full_at_the_start_leaves_the_curves_of_before(tmp_path):
    log_part("csv", tmp_path, 0, 7, 1.0)
    before = (tmp_path / "scalars.csv").read_bytes()
    with files_of_at_most(20), pytest.raises(OSError):
        open_logger("csv", tmp_path, 5)
    assert (tmp_path / "scalars.csv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["scalars.csv"]


class Failing(io.FileIO):
    def close(self) -> None:
        super().close()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_of_closing_does_not_hide_what_ended_the_run(kind, tmp_path, caplog):
    for error in (KeyError, None):
        logger = open_logger(kind, tmp_path, 0)
        logger.close()
        logger._file = Failing(logger.path, "a")
        with pytest.raises(error or OSError), logger:
            if error is not None:
                raise error
    assert "No space left on device" in caplog.text
