"""Files of ``torch.save`` opened without running anything that is in them.

Such a file is a pickle, which can name any function of Python to be called. PyTorch's restricted reader
(``weights_only``) makes tensors and plain values alone; what training frameworks put beside them is replaced by
stand-ins that do nothing, and a file that names anything else is refused.
"""

from __future__ import annotations

import io
import logging
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2's names, in which protocol 2 is written
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from icda.errors import UserError
from icda.weights.foreign import cut_short, foreign_zip, plain

log = logging.getLogger(__name__)

_RESAVE = "have its author save tensors alone, with torch.save(model.state_dict(), ...) or as safetensors"
_AGAIN = "get the file again"
_CHUNK = 1 << 22  # bytes

# What training frameworks save beside the tensors: whole packages, modules without those below them, single names.
_PACKAGES = (
    *("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"),
    *("omegaconf", "jsonargparse", "yacs", "addict", "easydict", "mmcv", "mmengine", "pathlib", "collections"),
    *("typing", "datetime", "numpy.random", "torch.optim", "torch.nn.modules", "torch.torch_version"),
)
_MODULES = (
    *("numpy", "numpy.dtypes", "numpy.core.multiarray", "numpy.core.numeric"),
    *("numpy._core.multiarray", "numpy._core.numeric"),  # NumPy 2
)
_NAMES = frozenset(
    {"argparse.Namespace", "functools.partial", "copyreg._reconstructor", "uuid.UUID", "fractions.Fraction"}
    | {f"builtins.{n}" for n in ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object")}
    | {f"builtins.{n}" for n in ("range", "slice", "str", "tuple")}
)
# What PyTorch's restricted reader makes itself, beside names of torch.
_READ = frozenset(
    {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
    | {"builtins.bytearray", "builtins.set", "builtins.complex"}
)
# Classes whose items a pickle sets one by one, which PyTorch's reader allows for its own dict and list types only.
_MAPPINGS = frozenset({"defaultdict", "AttributeDict", "EasyDict", "Dict", "ConfigDict", "CfgNode"})
_LISTS = frozenset({"deque"})


class Inert:
    """Stands in a content for an object that is not weights; takes whatever a pickle gives it and does nothing.

    For each replaced name a class of its own is made, whose ``__module__`` and ``__qualname__`` are that name.
    """

    def __init__(self, *args: object) -> None:
        """Take any arguments, keep none."""

    def __setstate__(self, state: object) -> None:
        """Take any state, keep none."""


class _InertMapping(Inert):
    def __new__(cls, *args: object) -> OrderedDict[object, object]:
        return OrderedDict()


class _InertList(Inert):
    def __new__(cls, *args: object) -> list[object]:
        return []


def items(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """A plain dict of a mapping that a file may hold."""
    # A pickle may set attributes of its dicts, such as "items", so that their own methods cannot be relied on.
    return dict(dict.items(content) if isinstance(content, dict) else content.items())


def kind_of(value: object) -> str:
    """What a value is, for a message in which a dense tensor was expected."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} in the layout {value.layout} on {value.device}"
    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, Inert) and kind.__qualname__ == "_reconstruct":
        return "a NumPy array"
    if issubclass(kind, Inert):
        return f"an object of {kind.__module__}.{kind.__qualname__}, which is not read"
    return f"a value of type {kind.__name__}"


def read_zip(path: Path, name: str, size: int) -> dict[str, Any]:
    """The content of a zip archive that ``torch.save`` wrote, as it does since PyTorch 1.6.

    Args:
        path: A file that begins as a zip archive.
        name: What messages call it.
        size: Its bytes.

    Raises:
        UserError: If it is cut short, damaged, another kind of archive, or holds code.
    """
    try:
        archive = zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # zipfile raises more than BadZipFile for hostile bytes
        # A zip's list of records stands at its end, so that it is what a cut takes first.
        raise cut_short(name, size) from error
    with archive:
        records = archive.infolist()
        root = records[0].filename.partition("/")[0] if records else ""
        names = {record.filename for record in records}
        if remark := foreign_zip(names, root):
            raise UserError(f"{name} {remark}")
        if sum(record.file_size for record in records) > 20 * size:
            raise UserError(f"{name} unpacks to more than 20 times its size, which no weights do; {_AGAIN}")
        _check_records(archive, name)
        try:
            found, protocol = _globals(io.BytesIO(archive.read(f"{root}/data.pkl")))
        except Exception as error:  # whatever the bytes make it raise
            raise UserError(f"{name} holds a damaged pickle ({plain(error, 80)}); {_AGAIN}") from error
    # Mapped, the tensors take no memory of their own. torch maps by path, where it takes the ending .safetensors for
    # that format and does not know names that are not text.
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    _refuse_code(found, protocol, name)
    return _load(path, name, found, mapped=stored and path.suffix != ".safetensors" and str(path).isprintable())


def _check_records(archive: zipfile.ZipFile, name: str) -> None:
    """Compare the checksums of all records, which torch does not."""
    if not any(record.CRC for record in archive.infolist()):  # torch.serialization.set_crc32_options(False)
        for record in archive.infolist():
            record.CRC = None  # zipfile then compares nothing
        return
    for record in archive.infolist():
        try:
            with archive.open(record) as file:
                while file.read(_CHUNK):
                    continue
        except OSError:
            raise
        except Exception as error:  # zipfile raises more than BadZipFile for hostile bytes
            raise UserError(
                f"{name} is damaged: its record {plain(record.filename, 80)} is not what was saved "
                f"({plain(error, 60)}); {_AGAIN}"
            ) from error


def read_legacy(path: Path, name: str, size: int, head: bytes) -> dict[str, Any]:
    """The content of a file that ``torch.save`` wrote before PyTorch 1.6.

    It is five pickles, of which the fourth is the content, and then the tensors' bytes, without any checksum.

    Args:
        path: A file that begins as a pickle.
        name: What messages call it.
        size: Its bytes.
        head: Its first bytes.

    Raises:
        UserError: If it is cut short, damaged, another pickle, or holds code.
    """
    magics = [pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol) for protocol in range(2, 6)]
    if any(magic.startswith(head) for magic in magics):
        raise cut_short(name, size)
    by_torch = any(head.startswith(magic) for magic in magics)
    scanned: list[tuple[set[str], int]] = []
    with path.open("rb") as file:
        try:
            for _ in range(5 if by_torch else 1):
                scanned.append(_globals(file))
        except Exception as error:  # whatever the bytes make it raise
            if file.tell() >= size:
                raise cut_short(name, size) from error
            raise UserError(f"{name} is a damaged pickle ({plain(error, 80)}); {_AGAIN}") from error
    found = set().union(*(names for names, _ in scanned))
    if by_torch:
        _refuse_code(found, max(protocol for _, protocol in scanned), name)
    else:
        _refuse_code(found, 2, name)
        raise UserError(f"{name} is a pickle that torch.save did not write, which is not read; {_RESAVE}")
    return _load(path, name, found, mapped=False)


def _globals(stream: IO[bytes]) -> tuple[set[str], int]:
    """Full names of what a pickle would import, and its protocol, found without running it."""
    found: set[str] = set()
    protocol, previous = 0, None
    texts, memo = ["", ""], []  # from protocol 4 on, module and name are the two texts before
    for opcode, value, _ in pickletools.genops(stream):
        if opcode.name == "MEMOIZE":
            memo.append(previous)
        elif "BINGET" in opcode.name and value < len(memo):
            value = memo[value]
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            module, _, attribute = value.partition(" ") if value else (texts[0], "", texts[1])
            module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
            found.add(f"{module}.{attribute}")
            value = None
        elif opcode.name == "PROTO":
            protocol = value
        elif isinstance(value, str):
            texts = [texts[1], value]
        previous = value
    return found, protocol


def _is_known(full: str) -> bool:
    """Whether a name is of a known container, which a stand-in may replace."""
    if not all(part.isidentifier() for part in full.split(".")):
        return False
    packages = tuple(f"{package}." for package in _PACKAGES)
    return full in _NAMES or full.rpartition(".")[0] in _MODULES or full.startswith(packages)


def _refuse_code(found: set[str], protocol: int, name: str) -> None:
    unknown = sorted(n for n in found if not _is_known(n) and n not in _READ and not n.startswith("torch."))
    if unknown:
        raise _holds_code(unknown, name)
    if protocol > 3:  # what PyTorch's restricted reader knows no operations of
        raise UserError(
            f"{name} is written in pickle protocol {protocol}, expected torch.save's own, 2, which alone can be read "
            f"without running code; {_RESAVE}"
        )


def _holds_code(unknown: list[str], name: str) -> UserError:
    listed = ", ".join(plain(n, 80) for n in unknown[:3]) + (f" and {len(unknown) - 3} more" if unknown[3:] else "")
    return UserError(
        f"{name} is refused, since opening it could run code: it names {listed}, which weights do not need; nothing "
        f"of it was run; {_RESAVE}"
    )


def _stand_in(full: str) -> type:
    module, _, attribute = full.rpartition(".")
    base = _InertMapping if attribute in _MAPPINGS else _InertList if attribute in _LISTS else Inert
    # The class bears the name itself, since torch 2.6 does not take pairs of a class and a name.
    return type(attribute, (base,), {"__module__": module, "__qualname__": attribute})


def _load(path: Path, name: str, found: set[str], mapped: bool) -> dict[str, Any]:
    """Read a file of ``torch.save``, with stand-ins for those of the names ``found`` that are of known containers."""
    passed_over = sorted(n for n in found - _READ if _is_known(n))
    try:
        with torch.serialization.safe_globals([_stand_in(n) for n in passed_over]), path.open("rb") as file:
            content = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # whatever the bytes make it raise
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise _holds_code([refused[1]], name) from error
        if "persistent_load of storage" in str(error):
            raise UserError(f"{name} holds a whole model, expected its weights alone; {_RESAVE}") from error
        if isinstance(error, EOFError) or "unexpected EOF" in str(error):
            raise cut_short(name, path.stat().st_size) from error
        reason = plain(str(error).rpartition("WeightsUnpickler error: ")[2], 120)
        raise UserError(
            f"{name} cannot be read as tensors and plain values ({type(error).__name__}: {reason}): it is damaged or "
            f"holds what only its program can read; get the file again, or {_RESAVE}"
        ) from error
    if passed_over:
        log.info("%s: passed over what is not weights: %s", name, ", ".join(passed_over))
    if not isinstance(content, dict):
        raise UserError(f"{name} holds {kind_of(content)}, expected a dict of tensors; {_RESAVE}")
    return items(content)
