"""Whole files, one writer at a time, and one line for what the operating system refuses."""

from __future__ import annotations

import logging
import os
import re
import threading
from pathlib import Path

import pytest

from icda.data.prepared import (
    ABANDONED_AFTER,
    LOCK,
    TEMPORARY,
    check_apart,
    exclusive,
    prepared_folder,
    relative_root,
    slug,
    whole_file,
    writing_to,
)
from icda.errors import UserError


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Cityscapes train", "cityscapes_train"),
        ("CamVid train+val", "camvid_train+val"),
        ("../My set/ü", "my_set_ü"),
        ("..", "data_set"),
    ],
)
def test_folders_are_named_after_data_sets(name, folder):
    assert slug(name) == folder
    path = prepared_folder("/a/b", name, "/a/root")
    assert path.parent == Path("/a/b") and re.fullmatch(re.escape(folder) + "-[0-9a-f]{8}", path.name)


def test_roots_have_folders_of_their_own_and_may_move_with_the_data():
    def folder(prepared_dir: str, root: str) -> str:
        return prepared_folder(prepared_dir, "My set", root).name

    assert folder("/a/b", "/a/one") != folder("/a/b", "/a/two")
    assert folder("/a/b", "/a/one") == folder("/x/y/b", "/x/y/one") == folder("/a/b", "/a/b/../one/")
    assert relative_root("/a/b", "/a/one/two") == "one/two" and relative_root("/a/b", "/c/two") == "/c/two"
    assert folder("/a/b", "/c/one") == folder("/x/b", "/c/one")


@pytest.mark.parametrize(
    ("output", "root", "fits"),
    [
        ("data/icda_prepared", "data/set", True),
        ("data/set", "data/set", False),
        ("data/set/deep/inside", "data/set", False),
        ("data/link/inside", "data/set", False),
        ("data/settle", "data/set", True),
        ("data/icda_prepared", "data", True),
        ("data", "data", False),
        ("data/set/inside", "data", False),
        ("data/set", "data", False),
    ],
)
def test_nothing_is_written_into_a_data_sets_own_tree(tmp_path, output, root, fits):
    image = tmp_path / "data/set/images/x.png"
    image.parent.mkdir(parents=True)
    (tmp_path / "data/link").symlink_to(tmp_path / "data/set")
    call = ("prepared_dir", tmp_path / output, "my set", tmp_path / root, tmp_path / "data", [image])
    if fits:
        check_apart(*call)
    else:
        with pytest.raises(UserError, match=r"^prepared_dir=.* is inside my set's own folder .*; choose another"):
            check_apart(*call)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    with whole_file(path, mtime_ns=10**18) as file:
        file.write(b"one")
        assert not path.exists()
        (temporary,) = path.parent.iterdir()
        assert TEMPORARY.fullmatch(temporary.name)
    assert path.stat().st_mtime_ns == 10**18
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"two")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"one" and list(path.parent.iterdir()) == [path]


def test_others_wait_and_are_told_so(tmp_path, caplog):
    order = []

    def second() -> None:
        with exclusive(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with caplog.at_level(logging.INFO), exclusive(tmp_path) as locked:
        assert locked
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert f"another prepare.py is writing to {tmp_path}; waiting for it" in caplog.text


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    names = [".0123456789ab.tmp", ".0123456789ab.tmpx", "x.tmp", "a/b/.aaaaaaaaaaaa.tmp", "a/.aaaaaaaaaaaa"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    fresh, translation = tmp_path / ".bbbbbbbbbbbb.tmp", tmp_path / "translations/x/.cccccccccccc.tmp"
    translation.parent.mkdir(parents=True)
    fresh.touch(), translation.touch()
    for path in tmp_path.rglob("*"):
        if path.is_file() and path != fresh:
            os.utime(path, (path.stat().st_mtime - 2 * ABANDONED_AFTER,) * 2)
    with exclusive(tmp_path):
        found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path.relative_to(tmp_path).as_posix() for path in (fresh, translation)}
    assert found == {LOCK, ".0123456789ab.tmpx", "x.tmp", "a/.aaaaaaaaaaaa"} | kept


def test_refusals_are_one_line(tmp_path):
    with (
        pytest.raises(UserError, match=r"^cannot write to /x/y: Read-only file system; give a folder"),
        writing_to(tmp_path),
    ):
        raise OSError(30, "Read-only file system", "/x/y")
    with pytest.raises(UserError, match=rf"^cannot write to {tmp_path}: No space left"), writing_to(tmp_path):
        raise OSError(28, "No space left on device")
