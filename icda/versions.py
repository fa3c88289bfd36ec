"""Versions of what is installed, for files that outlive it."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata

import icda


def versions(*libraries: str) -> dict[str, str]:
    """Versions of Python, icda and libraries, by name; ``not installed`` of those that are not."""
    return {"python": platform.python_version(), "icda": icda.__version__, **dict(_each(libraries))}


def _each(libraries: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in libraries:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"
