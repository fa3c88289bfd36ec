"""Weights files of the field, read without running anything that is in them.

Tensors and plain values are all that a weights file needs. safetensors holds nothing else. A file of ``torch.save``
is a pickle, which can name any function of Python to be called: here PyTorch's restricted reader (``weights_only``)
opens it, and what training frameworks put beside the tensors is replaced by stand-ins that do nothing.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from icda.errors import DamagedFile, UserError
from icda.weights.foreign import cut_short, foreign, plain, size_text
from icda.weights.pickles import items, kind_of, read_legacy, read_zip

FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
METADATA_KEY = "icda"
"""Under which JSON text about a file stands in the metadata of those that ``icda.export`` writes."""
STATE_KEYS = ("state_dict", "model_state_dict", "model", "student")  # where a content keeps its state dict
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")

_EXPECTED = "expected .safetensors, a file of torch.save (.pth, .pt, .ckpt, .bin) or a folder of Hugging Face's form"
_AGAIN = "get the file again"
_HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
_INDEX_LIMIT = 100_000_000  # bytes
_HEAD = 4096  # bytes that tell what a file is


def read_weights(path: str | Path, name: str | None = None) -> dict[str, Any]:
    """The content of a weights file or folder. Nothing that is in the file is ever run.

    Read are ``.safetensors``; files of ``torch.save``, zip or legacy; folders in Hugging Face's form with
    ``model.safetensors``, ``pytorch_model.bin`` or the ``.index.json`` of either with its shards. Content decides,
    not the file's ending. The checksums of a ``torch.save`` zip are checked; the other forms have none. Objects of
    known frameworks beside the tensors become stand-ins (``Inert``), which is logged.

    Args:
        path: File or folder; ``~`` stands for the home folder.
        name: What messages call it; by default the path.

    Returns:
        What the file holds: tensors on the CPU in their own dtype, plain values, nested dicts. Tensors may be
        mapped from the file: they take memory when they are touched, and the file must not be overwritten in place
        as long as they are used.

    Raises:
        DamagedFile: If it is empty, cut short or damaged.
        UserError: If it is missing, no weights file, or holds code.
    """
    shown = str(path) if name is None else name
    name = shown if shown.isprintable() else plain(shown, 300)
    if not str(path).strip():
        raise UserError(f"{name.strip() or 'the path of the weights'} is empty; {_EXPECTED}")
    try:
        place = Path(path).expanduser()
    except RuntimeError as error:  # what it raises for a user that is not known
        raise UserError(f"{name} names no home folder with its ~; {_EXPECTED}") from error
    try:
        if stat.S_ISDIR(_stat(place, name).st_mode):
            return _read_folder(place, name)
        if place.name.endswith(".index.json"):
            return _read_index(place, name)
        return _read_file(place, name)
    except PermissionError as error:
        raise UserError(f"{name} may not be read; check the permissions of it and of its folder") from error
    except OSError as error:
        unreadable = DamagedFile if error.errno == errno.EIO else UserError  # EIO: the disk has lost a part of it
        raise unreadable(
            f"{name} cannot be read: {plain(error.strerror or error, 120)}; check the disk and the path"
        ) from error


def tensors_of(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The state dict in a content of ``read_weights``.

    Args:
        content: Where a state dict is below ``state_dict``, ``model_state_dict``, ``model`` or ``student``, or that
            is a state dict itself.
        name: What messages call the file.

    Returns:
        Tensors by name, on the devices and in the dtypes they have, without gradients.

    Raises:
        UserError: If there is none, or an entry of it is not a plain dense tensor.
    """
    whole = items(content)
    inner = [items(whole[key]) for key in STATE_KEYS if isinstance(whole.get(key), Mapping)]
    state = next((s for s in (*inner, whole) if any(isinstance(v, Tensor) for v in s.values())), None)
    if state is None:
        keys = ", ".join(plain(key, 40) for key in list(whole)[:8]) or "none"
        raise UserError(
            f"{name} holds no weights: expected tensors, or a state dict below {', '.join(STATE_KEYS[:-1])} or "
            f"{STATE_KEYS[-1]}, got the keys {keys}; give a file with a model's weights"
        )
    for key, value in state.items():
        if not isinstance(key, str):
            raise UserError(
                f"{name}: a key of its state dict, {plain(key, 80)}, is {kind_of(key)}, expected the tensor's name; "
                "save the model's state_dict() alone"
            )
        dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
        if not dense or value.is_meta:
            raise UserError(
                f"{name}: the entry {plain(key, 100)} is {kind_of(value)}, expected a dense tensor as in every entry "
                "of a state dict; save the model's state_dict() alone"
            )
    return {key: value.detach() for key, value in state.items()}


def _stat(path: Path, name: str) -> os.stat_result:
    if re.match(r"[a-z]{2,}:/", str(path)):
        raise UserError(f"{name} is an address, expected the path of a file; download it first")
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path, name) from None
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:  # ValueError for a null character
            raise UserError(f"{plain(name, 200)!r} cannot be a path; {_EXPECTED}") from error
        if error.errno == errno.ELOOP:
            raise UserError(f"{name} is a link that leads back to itself; {_EXPECTED}") from error
        raise


def _missing(path: Path, name: str) -> UserError:
    if path.is_symlink():
        target = plain(path.readlink().as_posix(), 200)
        if "annex/objects" in target:
            return UserError(f"{name} is a git-annex link whose file is not here; run git annex get on it")
        return UserError(f"{name} is a link to {target}, which is not there; get that file or mend the link")
    if not path.parent.is_dir():
        return UserError(f"there is no file {name}, nor its folder {plain(str(path.parent), 200)}; {_EXPECTED}")
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = [n for n in names if Path(n).stem == path.stem] + difflib.get_close_matches(path.name, names, 3, 0.6)
    listed = ", ".join(plain(n, 80) for n in list(dict.fromkeys(near))[:3])
    return UserError(f"there is no file {name}; {f'near it in its folder: {listed}' if listed else _EXPECTED}")


def _read_folder(folder: Path, name: str) -> dict[str, Any]:
    names = sorted(entry.name for entry in folder.iterdir())
    if held := next((file for file in FOLDER_FILES if file in names), None):
        read = _read_index if held.endswith(".index.json") else _read_file
        return read(folder / held, str(Path(name, held)))
    files = [n for n in names if n.endswith(SUFFIXES)]
    remedy = (
        f"give a file of it, such as {', '.join(plain(n, 80) for n in files[:3])}"
        if files
        else "give the file or folder of weights"
    )
    if "data.pkl" in names and "data" in names:
        remedy = "it is a torch.save file that was unpacked; give the file as it was downloaded"
    raise UserError(f"{name} is a folder with none of {', '.join(FOLDER_FILES)}; {remedy}")


def _read_index(index: Path, name: str) -> dict[str, Any]:
    """All tensors of the shards that an index of Hugging Face's form names."""
    shards = _weight_map(index, name)
    content: dict[str, Any] = {}
    for shard in sorted(set(shards.values())):
        if shard in ("", ".", "..") or re.search(r"[/\\:\0]", shard):
            raise UserError(
                f"{name} names the shard {plain(shard, 100)!r}, expected a file of its own folder; {_AGAIN}"
            )
        inside = str(Path(name).parent / plain(shard, 80))
        held, wanted = _read_file(index.parent / shard, inside), [k for k, file in shards.items() if file == shard]
        absent = [key for key in wanted if key not in held]
        if absent:
            raise UserError(
                f"{inside} lacks {len(absent)} of the {len(wanted)} tensors that {plain(index.name, 80)} places "
                f"there, first {plain(absent[0], 100)}; get the shard again"
            )
        content.update({key: held[key] for key in wanted})
    return content


def _weight_map(index: Path, name: str) -> dict[str, str]:
    """The shard of each tensor."""
    if (size := _stat(index, name).st_size) > _INDEX_LIMIT:
        raise UserError(f"{name} has {size_text(size)}, which no index of weights has; {_AGAIN}")
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError):  # not JSON, not text, or nested without end
        content = None
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise UserError(f"{name} is no index of weights, expected JSON with weight_map, each tensor's file; {_AGAIN}")
    return shards


def _read_file(path: Path, name: str) -> dict[str, Any]:
    status = _stat(path, name)
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{name} is not a regular file; {_EXPECTED}")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise DamagedFile(f"{name} is empty: nothing was downloaded or written", _AGAIN)
    # A header of JSON below 4 GiB; other formats may begin with its length's first bytes, so that this comes first.
    if head[8:9] == b"{" and (head[4:8] == b"\0\0\0\0" or path.suffix == ".safetensors"):
        return _read_safetensors(path, name, size)
    if head.startswith(b"PK\x03\x04"):
        return read_zip(path, name, size)
    if b"PK\x03\x04".startswith(head):
        raise cut_short(name, size)
    if not head.strip(b"\0"):  # what a file system may leave of a file after a loss of power
        raise DamagedFile(
            f"{name} begins with nothing but zeros: its download or writing of {size_text(size)} never finished",
            _AGAIN,
        )
    if remark := foreign(head, size):
        raise UserError(f"{name} {remark}")
    if head[0] == 0x80:
        return read_legacy(path, name, size, head)
    if zipfile.is_zipfile(path):  # by its end: such as torch.save's, of which the beginning is lost
        raise DamagedFile(f"{name} is damaged: it ends as a file of torch.save, but does not begin as one", _AGAIN)
    begins = " ".join(f"{byte:02x}" for byte in head[:8])
    raise UserError(f"{name} is of no known kind (it begins with the bytes {begins}); {_EXPECTED}")


def _read_safetensors(path: Path, name: str, size: int) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= _HEADER_LIMIT else b""
    if length > _HEADER_LIMIT:
        raise DamagedFile(
            f"{name} claims a header of {length} bytes, but safetensors allows {_HEADER_LIMIT}: it is damaged or no "
            "safetensors file",
            _AGAIN,
        )
    if len(header) < length:
        raise cut_short(name, size, 8 + length)
    try:
        return safetensors.torch.load_file(path)
    except OSError:
        raise
    except Exception as error:  # whatever the bytes make it raise
        whole = _safetensors_size(header)
        if whole > size:
            raise cut_short(name, size, whole) from error
        raise DamagedFile(f"{name} is a damaged safetensors file ({plain(error, 120)})", _AGAIN) from error


def _safetensors_size(header: bytes) -> int:
    """Bytes that a file with this header has, 0 where the header does not tell."""
    try:
        ends = [entry["data_offsets"][1] for key, entry in json.loads(header).items() if key != "__metadata__"]
        return 8 + len(header) + int(max(ends))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        return 0
