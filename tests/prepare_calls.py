"""What the tests of ``scripts/prepare.py`` look at: files, and lines of its table."""

from __future__ import annotations

import hashlib
from pathlib import Path

from icda.data.prepared import prepared_folder, root_key

FILES = "icda_prepared"


def about(data: Path, name: str, root: str) -> Path:
    """Folder of the prepared files about a data set below ``data``."""
    return prepared_folder(data / FILES, name, data / root)


def train_ids_folder(data: Path) -> Path:
    """Folder of the train-id labels that are made of ``data/Cityscapes``."""
    return data / FILES / f"Cityscapes-{root_key(data / FILES, data / 'Cityscapes')}"


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every file below a folder."""
    return {
        path.relative_to(root).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def row(text: str, part: str, what: str = "images") -> list[str]:
    """Found, published and state of a line of the table."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(part + " "):
            while f"  {what}  " not in line:
                line = next(lines)
            found, published, *state = line.partition(f"  {what}  ")[2].split()
            return [found, published, " ".join(state)]
    raise AssertionError((part, what, text))
