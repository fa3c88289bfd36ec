"""Files of ``torch.save`` opened without running anything that is in them.

Such a file is a pickle, which can name any function of Python to be called. Its operations are looked through before
it is opened. A file of tensors and plain values goes to PyTorch's restricted reader (``weights_only``); one with what
training frameworks put beside them to the reader of ``icda.weights.stand_ins``; any other is refused.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from icda.errors import DamagedFile, UserError
from icda.weights import stand_ins
from icda.weights.foreign import cut_short, foreign_zip, plain
from icda.weights.operations import WHOLE_MODEL, Machine, Unfit, check_nesting
from icda.weights.stand_ins import READ, Inert, full_name, has_stand_in

log = logging.getLogger(__name__)

_RESAVE = "have its author save tensors alone, with torch.save(model.state_dict(), ...) or as safetensors"
_AGAIN = "get the file again"
_CHUNK = 1 << 22  # bytes
_FOLDER = 0x10  # of a zip record's attributes

# Parts of names that do run code when they are called, for the wording alone: any unknown name is refused.
_RUNS_CODE = re.compile(
    r"(posix|nt|os|sys|subprocess|shutil|socket|importlib|runpy|ctypes|pickle|_pickle|dill|cloudpickle|marshal|pty|code"
    r"|webbrowser|multiprocessing|asyncio|timeit|pdb|operator|torch\.hub|torch\.jit|torch\.serialization|numpy\.testing)\."
    r"|builtins\.(eval|exec|compile|open|getattr|setattr|delattr|__import__|globals|vars|breakpoint|input|print)$"
)


@dataclass
class _Scanned:
    """What a pickle would do: full names it would import, its protocol, and an operation that no weights need."""

    names: set[str] = field(default_factory=set)
    protocol: int = 0
    fault: str | None = None


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
        return f"an object of {plain(f'{kind.__module__}.{kind.__qualname__}', 80)}, which is not read"
    return f"a value of type {plain(kind.__name__, 80)}"


def read_zip(path: Path, name: str, size: int) -> dict[str, Any]:
    """The content of a zip archive that ``torch.save`` wrote, as it does since PyTorch 1.6.

    Args:
        path: A file that begins as a zip archive.
        name: What messages call it.
        size: Its bytes.

    Raises:
        DamagedFile: If it is cut short or damaged.
        UserError: If it is another kind of archive, or holds code.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises more than BadZipFile for hostile bytes
        _raise_if_of_system(error)
        # A zip's list of records stands at its end, so that it is what a cut takes first.
        raise cut_short(name, size) from error
    with archive:
        records = archive.infolist()
        root = records[0].filename.partition("/")[0] if records else ""
        names = {record.filename for record in records}
        # Where this and torch's own reader of archives could see different records: of two with one name, or whose
        # name ends at a null character or is replaced by an extra field.
        twice = len({record.filename.lower() for record in records}) < len(records)
        if twice or any(record.orig_filename != record.filename for record in records):
            _check_headers(archive, name)
            raise UserError(
                f"{name} holds records whose names are ambiguous, which torch.save never writes; {_AGAIN}"
            )
        if remark := foreign_zip(names, root):
            _check_headers(archive, name)
            raise UserError(f"{name} {remark}")
        if sum(record.file_size for record in records) > 20 * size:
            _check_headers(archive, name)
            raise UserError(f"{name} unpacks to more than 20 times its size, which no weights do; {_AGAIN}")
        _check_records(archive, name)
        try:
            scanned = _scan(io.BytesIO(archive.read(f"{root}/data.pkl")))
        except Exception as error:  # whatever the bytes make it raise
            raise DamagedFile(f"{name} holds a damaged pickle ({plain(error, 80)})", _AGAIN) from error
    # Mapped, the tensors take no memory of their own. torch maps by path, where it takes the ending .safetensors for
    # that format and does not know names that are not text.
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    _refuse_code(scanned, name)
    return _load(
        path, name, scanned.names, mapped=stored and path.suffix != ".safetensors" and str(path).isprintable()
    )


def _check_headers(archive: zipfile.ZipFile, name: str) -> None:
    """Compare what the list at the end says of each record with what stands before the record itself.

    Damage to the list can make a file of torch.save look like an archive of another kind.
    """
    for record in archive.infolist():
        if record.flag_bits & 1:  # encrypted, as no weights are
            continue
        try:
            if record.compress_type == zipfile.ZIP_STORED and record.file_size != record.compress_size:
                raise zipfile.BadZipFile("its two sizes differ")
            archive.open(record).close()
        except Exception as error:  # zipfile raises more than BadZipFile for hostile bytes
            _raise_if_of_system(error)
            raise _damaged_record(record, name, error) from error


def _raise_if_of_system(error: Exception) -> None:
    """Raise what the system said of the file or the disk; a place before or beyond all files is the file's fault."""
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        raise error


def _damaged_record(record: zipfile.ZipInfo, name: str, error: Exception) -> DamagedFile:
    return DamagedFile(
        f"{name} is damaged: its record {plain(record.filename, 80)} is not what was saved ({plain(error, 60)})",
        _AGAIN,
    )


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
            if record.external_attr & _FOLDER and not record.is_dir():
                raise zipfile.BadZipFile("it is marked as a folder")  # of which torch's reader would read nothing
        except Exception as error:  # zipfile raises more than BadZipFile for hostile bytes
            _raise_if_of_system(error)
            raise _damaged_record(record, name, error) from error


def read_legacy(path: Path, name: str, size: int, head: bytes) -> dict[str, Any]:
    """The content of a file that ``torch.save`` wrote before PyTorch 1.6.

    It is five pickles, of which the fourth is the content, and then the tensors' bytes, without any checksum.

    Args:
        path: A file that begins as a pickle.
        name: What messages call it.
        size: Its bytes.
        head: Its first bytes.

    Raises:
        DamagedFile: If it is cut short or damaged.
        UserError: If it is another pickle, or holds code.
    """
    magics = [pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol) for protocol in range(2, 6)]
    if any(magic.startswith(head) for magic in magics):
        raise cut_short(name, size)
    by_torch = any(head.startswith(magic) for magic in magics)
    whole = _Scanned()
    with path.open("rb") as file:
        try:
            for _ in range(5 if by_torch else 1):
                scanned = _scan(file)
                whole.names |= scanned.names
                whole.protocol = max(whole.protocol, scanned.protocol)
                whole.fault = whole.fault or scanned.fault
        except Exception as error:  # whatever the bytes make it raise
            if file.tell() >= size:
                raise cut_short(name, size) from error
            raise DamagedFile(f"{name} is a damaged pickle ({plain(error, 80)})", _AGAIN) from error
    if not by_torch:
        _refuse_code(_Scanned(whole.names), name)
        raise UserError(f"{name} is a pickle that torch.save did not write, which is not read; {_RESAVE}")
    if tarfile.is_tarfile(path):  # which torch.load would unpack, as its oldest form
        raise UserError(f"{name} is a tar archive that begins as a pickle, which no weights do; {_AGAIN}")
    _refuse_code(whole, name)
    return _load(path, name, whole.names, mapped=False)


def _scan(stream: IO[bytes]) -> _Scanned:
    """What a pickle would do, found without running it.

    Raises:
        Exception: Of any kind, if the bytes are no whole pickle.
    """
    found, machine, previous = _Scanned(), Machine(), None
    texts, memo = ["", ""], []  # from protocol 4 on, module and name are the two texts before
    for opcode, value, _ in pickletools.genops(stream):
        if found.fault is None:
            try:
                machine.step(opcode.name, value)
            except Unfit as error:
                found.fault = str(error)
            except (IndexError, KeyError):
                found.fault = "takes what was never there"
        if opcode.name == "MEMOIZE":
            memo.append(previous)
        elif "BINGET" in opcode.name and value < len(memo):
            value = memo[value]
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            module, _, attribute = value.partition(" ") if value else (str(texts[0]), "", str(texts[1]))
            found.names.add(full_name(module, attribute))
            value = None
        elif opcode.name == "PROTO":
            found.protocol = max(found.protocol, value)
        elif isinstance(value, str):
            texts = [texts[1], value]
        previous = value
    return found


def _refuse_code(scanned: _Scanned, name: str) -> None:
    unknown = sorted(n for n in scanned.names if not (has_stand_in(n) or n in READ or n.startswith("torch.")))
    if unknown:
        raise _holds_code(unknown, name)
    if scanned.protocol > 3:  # what PyTorch's restricted reader knows no operations of
        raise UserError(
            f"{name} is written in pickle protocol {scanned.protocol}, expected torch.save's own, 2, which alone can "
            f"be read without running code; {_RESAVE}"
        )
    if scanned.fault == WHOLE_MODEL:
        raise UserError(f"{name} holds a whole model, expected its weights alone; {_RESAVE}")
    if scanned.fault:
        raise UserError(
            f"{name} is refused: its pickle {scanned.fault}, which no weights need; nothing of it was run; it is "
            f"damaged or made to do harm; {_AGAIN}, or {_RESAVE}"
        )


def _holds_code(unknown: list[str], name: str) -> UserError:
    unknown = sorted(unknown, key=lambda full: not _RUNS_CODE.match(full))
    listed = ", ".join(plain(n, 80) for n in unknown[:3]) + (f" and {len(unknown) - 3} more" if unknown[3:] else "")
    if _RUNS_CODE.match(unknown[0]):
        return UserError(
            f"{name} is refused, since opening it could run code: it names {listed}, which weights do not need; "
            f"nothing of it was run; {_RESAVE}"
        )
    kind = "which is not known to be harmless" if len(unknown) == 1 else "which are not known to be harmless"
    return UserError(f"{name} is refused: it names {listed}, {kind}; nothing of it was run; {_RESAVE}")


def _load(path: Path, name: str, found: set[str], mapped: bool) -> dict[str, Any]:
    """Read a file of ``torch.save``, with stand-ins for those of the names ``found`` that are of known containers."""
    passed_over = sorted(n for n in found if has_stand_in(n))
    try:
        with path.open("rb") as file:
            source = path if mapped else file
            if passed_over:
                content = torch.load(
                    source, map_location="cpu", weights_only=False, pickle_module=stand_ins, mmap=mapped
                )
            else:
                content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        check_nesting(content)
    except OSError:
        raise
    except Exception as error:  # whatever the bytes make it raise
        raise _not_loaded(error, path, name) from error
    if passed_over:
        more = f" and {len(passed_over) - 50} more" if passed_over[50:] else ""
        listed = ", ".join(plain(n, 80) for n in passed_over[:50])
        log.info("%s: passed over what is not weights: %s%s", name, listed, more)
    if not isinstance(content, dict):
        raise UserError(f"{name} holds {kind_of(content)}, expected a dict of tensors; {_RESAVE}")
    return items(content)


def _not_loaded(error: Exception, path: Path, name: str) -> UserError:
    text = plain(error, 1000)
    if refused := re.search(r"GLOBAL (\S+)", text):
        return _holds_code([refused[1]], name)
    if isinstance(error, Unfit):
        return UserError(f"{name} is refused: its content {text}, which no weights need; {_RESAVE}")
    if "explicit pickle_module" in text:  # torch.load's refusal of any other reader than its own
        variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
        return UserError(
            f"{name} holds objects beside its tensors, which cannot be passed over while the environment sets "
            f"{variable}={plain(os.environ.get(variable), 20)}; unset it, or {_RESAVE}"
        )
    if isinstance(error, EOFError) or "unexpected EOF" in text:
        return cut_short(name, path.stat().st_size)
    if "PytorchStreamReader" in text:  # torch's reader of archives, after all checksums agreed
        return DamagedFile(
            f"{name} is damaged: its list of records is not what was saved ({plain(text, 120)})", _AGAIN
        )
    reason = plain(text.rpartition("WeightsUnpickler error: ")[2], 120)
    return UserError(
        f"{name} cannot be read as tensors and plain values ({type(error).__name__}: {reason}): it is damaged or "
        f"holds what only its program can read; {_AGAIN}, or {_RESAVE}"
    )
