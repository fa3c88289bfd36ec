"""Versions are those that the packages themselves tell."""

from __future__ import annotations

import platform

import timm

import icda
from icda.versions import versions


def test_versions():
    assert versions("timm", "no-such-package") == {
        "python": platform.python_version(),
        "icda": icda.__version__,
        "timm": timm.__version__,
        "no-such-package": "not installed",
    }
