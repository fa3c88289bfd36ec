"""Checkpoint files: written whole or not at all, and nothing else is taken for one."""

from __future__ import annotations

import pickle

import pytest
import torch

from icda.errors import UserError
from icda.training import checkpoint


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "last.pt"
    checkpoint.save(path, whole(x=torch.arange(3), name="a"))
    content = checkpoint.read_file(path)
    assert content["x"].tolist() == [0, 1, 2] and content["name"] == "a"
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, whole(x=1))

    def full_disk(_content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, whole(x=2))
    assert checkpoint.read_file(path)["x"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def whole(**more) -> dict:
    return {**dict.fromkeys(checkpoint.CONTENT), **more}


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_other_files(tmp_path):
    intact = tmp_path / "whole.pt"
    checkpoint.save(intact, whole(x=torch.zeros(1000)))
    files = {
        "page.pt": (b"<html>404</html>", "is a web page"),
        "empty.pt": (b"", "is empty"),
        "torn.pt": (intact.read_bytes()[:700], "cut short"),
        "evil.pt": (pickle.dumps(Evil()), r"builtins\.exec"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message) as caught:
            checkpoint.read_file(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="neither a checkpoint of icda nor one of the published ICDA"):
        checkpoint.read_file(tmp_path / "other.pt")
    torch.save({"format": 99}, tmp_path / "later.pt")
    with pytest.raises(UserError, match="format 99, this version of icda reads 1 to 2"):
        checkpoint.read_file(tmp_path / "later.pt")
    torch.save({"format": 1, "student": {}}, tmp_path / "part.pt")
    with pytest.raises(UserError, match="lacks classes, config, step, teacher"):
        checkpoint.read_file(tmp_path / "part.pt")
    with pytest.raises(UserError, match="there is no file"):
        checkpoint.read_file(tmp_path / "none.pt")
