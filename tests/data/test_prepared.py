"""Whole files, one writer at a time, and one line for what the operating system refuses."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from icda.data.prepared import LOCK, TEMPORARY, exclusive, prepared_folder, slug, whole_file, writing_to
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
    assert prepared_folder("/a/b", name) == Path("/a/b", folder)


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
    with exclusive(tmp_path):
        found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {LOCK, ".0123456789ab.tmpx", "x.tmp", "a/.aaaaaaaaaaaa"}


def test_refusals_are_one_line(tmp_path):
    with (
        pytest.raises(UserError, match=r"^cannot write to /x/y: Read-only file system; give a folder"),
        writing_to(tmp_path),
    ):
        raise OSError(30, "Read-only file system", "/x/y")
    with pytest.raises(UserError, match=rf"^cannot write to {tmp_path}: No space left"), writing_to(tmp_path):
        raise OSError(28, "No space left on device")
