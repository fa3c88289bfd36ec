"""Settings of ``conf/export.yaml`` as typed objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from icda.errors import UserError
from icda.export.formats import FORMATS
from icda.export.weights import LAYOUTS
from icda.typed_config import Check, checked

WEIGHTS = "weights"
"""The format that is no graph: weights in another layout."""
LEAST_CHECKED = 64  # pixels: what every format takes


@dataclass(frozen=True)
class ExportConfig:
    """What ``scripts/export.py`` composes."""

    ckpt: str
    format: str
    layout: str | None
    output: str | None
    overwrite: bool
    teacher: bool
    normalize: bool
    argmax: bool
    check_sizes: Any
    min_agreement: float
    timing_runs: int


def _are_sizes(value: Any) -> bool:
    return isinstance(value, ListConfig) and len(value) > 0 and all(map(_is_size, value))


def _is_size(value: Any) -> bool:
    is_pair = isinstance(value, ListConfig) and len(value) == 2
    return is_pair and all(type(v) is int and v >= LEAST_CHECKED for v in value)


_CHECKS: tuple[Check, ...] = (
    ("format", lambda v: v in (*FORMATS, WEIGHTS), f"one of {', '.join((*FORMATS, WEIGHTS))}"),
    ("layout", lambda v: v is None or v in LAYOUTS, f"one of {', '.join(LAYOUTS)}"),
    (
        "check_sizes",
        _are_sizes,
        f"[height,width] of one picture or more, each {LEAST_CHECKED} pixels or more: [[540,960]]",
    ),
    ("min_agreement", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    ("timing_runs", lambda v: v >= 1, "1 or more"),
)


def validate_export(cfg: DictConfig) -> ExportConfig:
    """The composed configuration of an export as typed objects.

    Args:
        cfg: What Hydra composed from ``conf/export.yaml``.

    Raises:
        UserError: If a key is unknown or missing, a value has the wrong type or is out of range, or two do not go
            together.
    """
    if OmegaConf.is_missing(cfg, "ckpt"):
        raise UserError("ckpt is missing; give it as ckpt=runs/.../checkpoints/best.pt")
    config = checked(ExportConfig, cfg, _CHECKS)
    if config.format == WEIGHTS:
        if config.layout is None:
            raise UserError(f"format=weights needs a layout; give one of layout={', '.join(LAYOUTS)}")
        for name in ("normalize", "argmax"):
            if not getattr(config, name):
                raise UserError(f"{name}=false is given, but weights are not run; leave it out, or give format=onnx")
    elif config.layout is not None:
        raise UserError(f"layout={config.layout} is given, but format={config.format}; give format=weights")
    return config
