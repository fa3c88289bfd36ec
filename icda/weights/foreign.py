"""What a file is that was given for weights and is none: told from its first bytes, with what to do."""

from __future__ import annotations

import re
from collections.abc import Collection

from icda.errors import DamagedFile

_UNPACK = "unpack it first and give the weights file that is in it"
_WEIGHTS = "give the weights file"
_CONVERT = "give weights of PyTorch (torch.save or safetensors)"
_AGAIN = "get the file again"

# First bytes at an offset, what they say the file is, what to do.
_MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a rar archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", _AGAIN),
    (0, b"\x89PNG", "a PNG image", _WEIGHTS),
    (0, b"\xff\xd8\xff", "a JPEG image", _WEIGHTS),
    (0, b"GIF8", "a GIF image", _WEIGHTS),
    (8, b"WEBP", "a WebP image", _WEIGHTS),
    (0, b"BM", "a BMP image", _WEIGHTS),
    (0, b"II*\x00", "a TIFF image", _WEIGHTS),
    (0, b"MM\x00*", "a TIFF image", _WEIGHTS),
    (0, b"%PDF", "a PDF document", _WEIGHTS),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as TensorFlow and Keras write", _CONVERT),
    (4, b"TFL3", "a TensorFlow Lite file", _CONVERT),
    (0, b"GGUF", "a GGUF file", _CONVERT),
    (0, b"\x93NUMPY", "a NumPy array", _CONVERT),
)


def plain(text: object, limit: int) -> str:
    """Text of a stranger's file as it may stand in a message: printable, in one line.

    Args:
        text: A text, plain value or exception; of anything else the type is told, since values that a file shares
            in many places could take years to print.
        limit: Most characters; what is longer is cut.
    """
    begin = _words(text, 20 * limit)[: 20 * limit]  # more than enough, unless nearly all of it is spaces
    whole = " ".join("".join(c if c.isprintable() else " " for c in begin).split())
    return whole if len(whole) <= limit else whole[: limit - 3] + "..."


def _words(value: object, limit: int, depth: int = 2) -> str:
    if isinstance(value, str):
        return value[:limit]
    if value is None or isinstance(value, bool | int | float | complex):
        return str(value)
    if isinstance(value, bytes):
        return repr(value[:limit])
    if isinstance(value, BaseException):
        simple = all(isinstance(part, str | int | bytes | None) for part in value.args)
        return str(value)[:limit] if simple else type(value).__name__
    if isinstance(value, tuple) and depth:
        parts = [_words(part, limit, depth - 1) for part in value[:4]]
        return f"({', '.join(parts)}{', ...' if value[4:] else ''})"
    return f"a value of type {type(value).__name__}"


def size_text(count: int) -> str:
    """A count of bytes for a message, in MB (10^6 bytes) from one MB on."""
    return f"{count} bytes" if count < 1_000_000 else f"{count / 1e6:.1f} MB"


def cut_short(name: str, size: int, whole: int | None = None) -> DamagedFile:
    """The mistake of a file that ends too early.

    Args:
        name: What messages call it.
        size: Its bytes.
        whole: Bytes it should have, where that is known.
    """
    of = f" of at least {whole}" if whole else ""
    return DamagedFile(f"{name} ends after {size}{of} bytes: its download, copy or writing was cut short", _AGAIN)


def foreign(head: bytes, size: int) -> str | None:
    """What a file is that holds no weights in a form we read.

    Args:
        head: The file's first bytes, a few thousand where there are so many.
        size: Bytes of the whole file.

    Returns:
        The end of a sentence that begins with the file's name, and what to do; None where the bytes do not tell.
    """
    for offset, magic, what, remedy in _MAGICS:
        if head.startswith(magic, offset):
            return f"is {what}, not weights; {remedy}"
    # An ONNX model's first field is its version, a small number; then comes a text or a message.
    versioned = head[0] == 0x08 and b"\x01" <= head[1:2] < b"\x20"
    if versioned and head[2:3] in (b"\x12", b"\x1a", b"\x22", b":"):
        return "is an ONNX model, an exported program and not weights; give the weights it was made from"
    text = head.decode("utf-8", errors="replace")
    odd = sum(not (c.isprintable() or c in "\r\n\t\f") or c == "\ufffd" for c in text)
    return _text(text, size) if odd <= 1 else None  # the cut may have split the last character


def _text(text: str, size: int) -> str:
    begins = text.lstrip("\ufeff \r\n\t").lower()
    if begins.startswith("version https://git-lfs"):
        whole = re.search(r"^size (\d+)", text, re.MULTILINE)
        of = f" for a file of {size_text(int(whole[1][:15]))}" if whole else ""
        return f"is a Git LFS pointer of {size_text(size)}{of}, not the file; run git lfs pull in its repository"
    if "annex/objects/" in begins[:300]:
        return "is a git-annex pointer, not the file; run git annex get on it"
    if re.match(r"<!doctype html|<html|<head|<(!--.*?-->\s*)?<?html", begins):
        title = re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
        what = f" (titled {plain(title[1], 60)!r})" if title and title[1].strip() else ""
        return f"is a web page{what}, not weights: the link gave a login or error page; download it in a browser"
    kinds = (("<?xml", "XML text"), ("<", "XML text"), ("{", "JSON text"), ("[", "JSON text"))
    kind = next((kind for start, kind in kinds if begins.startswith(start)), "text")
    return f"is {kind} that begins with {plain(text, 60)!r}, not weights; {_WEIGHTS}"


def foreign_zip(names: Collection[str], root: str) -> str | None:
    """What a zip archive is that ``torch.save`` did not write; see ``foreign``.

    Args:
        names: Names of its records.
        root: The folder of its first record, in which ``torch.save`` keeps everything.
    """
    if f"{root}/constants.pkl" in names or any(n.startswith(f"{root}/code/") for n in names):
        return "is a TorchScript archive, an exported program and not weights; give the weights it was made from"
    marks = (f"{root}/archive_format", "serialized_exported_program.json", f"{root}/models/model.json")
    if any(mark in names for mark in marks):
        return "is an archive of torch.export, an exported program; give the weights it was made from"
    if f"{root}/data.pkl" in names:
        return None
    if names and all(n.endswith(".npy") for n in names):
        return f"is a NumPy archive (.npz), not weights; {_CONVERT}"
    if "model.weights.h5" in names:
        return f"is a Keras archive, not weights of PyTorch; {_CONVERT}"
    inside = sorted(n for n in names if n.endswith((".pth", ".pt", ".ckpt", ".bin", ".safetensors")))
    what = f" with {plain(inside[0], 80)} in it" if inside else ""
    return f"is an ordinary zip archive{what}, not weights; {_UNPACK}"
