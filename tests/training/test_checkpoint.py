"""Checkpoint files: written whole or not at all, told when they are damaged, and nothing else is taken for one."""

from __future__ import annotations

import errno
import os
import pickle
import random
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from icda.data.classes import CAMVID
from icda.errors import DamagedFile, UserError
from icda.training import checkpoint
from icda.training.durable import temporary_name


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


def fails_without_a_trace(path: Path, number: int, amount: int) -> None:
    """Saving ``amount`` floats fails with this errno; the file that was there before holds 1, and is alone."""
    with pytest.raises(OSError) as caught:
        checkpoint.save(path, whole(x=torch.zeros(amount)))
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert caught.value.strerror == os.strerror(number)
    assert checkpoint.read_file(path)["x"] == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("amount", [1, 1_000_000])  # the file's buffer is flushed at its end, or before
def test_the_system_says_that_the_disk_is_full(tmp_path, amount):
    path = tmp_path / "last.pt"
    checkpoint.save(path, whole(x=1))
    temporary_name(path).symlink_to("/dev/full")
    fails_without_a_trace(path, errno.ENOSPC, amount)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [1000, 8192, 100_000, 3_999_000])  # the last leaves out the list at the end
def test_a_file_that_may_not_be_so_large(tmp_path, limit):
    path = tmp_path / "last.pt"
    checkpoint.save(path, whole(x=1))
    with file_size_limit(limit):
        fails_without_a_trace(path, errno.EFBIG, 1_000_000)


@pytest.mark.slow
def test_a_full_file_system(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode()}")
    try:
        path = tmp_path / "last.pt"
        checkpoint.save(path, whole(x=1))
        fails_without_a_trace(path, errno.ENOSPC, 100_000)
        checkpoint.save(path, whole(x=2))
        assert checkpoint.read_file(path)["x"] == 2
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "last.pt"
    with pytest.raises(OSError) as caught:
        checkpoint.save(path, whole())
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST) and caught.value.filename == str(path)


def damaged_or_intact(path: Path, data: bytes, intact: dict) -> bool:
    """Whether a file of these bytes is told to be damaged; if not, it must hold what was saved."""
    path.unlink(missing_ok=True)  # the tensors of the one before may be mapped from it
    path.write_bytes(data)
    try:
        content = checkpoint.read_file(path)
    except DamagedFile as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return True
    assert content.keys() == intact.keys()
    for name, value in intact.items():
        same = torch.equal(content[name]["w"], value["w"]) if name == "student" else content[name] == value
        assert same, name
    return False


@pytest.fixture
def saved(tmp_path) -> tuple[bytes, dict]:
    """The bytes of a checkpoint and its content."""
    path = tmp_path / "whole.pt"
    checkpoint.save(path, whole(step=7, student={"w": torch.arange(40.0)}, training=TRAINING))
    return path.read_bytes(), checkpoint.read_file(path)


OPTIMIZER = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]}
TRAINING = {"frozen": None, "pca": None, "optimizer": OPTIMIZER, "best_miou": 0.25, "seconds": 3.0}


def test_a_file_that_was_cut_is_damaged(tmp_path, saved):
    data, intact = saved
    lengths = {*range(12), *range(0, len(data), 37), *range(len(data) - 30, len(data))}
    for length in sorted(lengths):
        assert damaged_or_intact(tmp_path / "cut.pt", data[:length], intact), length
    for length in range(0, len(data), 64):  # what a file system may put in place of what was never written
        zeros = bytes(len(data) - length)
        assert damaged_or_intact(tmp_path / "cut.pt", data[:length] + zeros, intact), length


def flips(data: bytes, intact: dict, path: Path, bits: list[int]) -> int:
    """How many files with one of these bits flipped are told to be damaged."""
    told = 0
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        told += damaged_or_intact(path, bytes(flipped), intact)
    return told


def test_a_flipped_bit_never_goes_unnoticed(tmp_path, saved):
    data, intact = saved
    path = tmp_path / "flipped.pt"
    payload = data.index(torch.arange(40.0).numpy().tobytes())
    assert flips(data, intact, path, list(range(8 * payload, 8 * (payload + 160), 11))) == len(range(0, 8 * 160, 11))
    assert flips(data, intact, path, list(range(4 * 8))) == 32  # the first bytes, which tell what the file is
    bits = random.Random(0).sample(range(8 * len(data)), 700) + list(range(8 * (len(data) - 98), 8 * len(data), 5))
    told = flips(data, intact, path, bits)
    assert 0.2 * len(bits) < told < len(bits)  # the others are of padding, dates and the like


@pytest.mark.slow
def test_no_flipped_bit_goes_unnoticed(tmp_path, saved):
    data, intact = saved
    assert flips(data, intact, tmp_path / "flipped.pt", list(range(8 * len(data)))) > 4 * len(data)


def test_a_record_that_is_marked_as_a_folder(tmp_path, saved):
    """Of which torch's reader gives memory that nobody has written to."""
    data, intact = saved
    for name in (b"/data.pkl", b"/byteorder", b"/data/0"):
        entry = (
            data.rindex(name) - len(b"archive") - 46
        )  # in the list at the end, where a record's entry has 46 bytes
        assert data[entry : entry + 4] == b"PK\x01\x02"
        marked = bytearray(data)
        marked[entry + 38] |= 0x10
        assert damaged_or_intact(tmp_path / "marked.pt", bytes(marked), intact), name


def test_a_damaged_file_travels_between_processes():
    error = pickle.loads(pickle.dumps(DamagedFile("a.pt is empty", "get it again")))
    assert (str(error), error.fault) == ("a.pt is empty; get it again", "a.pt is empty")
    assert isinstance(error, UserError)


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
    with pytest.raises(UserError, match=f"format 99, this version of icda reads 1 to {checkpoint.FORMAT};"):
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
        *(
            ({"training": {**TRAINING, name: value}}, f"the {name} of its run is not as icda writes it; expected one")
            for name, values in {
                "scaler": (3.0,),
                "skipped": (-1, True),
                "best_miou": ("0.5", None, torch.zeros(1), float("nan"), True),
                "seconds": ("3 s", None, float("inf"), [1.0]),
                "optimizer": (
                    None,
                    {},
                    {"state": {}},
                    {"param_groups": []},
                    {"state": [], "param_groups": []},
                    {"state": {}, "param_groups": {}},
                    {"state": {}, "param_groups": [3]},
                ),
                "pca": (3, [], {"prototypes": 3}, {0: torch.zeros(1)}),
                "frozen": ("x", {"w": None}),
            }.items()
            for value in values
        ),
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


def test_the_state_of_a_run_of_an_earlier_format(tmp_path):
    torch.save({"format": 2, **whole(training=TRAINING)}, tmp_path / "last.pt")
    training = checkpoint.read_file(tmp_path / "last.pt")["training"]
    assert training == {**TRAINING, "scaler": None, "skipped": 0}


def test_a_run_of_which_only_earlier_steps_are_left(tmp_path):
    for step in (80, 1_000_000, 999_999):
        checkpoint.save(tmp_path / "run" / "checkpoints" / checkpoint.step_name(step), whole(step=step))
    (tmp_path / "run" / "checkpoints" / "step_best.pt").write_text("")
    for folder in ("run", "run/checkpoints"):
        for last in (True, False):
            assert checkpoint.find(tmp_path / folder, last).name == "step_1000000.pt"
    assert list(checkpoint.step_files(tmp_path / "run" / "checkpoints")) == [1_000_000, 999_999, 80]
    checkpoint.save(tmp_path / "run" / "checkpoints" / "best.pt", whole())
    assert checkpoint.find(tmp_path / "run").name == "best.pt"


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
