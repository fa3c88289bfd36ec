"""Reading weights files: every form the field uses, every way such a file is wrong, and no code run from any."""

from __future__ import annotations

import argparse
import enum
import functools
import gzip
import json
import logging
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from icda.errors import UserError
from icda.weights.files import read_weights, tensors_of
from icda.weights.pickles import Inert

STATE = {
    "conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2) / 7,
    "conv.bias": torch.tensor([1.5, -2.25], dtype=torch.float16),
    "norm.weight": torch.tensor([0.1, 0.2, 0.3], dtype=torch.bfloat16),
    "norm.num_batches_tracked": torch.tensor(7),
}


def save_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


SAVERS = pytest.mark.parametrize("save", [save_zip, save_legacy])


def same(got: dict[str, Any], expected: dict[str, Tensor]) -> bool:
    """Whether names, dtypes and values agree bit for bit."""
    return list(got) == list(expected) and all(
        got[n].dtype == t.dtype and got[n].shape == t.shape and torch.equal(got[n], t) for n, t in expected.items()
    )


def refusal(path: Path | str, name: str | None = None) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as caught:
        read_weights(path, name)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and "Traceback" not in message
    assert len(message) < 700 and message.isprintable()
    return message


# What is read


@SAVERS
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".safetensors", ""])
def test_files_of_torch_save_are_read_whatever_their_ending(
    save: Callable[[object, Path], None], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    save(STATE, path)
    assert same(read_weights(path), STATE)
    assert same(read_weights(str(path)), STATE)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ""])
def test_safetensors_are_known_by_their_content(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(STATE, path)
    got = read_weights(path)
    assert same({name: got[name] for name in STATE}, STATE) and len(got) == len(STATE)


@pytest.mark.parametrize("length", [0x0280, 0x8B1F, 0x4D42])  # as pickles, gzip and BMP begin
def test_a_safetensors_header_may_be_as_long_as_other_formats_first_bytes(length: int, tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "weights.pth"
    path.write_bytes(struct.pack("<Q", length) + header.ljust(length) + struct.pack("<f", 2.5))
    assert read_weights(path)["a"].tolist() == [2.5]


@SAVERS
def test_nested_content_and_plain_values_are_kept(save: Callable[[object, Path], None], tmp_path: Path) -> None:
    content = {"state_dict": OrderedDict(STATE), "step": 3, "names": ["a", ("b", None)], "rate": 0.5, "done": True}
    save(content, tmp_path / "a.ckpt")
    got = read_weights(tmp_path / "a.ckpt")
    assert same(got.pop("state_dict"), STATE)
    assert got == {"step": 3, "names": ["a", ("b", None)], "rate": 0.5, "done": True}


def test_tensors_of_a_mapped_file_may_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    save_zip(STATE, tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    read_weights(tmp_path / "a.pth")["conv.weight"].fill_(3)
    assert (tmp_path / "a.pth").read_bytes() == before
    assert same(read_weights(tmp_path / "a.pth"), STATE)


def test_a_checkpoint_that_was_zipped_again_with_compression_is_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(1000.0)}
    save_zip(state, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as new:
        for record in old.namelist():
            new.writestr(record, old.read(record))
    assert same(read_weights(tmp_path / "b.pth"), state)


def test_a_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save_zip(STATE, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_weights(tmp_path / "a.pth"), STATE)


def test_names_with_any_characters_are_read(tmp_path: Path) -> None:
    for name in ("Zürich (1)", "a'b", "\udcff"):
        save_zip(STATE, tmp_path / f"{name}.pth")
        assert same(read_weights(tmp_path / f"{name}.pth"), STATE)


# Folders in Hugging Face's form


def test_a_folder_is_read_in_the_order_of_preference(tmp_path: Path) -> None:
    states = [{"a": torch.full((2,), float(i))} for i in range(4)]
    save_zip(states[3], tmp_path / "shard.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "shard.bin"}}))
    assert same(read_weights(tmp_path), states[3])
    save_zip(states[2], tmp_path / "pytorch_model.bin")
    assert same(read_weights(tmp_path), states[2])
    save_file(states[1], tmp_path / "shard.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
    assert same(read_weights(tmp_path), states[1])
    save_file(states[0], tmp_path / "model.safetensors")
    assert same(read_weights(tmp_path), states[0])


def shards(folder: Path, **weight_map: str) -> Path:
    save_file({"a": torch.ones(2), "b": torch.zeros(1)}, folder / "one.safetensors")
    save_zip({"c": torch.full((3,), 2.0)}, folder / "two.bin")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map}))
    return index


def test_the_shards_of_an_index_become_one_content(tmp_path: Path) -> None:
    index = shards(tmp_path, a="one.safetensors", c="two.bin", b="one.safetensors")
    for path in (tmp_path, index):
        got = read_weights(path)
        assert {name: tensor.tolist() for name, tensor in got.items()} == {"a": [1, 1], "b": [0], "c": [2, 2, 2]}


@pytest.mark.parametrize(
    "shard", ["../secret.bin", "/etc/passwd", "..", "", "sub/x.bin", "..\\secret.bin", "C:x", "a\0"]
)
def test_an_index_does_not_lead_outside_its_folder(shard: str, tmp_path: Path) -> None:
    save_zip({"a": torch.ones(1)}, tmp_path / "secret.bin")
    (tmp_path / "sub").mkdir()
    index = shards(tmp_path / "sub", a=shard)
    assert "expected a file of its own folder" in refusal(index)


def test_what_is_wrong_with_an_index_is_told(tmp_path: Path) -> None:
    index = shards(tmp_path, a="one.safetensors", z="two.bin")
    assert "two.bin lacks 1 of the 1 tensors" in refusal(tmp_path) and "first z" in refusal(tmp_path)
    shards(tmp_path, a="three.safetensors")
    assert "there is no file" in refusal(tmp_path) and "three.safetensors" in refusal(tmp_path)
    for text in ("{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "[" * 100_000):
        index.write_text(text)
        assert "is no index of weights" in refusal(index)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    for file in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index"):
        assert file in message
    (tmp_path / "best.ckpt").touch()
    assert "such as best.ckpt" in refusal(tmp_path)
    save_zip(STATE, tmp_path / "a.pth")
    zipfile.ZipFile(tmp_path / "a.pth").extractall(tmp_path)
    assert "was unpacked" in refusal(tmp_path / "a")


# Objects beside the tensors


class Evil:
    """Pickles to a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def throwaway(monkeypatch: pytest.MonkeyPatch, name: str, base: type, **members: object) -> type:
    """A class of a module that is there until ``monkeypatch.undo()``."""
    module, _, attribute = name.rpartition(".")
    kind = types.new_class(attribute, (base,), {}, lambda body: body.update(members, __module__=module))
    register(monkeypatch, module, kind)
    return kind


def register(monkeypatch: pytest.MonkeyPatch, module: str, kind: type) -> None:
    parts = module.split(".")
    for name in (".".join(parts[: end + 1]) for end in range(len(parts))):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[module], kind.__name__, kind, raising=False)


def lightning_content(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What Lightning, mmcv and their companions save beside the weights."""

    class Mode(enum.Enum):
        MAX = "max"

    Mode.__module__, Mode.__qualname__ = "pytorch_lightning.callbacks.modes", "Mode"
    register(monkeypatch, Mode.__module__, Mode)
    attribute_dict = throwaway(monkeypatch, "pytorch_lightning.utilities.parsing.AttributeDict", dict)
    namespace = throwaway(monkeypatch, "jsonargparse.namespace.Namespace", argparse.Namespace)
    config_dict = throwaway(monkeypatch, "mmcv.utils.config.ConfigDict", dict)
    hooks = throwaway(monkeypatch, "mmengine.hooks.Hooks", object, __init__=lambda self: vars(self).update(a=[self]))
    config_dict_with_state = config_dict(type="SegFormer")
    config_dict_with_state.frozen = True
    nested = namespace(
        config=[Path("configs/a.yaml")], inner=namespace(seed=np.int64(3), other=argparse.Namespace(a=1))
    )
    counts: defaultdict[str, list[int]] = defaultdict(list, a=[1, 2])
    return {
        "epoch": 12,
        "pytorch-lightning_version": "1.6.5",
        "hyper_parameters": attribute_dict(optimizer=functools.partial(torch.optim.AdamW, lr=6e-5), namespace=nested),
        "config": OmegaConf.create({"a": {"b": [1, 2, "${a.c}"], "c": None}}),
        "callbacks": {Mode.MAX: {"best": np.float64(0.5), "when": deque([1, 2], 5), "path": Path("/a/b")}},
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "random": np.random.default_rng(0),
        "meta": {"config": config_dict_with_state, "hooks": hooks(), "counts": counts, "range": range(3)},
        "kinds": [int, dict, Any, np.float32, torch.optim.AdamW],
        "state_dict": OrderedDict(STATE),
    }


@SAVERS
def test_a_lightning_checkpoint_is_read_and_what_was_passed_over_is_told(
    save: Callable[[object, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = set(torch.serialization.get_safe_globals())
    with monkeypatch.context() as patch:
        save(lightning_content(patch), tmp_path / "icda.ckpt")
    assert "jsonargparse.namespace" not in sys.modules and "mmcv.utils.config" not in sys.modules
    with caplog.at_level(logging.INFO, logger="icda"):
        content = read_weights(tmp_path / "icda.ckpt")
    assert same(tensors_of(content, "icda.ckpt"), STATE)
    assert content["epoch"] == 12
    for key in ("config", "array", "random"):
        assert isinstance(content[key], Inert)
    assert content["hyper_parameters"].keys() == {"optimizer", "namespace"}
    assert content["meta"]["config"] == {"type": "SegFormer"} and content["meta"]["counts"] == {"a": [1, 2]}
    for name in ("omegaconf.dictconfig.DictConfig", "jsonargparse.namespace.Namespace", "functools.partial"):
        assert name in caplog.text
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_file_of_tensors_is_read_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_zip({"state_dict": OrderedDict(STATE)}, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO, logger="icda"):
        read_weights(tmp_path / "a.pth")
    assert not caplog.records


def write_marked(path: Path) -> None:
    path.write_text("run")


def dump_plain(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, 2))


def dump_new_protocol(content: object, path: Path) -> None:
    torch.save(content, path, pickle_protocol=4)


def dump_new_protocol_legacy(content: object, path: Path) -> None:
    torch.save(content, path, pickle_protocol=4, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "save", [save_zip, save_legacy, dump_plain, dump_new_protocol, dump_new_protocol_legacy], ids=lambda s: s.__name__
)
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (exec, "builtins.exec"),
        (subprocess.Popen, "subprocess.Popen"),
        (write_marked, "write_marked"),
        (functools.partial, "posix.system"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_code_in_a_file_is_refused_by_name_and_never_run(
    save: Callable[[object, Path], None], function: Callable[..., object], named: str, tmp_path: Path
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    command = f"open({str(marker)!r}, 'w').close()"
    argument: dict[object, object] = {
        os.system: f"touch {marker}",
        eval: command,
        exec: command,
        subprocess.Popen: ["touch", str(marker)],
        write_marked: marker,
    }
    evil = Evil(
        function, *((os.system, f"touch {marker}") if function is functools.partial else (argument[function],))
    )
    save({"state_dict": {"a": torch.ones(1) if save is not dump_plain else 1}, "extra": [evil]}, path)
    message = refusal(path)
    assert named in message and "nothing of it was run" in message and "model.state_dict()" in message
    assert not marker.exists()


@pytest.mark.parametrize("save", [dump_new_protocol, dump_new_protocol_legacy])
def test_another_pickle_protocol_is_named(save: Callable[[object, Path], None], tmp_path: Path) -> None:
    save(STATE, tmp_path / "a.pth")
    assert "is written in pickle protocol 4, expected torch.save's own, 2" in refusal(tmp_path / "a.pth")


def test_the_payload_of_these_tests_would_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    save_zip({"a": Evil(os.system, f"touch {marker}")}, tmp_path / "a.pth")
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert marker.exists()


@SAVERS
@pytest.mark.parametrize(
    "function", [np.testing.runstring, torch.hub.load, torch.serialization.load, pickle.loads, getattr, __import__]
)
def test_functions_of_known_packages_are_refused(
    save: Callable[[object, Path], None], function: Callable[..., object], tmp_path: Path
) -> None:
    save({"a": Evil(function, "x", "y")}, tmp_path / "a.pth")
    message = refusal(tmp_path / "a.pth")
    assert f".{function.__name__}" in message and "nothing of it was run" in message


@SAVERS
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
def test_a_whole_model_is_refused(
    save: Callable[[object, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(torch.nn.Conv2d(1, 1, 1), tmp_path / "a.pth")
    message = refusal(tmp_path / "a.pth")
    assert "torch.nn.modules.conv.Conv2d" in message or "holds a whole model" in message
    with monkeypatch.context() as patch:
        save({"model": throwaway(patch, "models.net.Net", torch.nn.Module)()}, tmp_path / "b.pth")
    assert "it names models.net.Net" in refusal(tmp_path / "b.pth")


def test_hidden_attributes_of_dicts_do_no_harm(tmp_path: Path) -> None:
    class Hidden:
        def __init__(self, **items: object) -> None:
            self.items = items

        def __reduce__(self) -> tuple[object, ...]:
            return OrderedDict, (), {"items": 5, "keys": 5, "get": 5}, None, iter(self.items.items())

    save_zip(Hidden(state_dict=Hidden(**STATE)), tmp_path / "a.pth")
    assert same(tensors_of(read_weights(tmp_path / "a.pth"), "a"), STATE)


# The state dict in a content


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "student", None])
def test_the_state_dict_is_found(key: str | None) -> None:
    content = {"step": 1, "optimizer": {"state": {}}, key: OrderedDict(STATE)} if key else STATE
    assert same(tensors_of(content, "a"), STATE)


def test_parameters_become_tensors_without_gradients() -> None:
    got = tensors_of({"a": torch.nn.Parameter(torch.ones(2))}, "a")["a"]
    assert type(got) is Tensor and not got.requires_grad


@pytest.mark.parametrize("content", [{}, {"step": 1, "config": {}}, {"state_dict": {}}, {"state_dict": {"a": 1}}])
def test_a_content_without_state_dict_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"a\.pth holds no weights.*state_dict, model_state_dict, model or student"):
        tensors_of(content, "a.pth")


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (np.ones(2), "ndarray"),
        (3, "type int"),
        (Inert(), "which is not read"),
        (Inert, "which is not read"),
        (torch.ones(2, device="meta"), "on meta"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_entries_that_are_no_tensors_are_refused_by_name(entry: object, what: str) -> None:
    with pytest.raises(UserError, match=rf"a\.pth: the entry conv\.mask is .*{what}"):
        tensors_of({"state_dict": {**STATE, "conv.mask": entry}}, "a.pth")


def test_a_stand_in_for_weights_is_noticed(tmp_path: Path) -> None:
    save_zip({"state_dict": {**STATE, "head": np.ones(2)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="the entry head is a NumPy array, expected a dense tensor"):
        tensors_of(read_weights(tmp_path / "a.pth"), "a.pth")


# Files that are not there or cannot be opened


def test_a_missing_file_is_told_with_near_names(tmp_path: Path) -> None:
    for name in ("mit_b5.pth", "icda.ckpt"):
        (tmp_path / name).touch()
    assert "near it in its folder: mit_b5.pth" in refusal(tmp_path / "mit_b5.ckpt")
    assert "near it in its folder: mit_b5.pth" in refusal(tmp_path / "mitb5.pth")
    assert "near it" not in refusal(tmp_path / "unlike.zip")
    assert f"nor its folder {tmp_path / 'none'}" in refusal(tmp_path / "none" / "a.pth")
    assert "there is no file" in refusal(tmp_path / "icda.ckpt" / "a.pth")
    assert "download it first" in refusal("https://example.org/mit_b5.pth")


def test_links_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    assert "leads back to itself" in refusal(tmp_path / "loop.pth")
    (tmp_path / "broken.pth").symlink_to(tmp_path / "gone.pth")
    assert "gone.pth, which is not there" in refusal(tmp_path / "broken.pth")
    (tmp_path / "annexed.pth").symlink_to(".git/annex/objects/x/y.pth")
    assert "git annex get" in refusal(tmp_path / "annexed.pth")


def test_paths_that_cannot_be_are_told(tmp_path: Path) -> None:
    assert "cannot be a path" in refusal(tmp_path / ("a" * 5000))
    assert "cannot be a path" in refusal("a\0b.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    assert "not a regular file" in refusal(tmp_path / "pipe.pth")


def test_a_file_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_zip(STATE, tmp_path / "a.pth")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the user of the tests may be one whom permissions do not bind
    assert "check the permissions" in refusal(tmp_path / "a.pth")


def test_messages_use_the_name_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    assert refusal(tmp_path / "a.pth", "model.encoder.weights=a.pth").startswith(
        "model.encoder.weights=a.pth is empty"
    )


# Files cut short or damaged


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_says_that_it_was_cut(form: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    {"zip": save_zip, "legacy": save_legacy, "safetensors": save_file}[form](STATE, path)
    whole = path.read_bytes()
    for length in {15, 16, 17, *range(20, len(whole), 23), len(whole) - 1}:
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert f"ends after {length} " in message and "cut short; get the file again" in message, (length, message)
    path.write_bytes(b"")
    assert "is empty" in refusal(path)


def test_a_flipped_bit_in_a_zip_is_noticed_and_its_record_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_zip({"a": torch.zeros(4), "b": torch.full((5000,), 3.0)}, path)
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<f", 3.0) * 10) + 4000
    content[at] ^= 1
    path.write_bytes(content)
    assert "its record weights/data/1 is not what was saved" in refusal(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.filterwarnings("ignore")  # of torch, on what it meets in damaged pickles
def test_damage_anywhere_gives_one_line_or_a_content(form: str, tmp_path: Path) -> None:
    path, rng = tmp_path / "weights.pth", random.Random(0)
    {"zip": save_zip, "legacy": save_legacy, "safetensors": save_file}[form](STATE, path)
    whole = path.read_bytes()
    refused = 0
    for _ in range(250):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 40))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            read_weights(path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused > 25


@pytest.mark.parametrize("length", [10**8 + 1, 2**31, 2**63, 2**64 - 1])
def test_a_hostile_safetensors_header_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        struct.pack("<Q", length) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + b"\0" * 4
    )
    assert f"claims a header of {length} bytes" in refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"NO","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":3}',
        b"{" * 50_000,
    ],
)
def test_a_damaged_safetensors_header_is_refused(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    assert "damaged safetensors" in refusal(path)


def test_a_zip_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(20_000_000))
    assert "more than 20 times its size" in refusal(tmp_path / "a.pth")


# Files of other kinds

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 85000000\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Google Drive -\n Virus scan warning</title></head></html>"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (LFS, ["is a Git LFS pointer of 133 bytes for a file of 85.0 MB", "run git lfs pull"]),
        (b"/annex/objects/SHA256E-s8--ab.pth\n", ["git-annex pointer", "git annex get"]),
        (PAGE, ["is a web page (titled 'Google Drive - Virus scan warning')", "login or error page"]),
        (b"<html><body>no</body></html>", ["is a web page,"]),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ["is XML text", "AccessDenied"]),
        (b'{"error": "quota"}', ["is JSON text", "quota"]),
        (b"Not Found\n", ["is text that begins with 'Not Found'"]),
        ("Zugriff verweigert: für".encode(), ["is text"]),
        (gzip.compress(b"x" * 100, mtime=0), ["is a gzip archive", "unpack it first"]),
        (b"7z\xbc\xaf\x27\x1c" + bytes(40), ["is a 7z archive", "unpack it first"]),
        (b"BZh91AY&SY" + bytes(40), ["is a bzip2 archive"]),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), ["is an HDF5 file", "Keras"]),
        (b"PK\x05\x06" + bytes(18), ["empty zip"]),
        (bytes(5_000_000), ["nothing but zeros", "5.0 MB", "never finished"]),
        (bytes(range(128, 256)) * 9, ["damaged pickle"]),
        (b"\x01\x02\xfe\xff" * 30, ["is of no known kind (it begins with the bytes 01 02 fe ff"]),
        (b"\x1b[31m\x07red", ["known kind"]),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, bytes) else value[0],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_kinds_of_files_are_named(content: bytes, expected: list[str], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    message = refusal(path)
    for part in expected:
        assert part in message, message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif"])
def test_images_are_named(suffix: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / f"a{suffix}"), np.zeros((4, 4, 3), np.uint8))
    assert " image, not weights" in refusal((tmp_path / f"a{suffix}").rename(tmp_path / "a.pth"))


def test_archives_are_named(tmp_path: Path) -> None:
    save_zip(STATE, tmp_path / "a.pth")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.pth", "a.pth")
    assert "is a tar archive, not weights; unpack it first" in refusal(tmp_path / "a.tar")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a.pth", "release/a.pth")
    assert "an ordinary zip archive with release/a.pth in it, not weights; unpack it" in refusal(tmp_path / "b.zip")
    np.savez(tmp_path / "c.npz", a=np.ones(2))
    assert "NumPy archive" in refusal(tmp_path / "c.npz")
    np.save(tmp_path / "c.npy", np.ones(2))
    assert "NumPy array" in refusal(tmp_path / "c.npy")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_exported_programs_are_named(tmp_path: Path) -> None:
    module = torch.nn.Conv2d(1, 1, 1).eval()
    images = torch.ones(1, 1, 2, 2)
    torch.jit.trace(module, images).save(str(tmp_path / "traced.pt"))
    assert "is a TorchScript archive, an exported program" in refusal(tmp_path / "traced.pt")
    torch.export.save(torch.export.export(module, (images,)), tmp_path / "program.pt2")
    assert "is an archive of torch.export, an exported program" in refusal(tmp_path / "program.pt2")
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    info = [onnx.helper.make_tensor_value_info(n, 1, [1]) for n in "xy"]
    for fields in ({}, {"producer_name": "pytorch"}):
        onnx.save(
            onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:]), **fields), tmp_path / "m"
        )
        assert "is an ONNX model" in refusal(tmp_path / "m")


def test_a_pickle_of_other_origin_is_refused(tmp_path: Path) -> None:
    for protocol in (2, 3, 4, 5):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": [1.0, 2.0]}, protocol))
        assert "a pickle that torch.save did not write" in refusal(tmp_path / "a.pkl")


@SAVERS
def test_a_content_that_is_no_dict_is_refused(save: Callable[[object, Path], None], tmp_path: Path) -> None:
    save([torch.ones(1)], tmp_path / "a.pth")
    assert "holds a value of type list, expected a dict of tensors" in refusal(tmp_path / "a.pth")
