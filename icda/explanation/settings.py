"""Settings of ``conf/explain.yaml`` and ``conf/show_cem.yaml`` as typed objects, checked without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from icda.config import CEM_CHECKS, SIZE, CemConfig
from icda.errors import UserError
from icda.typed_config import Check, checked

ENHANCED = "enhanced"
"""The setting ``day`` for a day picture that is made from the night picture."""
_LARGEST_SEED = 2**31


@dataclass(frozen=True)
class ExplainConfig:
    """What ``scripts/explain.py`` composes."""

    ckpt: str
    night: str
    day: str
    points: list[list[int]] | None
    count: int
    size: Any
    threshold: float | None
    teacher: bool
    opacity: float
    tile: int
    device: str


@dataclass(frozen=True)
class ShowCemConfig:
    """What ``scripts/show_cem.py`` composes, but for the ``dataset`` group."""

    cem: CemConfig
    data_dir: str
    prepared_dir: str
    count: int
    seed: int
    opacity: float
    tile: int


_OPACITY: Check = ("opacity", lambda v: 0 <= v <= 1, "from 0 to 1")
_EXPLAIN_CHECKS: tuple[Check, ...] = (
    ("count", lambda v: 1 <= v <= 20, "from 1 to 20"),
    SIZE,
    ("threshold", lambda v: v is None or 0 <= v <= 1, "from 0 to 1, or null"),
    ("tile", lambda v: 160 <= v <= 2000, "from 160 to 2000"),
    _OPACITY,
)
_SHOW_CEM_CHECKS: tuple[Check, ...] = (
    ("count", lambda v: 1 <= v <= 100, "from 1 to 100"),
    ("seed", lambda v: 0 <= v < _LARGEST_SEED, "from 0 to below 2^31"),
    ("tile", lambda v: 160 <= v <= 2000, "from 160 to 2000"),
    _OPACITY,
    *CEM_CHECKS,
)


def validate_explain(cfg: DictConfig) -> ExplainConfig:
    """The composed configuration of an explanation as a typed object.

    Args:
        cfg: What Hydra composed from ``conf/explain.yaml``.

    Raises:
        UserError: If a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    examples = {"ckpt": "runs/.../checkpoints/last.pt", "night": "night.png", "day": f"day.png, or day={ENHANCED}"}
    for key, example in examples.items():
        if OmegaConf.is_missing(cfg, key) or cfg.get(key) in (None, ""):
            raise UserError(f"{key} is missing; give it as {key}={example}")
    return checked(ExplainConfig, cfg, _EXPLAIN_CHECKS)


def validate_show_cem(cfg: DictConfig) -> ShowCemConfig:
    """The composed configuration of a contact sheet of CEM as a typed object; its ``dataset`` group is left aside.

    Args:
        cfg: What Hydra composed from ``conf/show_cem.yaml``.

    Raises:
        UserError: If a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    if cfg.get("dataset") is None:
        raise UserError("dataset is missing; give it as dataset=demo, or another of conf/dataset")
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "dataset"])
    return checked(ShowCemConfig, own, _SHOW_CEM_CHECKS)
