"""Files that are written whole or not at all, and what killed processes leave of them."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icda.training import durable
from icda.training.durable import append_whole, naming, remove_leftovers, temporary_name, write_whole


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return child.pid


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_new_file_is_whole_before_the_old_one_is_touched(tmp_path):
    path = tmp_path / "a" / "x.bin"
    write_whole(path, lambda file: file.write(b"old"))
    seen = []

    def look() -> None:
        seen.extend((path.read_bytes(), temporary_name(path).read_bytes()))

    write_whole(path, lambda file: file.write(b"new"), before_rename=look)
    assert seen == [b"old", b"new"] and path.read_bytes() == b"new" and names(path.parent) == {"x.bin"}


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt(), ValueError("a bug")])
def test_whatever_stops_it_the_old_file_stays(tmp_path, error):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def fail() -> None:
        raise error

    for calls in ({"write": lambda _: fail()}, {"write": lambda file: file.write(b"new"), "before_rename": fail}):
        with pytest.raises(type(error)):
            write_whole(path, **calls)
        assert path.read_bytes() == b"old" and names(tmp_path) == {"x.bin"}


def test_file_and_folder_reach_the_disk_in_order(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, Path.replace

    def flush(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append("rename"), replace(self, to)))
    write_whole(tmp_path / "x.bin", lambda file: file.write(b"new"))
    assert calls == ["file", "rename", "folder"]


def test_a_system_that_cannot_flush_a_folder(tmp_path, monkeypatch):
    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    durable.write_whole(tmp_path / "x.bin", lambda file: file.write(b"new"))
    assert (tmp_path / "x.bin").read_bytes() == b"new"


class Small(io.FileIO):
    """A file on a disk with room for so many bytes, which takes two at a time."""

    room = 0

    def write(self, data: bytes) -> int:
        taken = min(2, len(data), self.room)
        if not taken:
            raise OSError(28, "No space left on device")
        self.room -= taken
        return super().write(data[:taken])


@pytest.mark.parametrize("mode", ["a", "r+"])
def test_a_piece_is_added_whole_or_not_at_all(tmp_path, mode):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with Small(path, mode) as file:
        for room in range(6):
            file.room = room
            with pytest.raises(OSError, match="No space"):
                append_whole(file, b"pieces")
            assert path.read_bytes() == b"old"
        file.room = 6
        append_whole(file, b"pieces")
    assert path.read_bytes() == b"oldpieces"


def test_an_error_is_about_a_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path):
        raise OSError(2, "No such file or directory")
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(OSError, match="unsupported") as caught, naming(tmp_path):
        raise io.UnsupportedOperation("unsupported")
    assert caught.value.filename == str(tmp_path)


def test_what_killed_processes_left_goes(tmp_path, dead_pid, monkeypatch):
    here, alive = durable.host(), os.getppid()
    stay = {
        f".last.pt.{here}.{alive}.tmp",  # being written
        f".last.pt.{here}x.{dead_pid}.tmp",  # another machine's
        f".last.pt.{dead_pid}.tmp",  # of no known machine
        ".notes.tmp",
        f"last.pt.{here}.{dead_pid}.tmp",
        "last.pt",
    }
    go = {f".last.pt.{here}.{dead_pid}.tmp", f".best.pt.{here}.{dead_pid}.tmp", f".a.b.{here}.{10**30}.tmp"}
    for name in stay | go:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == stay
    old = {f".last.pt.{here}.{alive}.tmp", f".last.pt.{here}x.{dead_pid}.tmp", f".last.pt.{dead_pid}.tmp"}
    then = time.time() - durable.LEFT_AFTER - 10
    for name in stay:
        os.utime(tmp_path / name, (then, then))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == stay - old
    monkeypatch.setattr(durable.socket, "gethostname", lambda: "node-7.cluster.example/ü" * 9)
    name = temporary_name(tmp_path / "last.pt").name
    assert len(name) < 100 and name.startswith(".last.pt.node-7_cluster_example__node-7_")
    (tmp_path / name.replace(str(os.getpid()), str(dead_pid))).write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == stay - old


def test_a_folder_that_is_not_there(tmp_path):
    remove_leftovers(tmp_path / "none")
    assert not names(tmp_path)
