"""Transforms of the method, usable in any albumentations pipeline."""

import os

# Without this, importing albumentations asks a server for its newest version, for seconds where there is no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from icda.transforms.cem import ILLUMINATIONS, build_cem
from icda.transforms.illumination import StyleIllumination, TranslatedIllumination
from icda.transforms.lift import LiftIllumination
from icda.transforms.normalize import NormalizeInside
from icda.transforms.relight import RelightIllumination
from icda.transforms.seeding import reseed
from icda.transforms.spatial import WARPS, SpatialCEM

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
