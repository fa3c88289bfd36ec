"""Checkpoints: tensors and plain values only, written whole or not at all, opened without running any code."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from icda.config import ModelConfig, build_group
from icda.data.classes import ClassSet
from icda.errors import UserError
from icda.models import SegmentationModel, build_model

FORMAT = 1
CONTENT = frozenset({"config", "classes", "step", "student", "teacher"})  # what every checkpoint holds


def build_student(
    config: ModelConfig, num_classes: int, with_dar: bool, pretrained: bool = True
) -> SegmentationModel:
    """The model that a configuration describes.

    Args:
        config: The ``model`` group.
        num_classes: Classes C.
        with_dar: Whether a term needs DAR.
        pretrained: Whether to read ``encoder.weights``; a checkpoint's model gets its weights from there.
    """
    encoder = config.encoder
    return build_model(
        encoder.name,
        num_classes,
        weights=encoder.weights if pretrained else "none",
        encoder_options={} if encoder.drop_path_rate is None else {"drop_path_rate": encoder.drop_path_rate},
        head_options=asdict(config.head),
        dar_options=asdict(config.dar),
        with_dar=with_dar,
    )


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: to a temporary name, flushed to the disk, then renamed over the old one.

    Args:
        path: Where it will be.
        content: Tensors and plain values.

    Raises:
        OSError: If it cannot be written; the file that was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint written by ``save``.

    Raises:
        UserError: If there is no such file, or it is not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; give a file such as runs/.../checkpoints/best.pt")
    expected = "expected one that scripts/train.py wrote, such as runs/.../checkpoints/best.pt"
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises what the file's bytes make it raise
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {reason}); {expected}"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{path} is not a checkpoint of icda; {expected}")
    if content["format"] != FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, this version of icda reads {FORMAT}; use its version"
        )
    if lacking := sorted(CONTENT - set(content)):
        raise UserError(f"{path} is not a whole checkpoint, it lacks {', '.join(lacking)}; {expected}")
    return content


def content_of(
    cfg: DictConfig,
    classes: ClassSet,
    student: SegmentationModel,
    teacher: SegmentationModel | None,
    step: int,
    trained_frames: dict[str, list[str]],
) -> dict[str, Any]:
    """What every checkpoint holds, for ``save``: configuration, classes, step, the weights of both models, and the
    drive frames that were trained on (``icda.data.overlap``), so that scoring can tell what it saw."""
    return {
        "config": OmegaConf.to_container(cfg, resolve=False),
        "classes": {**asdict(classes), "palette": [list(color) for color in classes.palette]},
        "step": step,
        "trained_frames": trained_frames,
        "student": student.state_dict(),
        "teacher": None if teacher is None else teacher.state_dict(),
    }


@dataclass(frozen=True)
class Trained:
    """A trained model and what it was trained as.

    Attributes:
        model: In evaluation mode.
        classes: Its label space.
        config: The composed configuration of its training, not resolved.
        step: Steps it was trained for.
        trained_frames: Drive frames that it was trained on, by the name of the data set (``icda.data.overlap``).
    """

    model: SegmentationModel
    classes: ClassSet
    config: DictConfig
    step: int
    trained_frames: dict[str, list[str]]


def load_trained(path: str | Path, device: torch.device | str = "cpu", teacher: bool = False) -> Trained:
    """The model of a checkpoint.

    Args:
        path: A checkpoint of this project.
        device: Where the model goes.
        teacher: Whether to take the mean teacher instead of the student.

    Raises:
        UserError: If the file is not such a checkpoint, or holds no teacher.
    """
    content = read(path, device)
    state: dict[str, Tensor] | None = content["teacher" if teacher else "student"]
    if state is None:
        raise UserError(f"{path} holds no mean teacher, since none was trained; use teacher=false")
    classes = dict(content["classes"])
    classes = ClassSet(
        name=classes["name"],
        names=tuple(classes["names"]),
        palette=tuple(tuple(color) for color in classes["palette"]),
        ignore_index=classes["ignore_index"],
        things=tuple(classes["things"]),
    )
    config = OmegaConf.create(content["config"])
    model_config = typed_model_config(config)
    with_dar = any(name.startswith("dar.") for name in state)
    model = build_student(model_config, len(classes), with_dar, pretrained=False)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the weights in {path} do not fit the model in its configuration: {reason}") from error
    frames = content.get("trained_frames", {})  # checkpoints of earlier versions do not say
    return Trained(model.to(device).eval(), classes, config, content["step"], frames)


def typed_model_config(config: DictConfig) -> ModelConfig:
    """The ``model`` group of a composed configuration as typed objects."""
    return build_group(ModelConfig, config.model, "model")
