"""The types behind the configuration groups; their values and meaning stand in ``conf/``.

Every composed configuration passes through ``validate`` before anything is built, so that a wrong type or a value
out of range ends in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig

from icda.transforms.names import ILLUMINATIONS, WARPS
from icda.typed_config import Check, checked


@dataclass(frozen=True)
class EncoderConfig:
    """``model.encoder``; see ``conf/model``."""

    name: str
    weights: str
    drop_path_rate: float | None


@dataclass(frozen=True)
class HeadConfig:
    """``model.head``: arguments of ``DAFormerHead``."""

    channels: int
    dilations: list[int]
    dropout: float


@dataclass(frozen=True)
class DARConfig:
    """``model.dar``: arguments of ``DAR``. The defaults are those of checkpoints that are older than a setting."""

    heads: list[int]
    offset_kernels: list[int]
    window: int
    mlp_ratio: int
    drop_path: float
    offset_range: float
    aligned: bool = False
    position_table: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """The ``model`` group."""

    encoder: EncoderConfig
    head: HeadConfig
    dar: DARConfig


@dataclass(frozen=True)
class LossConfig:
    """The ``loss`` group: one weight per term, 0 for off, and the terms' settings."""

    source: float
    feature_distance: float
    enhanced: float
    reference: float
    pca_source: float
    pca_target: float
    mix: float
    masked: float
    mix_reverse: float
    statistics: str
    teacher_statistics: str
    feature_distance_min_share: float
    coupling_trains: str
    pca_momentum: float
    pca_tau: float
    pca_space: str
    pca_labels: str
    pca_balanced: bool
    pseudo_label_threshold: float
    pseudo_label_weight: str
    pseudo_label_with_dar: bool
    reference_probability: float
    mix_source: str
    mix_classes: str
    mix_jitter_probability: float
    mix_jitter_strength: float
    mix_blur_probability: float
    mask_block: int
    mask_share: float

    @property
    def coupling_trains_all(self) -> bool:
        """Whether L_ref and the alignment train encoder and head as well, not DAR alone."""
        return self.coupling_trains == "all"

    @property
    def needs_dar_source(self) -> bool:
        """Whether the source pair goes through DAR; the prototypes are learnt there."""
        return bool(self.reference or self.needs_pca)

    @property
    def needs_pca(self) -> bool:
        """Whether there are prototypes."""
        return bool(self.pca_source or self.pca_target)

    @property
    def needs_enhanced(self) -> bool:
        """Whether CEM has to make the enhanced twin of the source."""
        return bool(self.enhanced or self.needs_dar_source or (self.mix and self.mix_source == "enhanced"))

    @property
    def needs_teacher(self) -> bool:
        """Whether there are pseudo labels."""
        return bool(self.mix or self.masked or self.mix_reverse)

    @property
    def needs_dar(self) -> bool:
        """Whether the model has a DAR."""
        return self.needs_dar_source or (self.needs_teacher and self.pseudo_label_with_dar)

    @property
    def needs_target(self) -> bool:
        """Whether night images are read in training."""
        return bool(self.needs_teacher or self.pca_target or self.statistics == "night")

    @property
    def needs_reference(self) -> bool:
        """Whether day references are read or made in training."""
        with_teacher = self.pseudo_label_with_dar or self.reference_probability > 0
        return bool(self.pca_target or (self.needs_teacher and with_teacher))


@dataclass(frozen=True)
class ScheduleConfig:
    """The ``schedule`` group: length of the run, optimiser, batch."""

    max_steps: int
    warmup_steps: int
    batch_size: int
    accumulate: int
    lr: float
    encoder_lr_factor: float
    dar_lr_factor: float
    weight_decay: float
    clip_grad_norm: float | None
    teacher_momentum: float
    val_every: int
    save_every: int
    log_every: int


@dataclass(frozen=True)
class CemConfig:
    """The ``cem`` group: how the enhanced twin of a source image is made."""

    illumination: str
    spatial: bool
    warps: list[str]
    interpolation: str
    jitter: float
    blur_probability: float
    style_strength: list[float]


@dataclass(frozen=True)
class SamplingConfig:
    """``dataset.sampling``: crops, and which source images are drawn."""

    crop: list[int]
    max_class_share: float
    rare_classes: bool
    temperature: float
    min_pixels: int
    min_crop_pixels: int
    tries: int


@dataclass(frozen=True)
class DatasetConfig:
    """The ``dataset`` group: which data sets play which part."""

    name: str
    prepare: Any
    published: bool
    source: Any
    target: Any
    val: Any
    test: Any
    score_also: Any
    reference: str
    sampling: SamplingConfig
    pseudo_label_border: list[int]


@dataclass(frozen=True)
class TrainConfig:
    """What ``scripts/train.py`` composes."""

    dataset: DatasetConfig
    model: ModelConfig
    loss: LossConfig
    schedule: ScheduleConfig
    cem: CemConfig
    seed: int
    data_dir: str
    prepared_dir: str
    score_last: list[str]
    overlap: str
    device: str
    precision: str
    no_grad_precision: str
    memory: str
    compile: bool
    workers: int
    worker_timeout: int
    init: str | None
    resume: str | None
    keep: int
    max_skipped: int
    logger: str
    panels: int
    progress: bool


def _share(key: str) -> Check:
    return key, lambda v: 0 <= v <= 1, "from 0 to 1"


def _rate(key: str) -> Check:
    return key, lambda v: v is None or 0 <= v < 1, "from 0 to below 1"


def least(low: float, *keys: str) -> list[Check]:
    return [(key, lambda v: v >= low, f"{low} or more") for key in keys]


def _above_zero(*keys: str) -> list[Check]:
    return [(key, lambda v: v > 0, "above 0") for key in keys]


def _two(key: str, check: Callable[[int], bool], expected: str) -> Check:
    return key, lambda v: len(v) == 2 and all(map(check, v)), expected


def _one_of(key: str, *words: str) -> Check:
    return key, lambda v: v in words, f"{', '.join(words[:-1])} or {words[-1]}"


def _part(key: str) -> Check:
    return (
        key,
        lambda v: isinstance(v, DictConfig) and "_target_" in v,
        "a data set with _target_, as in conf/dataset",
    )


def _none_or_part(key: str) -> Check:
    return key, lambda v: v is None or _part("")[1](v), "null, or a data set with _target_, as in conf/dataset"


def is_size(value: Any) -> bool:
    """Whether a setting names a size at which pictures enter: ``auto``, ``original``, or height and width in pixels.

    Args:
        value: As composed; a pair is a ``ListConfig`` of two whole numbers of 1 or more.
    """
    if isinstance(value, ListConfig):
        return len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    return value in ("auto", "original")


OVERLAP: Check = ("overlap", lambda v: v in ("warn", "drop", "error"), "warn, drop or error")
SIZE: Check = ("size", is_size, "auto, original, or [height,width] in pixels")
CEM_CHECKS: tuple[Check, ...] = (
    ("cem.illumination", lambda v: v in ILLUMINATIONS, f"one of {', '.join(ILLUMINATIONS)}"),
    ("cem.warps", lambda v: set(v) <= set(WARPS) and bool(v), f"some of {', '.join(WARPS)}"),
    ("cem.interpolation", lambda v: v in ("nearest", "bilinear"), "nearest or bilinear"),
    _share("cem.jitter"),
    _share("cem.blur_probability"),
    ("cem.style_strength", lambda v: len(v) == 2 and 0 <= v[0] <= v[1] <= 1, "[least, most], each from 0 to 1"),
)
"""What ``checked`` asks of the ``cem`` group, beside types."""

# (key, check, what is expected), for what a type cannot say.
_TRAIN_CHECKS: tuple[Check, ...] = (
    ("seed", lambda v: 0 <= v < 2**63, "from 0 to 2^63 - 1"),
    *least(0, "workers", "worker_timeout", "max_skipped", "panels"),
    *least(0, "schedule.warmup_steps", "schedule.weight_decay", "schedule.encoder_lr_factor"),
    *least(0, "schedule.dar_lr_factor", "dataset.sampling.min_pixels", "dataset.sampling.min_crop_pixels"),
    *least(
        0,
        *(
            f"loss.{t}"
            for t in ("feature_distance", "enhanced", "reference", "pca_source", "pca_target", "mix", "masked")
        ),
        "loss.mix_reverse",
    ),
    *least(1, "loss.mask_block"),
    _one_of("loss.mix_source", "plain", "enhanced"),
    _one_of("loss.mix_classes", "uniform", "rare"),
    _one_of("loss.statistics", "all", "night"),
    _one_of("loss.teacher_statistics", "batch", "student"),
    _one_of("loss.pca_space", "logits", "features"),
    _one_of("loss.coupling_trains", "dar", "all"),
    _one_of("loss.pca_labels", "own", "given"),
    _one_of("loss.pseudo_label_weight", "batch", "image", "pixel", "probability"),
    _share("loss.mask_share"),
    *least(1, *(f"schedule.{k}" for k in ("max_steps", "batch_size", "val_every", "save_every", "log_every"))),
    *least(1, "schedule.accumulate", "keep"),
    ("schedule.clip_grad_norm", lambda v: v is None or v > 0, "null, or above 0"),
    _one_of("precision", "fp32", "bf16", "fp16"),
    _one_of("no_grad_precision", "auto", "bf16", "same"),
    _one_of("memory", "normal", "low"),
    _one_of("logger", "none", "tensorboard", "csv"),
    *least(1, "model.head.channels", "model.dar.window", "model.dar.mlp_ratio", "dataset.sampling.tries"),
    *_above_zero("schedule.lr", "loss.pca_tau", "model.dar.offset_range", "dataset.sampling.temperature"),
    ("loss.source", lambda v: v > 0, "above 0: the prototypes and the mix rest on a trained source branch"),
    ("loss.pca_momentum", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    ("loss.mix_jitter_strength", lambda v: 0 <= v <= 0.5, "from 0 to 0.5"),
    *(_share(f"loss.{k}") for k in ("pseudo_label_threshold", "reference_probability", "mix_jitter_probability")),
    *(_share(f"loss.{k}") for k in ("mix_blur_probability", "feature_distance_min_share")),
    _share("dataset.sampling.max_class_share"),
    *(_rate(k) for k in ("schedule.teacher_momentum", "model.head.dropout", "model.dar.drop_path")),
    _rate("model.encoder.drop_path_rate"),
    *CEM_CHECKS,
    ("dataset.reference", lambda v: v in ("pairs", "enhanced"), "pairs or enhanced"),
    _two("dataset.sampling.crop", lambda v: v >= 32, "[height, width], each 32 or more"),
    _two("dataset.pseudo_label_border", lambda v: v >= 0, "[rows at the top, rows at the bottom]"),
    _two("model.dar.heads", lambda v: v >= 1, "two numbers, each 1 or more"),
    _two("model.dar.offset_kernels", lambda v: v % 2 == 1 and v > 0, "two odd numbers"),
    ("model.head.dilations", lambda v: bool(v) and min(v) >= 1, "numbers of 1 or more"),
    (
        "dataset.source",
        _part("")[1],
        "a data set with _target_, as in conf/dataset; one without source is only for scoring (scripts/eval.py)",
    ),
    _part("dataset.val"),
    _none_or_part("dataset.target"),
    _none_or_part("dataset.test"),
    (
        "dataset.score_also",
        lambda v: isinstance(v, DictConfig) and all(_part("")[1](node) for node in v.values()),
        "data sets with _target_ by name, as in conf/dataset/darkzurich.yaml, or {}",
    ),
    OVERLAP,
)


def validate(cfg: DictConfig) -> TrainConfig:
    """The composed configuration of a run as typed objects.

    Args:
        cfg: What Hydra composed from ``conf/train.yaml``.

    Raises:
        UserError: If a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    return checked(TrainConfig, cfg, _TRAIN_CHECKS)
