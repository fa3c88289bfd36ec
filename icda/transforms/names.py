"""What settings may name, for those who check them without loading albumentations and PyTorch."""

from __future__ import annotations

ILLUMINATIONS = ("translated", "style", "relight", "none")
"""How the enhanced twin is lit (``build_cem``)."""
WARPS = ("homography", "tps", "affine_tps")
"""Spatial transforms of ``SpatialCEM``."""
