"""What a hostile or merely rich pickle does to its reader: nothing, quickly, and to no other thread either."""

from __future__ import annotations

import argparse
import collections
import copyreg
import decimal
import logging
import os
import pickle
import re
import struct
import tarfile
import threading
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from icda.errors import UserError
from icda.weights import stand_ins
from icda.weights.files import read_weights, tensors_of
from icda.weights.foreign import plain
from icda.weights.pickles import Inert

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(6.0).reshape(2, 3).t()}


def save_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


SAVERS = pytest.mark.parametrize("save", [save_zip, save_legacy])


def zip_with(operations: bytes, path: Path) -> Path:
    """A file of ``torch.save`` with one storage of two floats, whose pickle is replaced."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + operations)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", struct.pack("<2f", 1, 2))
        archive.writestr("archive/version", "3\n")
    return path


def legacy_with(operations: bytes, path: Path) -> Path:
    """A legacy file of ``torch.save`` without storages, whose pickle is replaced."""
    around = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(x, 2) for x in around) + b"\x80\x02" + operations + pickle.dumps([], 2))
    return path


WRITERS = pytest.mark.parametrize("write", [zip_with, legacy_with])


def doubled(times: int) -> bytes:
    """Operations that leave a tuple of 2^times numbers on the stack."""
    return b"K\x01q\x00" + b"h\x00\x86q\x00" * times


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700
    return message


# No other thread and no allowed class of a program is touched


def content_of_frameworks() -> dict[str, object]:
    return {**WEIGHTS, "array": np.zeros(3), "options": argparse.Namespace(a=1), "number": np.float64(2)}


@SAVERS
def test_classes_that_a_program_allowed_do_not_become_part_of_a_content(
    save: Callable[[object, Path], None], tmp_path: Path
) -> None:
    save(content_of_frameworks(), tmp_path / "a.ckpt")
    allowed = [np.zeros(1).__reduce__()[0], np.ndarray, np.dtype, argparse.Namespace, np.dtypes.Float64DType]
    with torch.serialization.safe_globals([*allowed, np.float64(1).__reduce__()[0]]):
        before = set(torch.serialization.get_safe_globals())
        for _ in range(10):
            content = read_weights(tmp_path / "a.ckpt")
            assert all(isinstance(content[key], Inert) for key in ("array", "options", "number"))
            assert all(torch.equal(content[key], WEIGHTS[key]) for key in WEIGHTS)
        assert set(torch.serialization.get_safe_globals()) == before


def test_other_threads_never_meet_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deterministic: while we read, what torch allows is looked at from within the reading."""
    save_zip(content_of_frameworks(), tmp_path / "a.ckpt")
    seen: list[object] = []
    find_class = stand_ins.Unpickler.find_class

    def watched(self: stand_ins.Unpickler, module: str, name: str) -> object:
        thread = threading.Thread(target=lambda: seen.append(strictly_read(tmp_path / "a.ckpt")))
        thread.start()
        thread.join()
        return find_class(self, module, name)

    monkeypatch.setattr(stand_ins.Unpickler, "find_class", watched)
    read_weights(tmp_path / "a.ckpt")
    assert len(seen) > 5 and set(seen) == {"refused"}


def strictly_read(path: Path) -> str:
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        return "refused"
    return "read"


# What stands beside the weights


@SAVERS
def test_objects_beside_the_weights_are_passed_over(
    save: Callable[[object, Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rare = {"decimal": decimal.Decimal("1.5"), "space": types.SimpleNamespace(a=1), "pattern": re.compile("x")}
    plain_values = {
        "size": torch.Size([2, 3]),
        "kind": torch.float16,
        "device": torch.device("cpu"),
        "bytes": b"\x00\xff",
        "array": bytearray(b"ab"),
        "complex": 1 + 2j,
        "set": {1, 2},
        "ordered": collections.OrderedDict(a=1),
        "counter": collections.Counter("aab"),
    }
    parameters = {
        "p": torch.nn.Parameter(WEIGHTS["a"]),
        "c": torch.tensor([1 + 1j]).conj(),
        "empty": torch.empty(0, 3),
    }
    parameters["p"].remark = "an attribute"
    save({**rare, **plain_values, "state_dict": {**WEIGHTS, **parameters}}, tmp_path / "a.ckpt")
    with caplog.at_level(logging.INFO, logger="icda"):
        content = read_weights(tmp_path / "a.ckpt")
    assert {key: content[key] for key in plain_values} == plain_values
    assert all(isinstance(content[key], Inert) for key in rare)
    state = content["state_dict"]
    assert isinstance(state.pop("c"), Inert)  # its stored values are not its values
    assert all(
        torch.equal(tensors_of(state, "a")[key], value) for key, value in {**WEIGHTS, "p": WEIGHTS["a"]}.items()
    )
    assert state["empty"].shape == (0, 3) and state["b"].stride() == WEIGHTS["b"].stride()
    assert "types.SimpleNamespace" in caplog.text and "decimal.Decimal" in caplog.text


def test_the_wording_is_fair_to_what_is_merely_unknown(tmp_path: Path) -> None:
    path = zip_with(b"}U\x01acsomewhere.models\nNet\n)\x81s.", tmp_path / "a.pth")
    message = refusal(path)
    assert "it names somewhere.models.Net, which is not known to be harmless; nothing of it was run" in message
    assert "could run code" not in message
    path = zip_with(b"}U\x01acposix\nsystem\nU\x01x\x85Rs.", tmp_path / "b.pth")
    assert "could run code: it names posix.system" in refusal(path)


# Nothing but the table is ever called, given attributes or looked up

INERT = b"cargparse\nNamespace\nq\x7f"  # makes the file one with stand-ins


@WRITERS
@pytest.mark.parametrize(
    "operations",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n}U\x0c__defaults__U\x01xsb.",
        b"ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__U\x01xs\x86b.",
        b"ctorch\nTensor\n}U\x04dataU\x01xsb.",
        b"ctorch\nFloatStorage\n)R.",
        b"ctorch\nfloat32\n)R.",
        b"ctorch.hub\nload\nU\x01x\x85R.",
        b"ctorch.storage\n_load_from_bytes\nU\x01x\x85R.",
        b"ctorch.storage\nUntypedStorage\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00)))Nt\x85R.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cargparse\nNamespace\ncargparse\nNamespace\n)NtR.",
        b"cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
        b"\x82\x01)R.",
        b"(iposix\nsystem\n.",
        b"(U\x06moduleK\x01K\x01K\x01tQ.",
        b"(U\x04fileK\x01K\x01K\x01tQ.",
        b"K\x01Q.",
        b"P1\n.",
    ],
)
@pytest.mark.parametrize("beside", [b"", INERT], ids=["alone", "beside stand-ins"])
def test_hostile_operations_are_refused(
    write: Callable[[bytes, Path], Path], operations: bytes, beside: bytes, tmp_path: Path
) -> None:
    refusal(write(beside + operations, tmp_path / "a.pth"))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


@pytest.mark.parametrize(
    "operations",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n}U\x0c__defaults__U\x01xsb.",
        b"cargparse\nNamespace\n}U\x08__init__U\x01xsb.",
        b"ccollections\nOrderedDict\n)R}U\x05itemsU\x01xsb.",
    ],
)
def test_attributes_are_dropped_even_without_the_scan(operations: bytes, tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as file:
        file.write(b"\x80\x02" + operations)
        file.seek(0)
        made = stand_ins.load(file)
    assert not vars(made).keys() & {"items", "__defaults__"} and vars(made).get("__init__") != "x"
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)


@pytest.mark.parametrize(
    "operations", [b"\x82\x01.", b"cposix\nsystem\nU\x01x\x85R.", b"cbuiltins\ngetattr\n.", b"K\x01)R."]
)
def test_the_reader_refuses_without_the_scan(
    operations: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(copyreg._inverted_registry, 1, ("posix", "system"))
    (tmp_path / "a").write_bytes(b"\x80\x02" + operations)
    with (tmp_path / "a").open("rb") as file, pytest.raises((pickle.UnpicklingError, KeyError)):
        stand_ins.load(file)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
    for size, stride, reads in (
        (b"K\x02", b"K\x01", True),
        (b"K\x03", b"K\x01", False),
        (b"K\x02", b"J\xff\xff\xff\xff", False),
    ):
        tensor = (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + b"K\x00"
            + size
            + b"\x85"
            + stride
            + b"\x85\x89N"
            + b"tR"
        )
        path = zip_with(b"}(U\x01a" + tensor + b"U\x01bcargparse\nNamespace\nu.", tmp_path / "a.pth")
        if reads:
            assert read_weights(path)["a"].tolist() == [1, 2]
        else:
            assert "cannot be read" in refusal(path)


def test_records_that_two_readers_could_tell_apart_are_refused(tmp_path: Path) -> None:
    path = zip_with(b"}.", tmp_path / "a.pth")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/DATA.PKL", b"\x80\x02}.")
    assert "names are ambiguous" in refusal(path)
    save_zip(WEIGHTS, tmp_path / "b.pth")
    (tmp_path / "b.pth").write_bytes((tmp_path / "b.pth").read_bytes().replace(b"b/version", b"b/ver\0ion"))
    assert "names are ambiguous" in refusal(tmp_path / "b.pth")


def test_a_legacy_file_that_is_a_tar_archive_too_is_refused(tmp_path: Path) -> None:
    content = legacy_with(b"}.", tmp_path / "a.pth").read_bytes()
    assert read_weights(tmp_path / "a.pth") == {}
    header = bytearray(512)
    header[: len(content)] = content  # in the field of the member's name
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.pth").write_bytes(bytes(header) + bytes(1024))
    assert tarfile.is_tarfile(tmp_path / "a.pth")
    assert "is a tar archive that begins as a pickle" in refusal(tmp_path / "a.pth")


def test_the_environment_that_forbids_other_readers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_zip(content_of_frameworks(), tmp_path / "a.ckpt")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD=1; unset it" in refusal(tmp_path / "a.ckpt")


# Small files take little time


@WRITERS
@pytest.mark.parametrize(
    "operations",
    [
        doubled(40) + b")R.",
        doubled(40) + b")\x81.",
        b"}" + doubled(40) + b"K\x01s.",
        b"}U\x01a" + doubled(40) + b"s.",
        b"cbuiltins\nset\n]" + doubled(40) + b"a\x85R.",
        b"(U\x07storagectorch\nFloatStorage\n" + doubled(40) + b"U\x03cpuK\x02tQ.",
        b"}K\x01" + b"\x85" * 100_000 + b"K\x01s.",
        b"}U\x01a]q\x00s" + b"U\x01a](h\x00h\x00eq\x00s" * 40 + b".",
        b"}U\x01a" + b"]" * 20_000 + b"a" * 19_999 + b"s.",
        b"c_codecs\nencode\nU\x01xU\x04idna\x86R.",
        b"}" + b"h\x05s" * 10 + b".",
    ],
)
@pytest.mark.parametrize("beside", [b"", INERT], ids=["alone", "beside stand-ins"])
def test_small_files_that_unfold_without_end_are_refused_at_once(
    write: Callable[[bytes, Path], Path], operations: bytes, beside: bytes, tmp_path: Path
) -> None:
    path = write(beside + operations, tmp_path / "a.pth")
    start = time.process_time()
    assert "no weights need" in refusal(path)
    assert time.process_time() - start < 1


def test_shared_and_nested_values_of_real_files_are_read(tmp_path: Path) -> None:
    shared = {"betas": (0.9, (0.5, [1, 2]))}
    content = {"w": WEIGHTS["a"], "groups": [shared] * 3, "python": (3, tuple(range(625)), None), (1, "x"): 2}
    looped: list[object] = []
    looped.append(looped)
    save_zip({**content, "loop": looped}, tmp_path / "a.ckpt")
    got = read_weights(tmp_path / "a.ckpt")
    assert got["loop"][0] is got["loop"]
    assert {key: got[key] for key in content if key != "w"} == {key: content[key] for key in content if key != "w"}


# Messages


def test_plain_text_is_bounded_whatever_it_is_given() -> None:
    nested: object = 1
    for _ in range(60):
        nested = (nested, nested)
    start = time.process_time()
    for value in (
        nested,
        [nested],
        {"a": nested},
        KeyError(nested),
        "x" * 10**7,
        " " * 10**7,
        b"\0" * 10**7,
        torch.ones(3),
    ):
        assert len(plain(value, 80)) <= 80 and plain(value, 80).isprintable()
    assert time.process_time() - start < 1
    assert plain("a\x1b[31mb\nc", 80) == "a [31mb c" and plain(2, 80) == "2" and plain(KeyError("x"), 80) == "'x'"
    assert plain((1, ("a", None)), 80) == "(1, (a, None))"
    assert plain(torch.ones(3), 80) == "a value of type Tensor"


@pytest.mark.parametrize("write", [zip_with, legacy_with])
def test_names_from_a_file_are_escaped_and_cut(
    write: Callable[[bytes, Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = b"\x1b[31m" + b"n" * 100_000
    assert "\x1b" not in refusal(write(b"c" + long + b"\n" + long + b"\n.", tmp_path / "a.pth"))
    path = write(b"}U\x01acmmcv." + b"m" * 100_000 + b"\nNet\n)\x81s.", tmp_path / "b.pth")
    with caplog.at_level(logging.INFO, logger="icda"):
        content = read_weights(path)
    assert all(len(record.getMessage()) < 1000 for record in caplog.records) and caplog.records
    with pytest.raises(UserError) as caught:
        tensors_of({"state_dict": {"t": torch.ones(1), "n": content["a"]}}, "b.pth")
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("key", [2, (1, 2), None, b"x"])
def test_a_key_that_is_no_text_is_what_is_told(key: object) -> None:
    with pytest.raises(
        UserError, match=r"a\.pth: a key of its state dict, .* is a value of type .*the tensor's name"
    ):
        tensors_of({"state_dict": {"w": torch.ones(1), key: torch.ones(1)}}, "a.pth")


# Paths


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_zip(WEIGHTS, tmp_path / "a.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/a.pth", Path("~/a.pth")):
        got: dict[str, Tensor] = read_weights(path)
        assert torch.equal(got["a"], WEIGHTS["a"])
    assert "there is no file ~/b.pth" in refusal("~/b.pth")
    assert "names no home folder" in refusal("~nobody-of-this-name/a.pth")


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_zip(WEIGHTS, tmp_path / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    assert read_weights(".").keys() == read_weights(Path(os.curdir)).keys() == WEIGHTS.keys()
    for path in ("", " "):
        assert "the path of the weights is empty" in refusal(path)
