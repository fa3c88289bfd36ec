"""Settings of ``conf/predict.yaml`` as typed objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from icda.config import SIZE
from icda.errors import UserError
from icda.inference import Views
from icda.prediction.film import FILMS
from icda.prediction.inputs import PARTS
from icda.prediction.submission import LAYOUTS
from icda.training.precision import DTYPES
from icda.typed_config import Check, checked


@dataclass(frozen=True)
class PredictConfig:
    """What ``scripts/predict.py`` composes; ``dataset`` is None for the one of the checkpoint."""

    ckpt: str
    input: str
    data_dir: str | None
    size: Any
    on_error: str
    labels: Any
    overlays: bool
    video: str
    opacity: float
    colors: bool
    confidence: bool
    submission: bool
    submission_layout: str
    invalid_threshold: float
    window: list[int] | None
    stride: list[int] | None
    flip: bool
    scales: list[float]
    temperature: float
    teacher: bool
    device: str
    precision: str
    workers: int
    progress: bool


PRECISION: Check = ("precision", lambda v: v in DTYPES, f"one of {', '.join(DTYPES)}")

_CHECKS: tuple[Check, ...] = (
    SIZE,
    ("on_error", lambda v: v in ("stop", "skip"), "stop or skip"),
    ("labels", lambda v: v == "auto" or isinstance(v, bool), "auto, true or false"),
    ("video", lambda v: v in FILMS, " or ".join(FILMS)),
    ("opacity", lambda v: 0 <= v <= 1, "from 0 to 1"),
    ("submission_layout", lambda v: v in LAYOUTS, " or ".join(LAYOUTS)),
    ("invalid_threshold", lambda v: 0 <= v <= 1, "from 0 to 1"),
    PRECISION,
    ("workers", lambda v: v >= 0, "0 or more"),
)


def validate_predict(cfg: DictConfig) -> PredictConfig:
    """The composed configuration of a prediction as typed objects; its ``dataset`` group is left aside.

    Args:
        cfg: What Hydra composed from ``conf/predict.yaml``.

    Raises:
        UserError: If a key is unknown or missing, a value has the wrong type or is out of range, or two do not go
            together.
    """
    for key, example in (("ckpt", "runs/.../checkpoints/best.pt"), ("input", "photo.jpg, or input=test")):
        if OmegaConf.is_missing(cfg, key):
            raise UserError(f"{key} is missing; give it as {key}={example}")
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "dataset"])
    config = checked(PredictConfig, own, _CHECKS)
    Views.of(config.window, config.stride, config.flip, config.scales, config.temperature)
    if config.submission and config.input != "test":
        raise UserError(f"submission=true, but input={config.input}; a server scores a test split: give input=test")
    if cfg.get("dataset") is not None and config.input not in PARTS:
        raise UserError(f"a data set is given, but input={config.input} is a path; leave out dataset=...")
    if config.data_dir is not None and config.input not in PARTS:
        raise UserError(f"data_dir is given, but input={config.input} is a path; leave out data_dir=...")
    for name, idle in (("submission_layout", LAYOUTS[0]), ("invalid_threshold", 0.0)):
        if not config.submission and getattr(config, name) != idle:
            raise UserError(f"{name} is given, but no submission is made; give submission=true, or leave it out")
    return config
