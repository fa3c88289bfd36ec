"""Transforms of the method, usable in any albumentations pipeline.

Each is imported when it is first asked for, since albumentations takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from icda.transforms.names import ILLUMINATIONS, WARPS

if TYPE_CHECKING:
    from icda.transforms.cem import build_cem
    from icda.transforms.illumination import StyleIllumination, TranslatedIllumination
    from icda.transforms.lift import LiftIllumination
    from icda.transforms.normalize import NormalizeInside
    from icda.transforms.relight import RelightIllumination
    from icda.transforms.seeding import reseed
    from icda.transforms.spatial import SpatialCEM

__all__ = [
    "ILLUMINATIONS",
    "WARPS",
    "LiftIllumination",
    "NormalizeInside",
    "RelightIllumination",
    "SpatialCEM",
    "StyleIllumination",
    "TranslatedIllumination",
    "build_cem",
    "reseed",
]

_MODULES = {
    "LiftIllumination": "lift",
    "NormalizeInside": "normalize",
    "RelightIllumination": "relight",
    "SpatialCEM": "spatial",
    "StyleIllumination": "illumination",
    "TranslatedIllumination": "illumination",
    "build_cem": "cem",
    "reseed": "seeding",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
