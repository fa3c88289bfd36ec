"""Checkpoint files: written whole or not at all, and nothing else is taken for one."""

from __future__ import annotations

import pickle
from dataclasses import asdict

import pytest
import torch

from icda.data.classes import CAMVID
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
    classes = {**asdict(CAMVID), "palette": [list(color) for color in CAMVID.palette]}
    config = {"model": {}, "dataset": {}}
    return {"config": config, "classes": classes, "step": 0, "student": {}, "teacher": None, **more}


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "2"}, "its format is no number from 1"),
        ({"format": True}, "its format is no number from 1"),
        ({"format": torch.zeros(3)}, "its format is no number from 1"),
        ({"config": {}}, "its config is not as icda writes it"),
        ({"config": None}, "its config is not as icda writes it"),
        ({"classes": {}}, "its classes is not as icda writes it"),
        (
            {"classes": {"name": "a", "names": ["b"], "palette": [[1, 2, 3]], "ignore_index": 255, "things": [9]}},
            "its classes",
        ),
        ({"step": "abc"}, "its step is not"),
        ({"step": -5}, "its step is not"),
        ({"student": None}, "its student is not"),
        ({"student": {"x": 3}}, "its student is not"),
        (
            {"teacher": {"x": torch.tensor([1.0, float("nan")])}},
            "1 of the teacher's weights hold NaN or infinity.* x;",
        ),
        ({"training": {}}, "its state of the run lacks something"),
    ],
)
def test_entries_of_another_kind_are_told_in_a_line(tmp_path, change, message):
    torch.save({"format": checkpoint.FORMAT, **whole(), **change}, tmp_path / "best.pt")
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.read_file(tmp_path / "best.pt")
    assert "\n" not in str(caught.value)


def test_a_size_that_no_memory_holds(tmp_path, compose_train):
    content = checkpoint.content_of(compose_train(), CAMVID, torch.nn.Module(), None, 0, {}, None)
    content["config"]["model"]["head"]["channels"] = 10**9
    checkpoint.save(tmp_path / "best.pt", content)
    with pytest.raises(UserError, match=r"best\.pt cannot be built"):
        checkpoint.load_trained(tmp_path / "best.pt")


def test_which_file_a_folder_means(tmp_path):
    runs = [tmp_path / "runs" / "demo" / name for name in ("a", "b")]
    for run in runs:
        checkpoint.save(run / "checkpoints" / "last.pt", whole())
    assert checkpoint.find(runs[0]) == runs[0] / "checkpoints" / "last.pt"
    checkpoint.save(runs[0] / "checkpoints" / "best.pt", whole())
    assert checkpoint.find(runs[0]).name == checkpoint.find(runs[0] / "checkpoints").name == "best.pt"
    assert checkpoint.find(runs[0], last=True).name == "last.pt"
    for several in (tmp_path / "runs", tmp_path / "runs" / "demo"):
        with pytest.raises(UserError, match=rf"holds runs; give one of them, such as the newest, {runs[0]}"):
            checkpoint.find(several)
    with pytest.raises(UserError, match="a folder without checkpoints"):
        checkpoint.find(tmp_path)
    with pytest.raises(UserError, match="is empty"):
        checkpoint.find("")
