"""Checkpoints: tensors and plain values only, written whole or not at all, opened without running any code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from icda.config import ModelConfig
from icda.data.classes import CITYSCAPES, ClassSet
from icda.errors import DamagedFile, UserError
from icda.interop import is_published, read_published
from icda.models import SegmentationModel, build_model
from icda.training.durable import write_whole
from icda.typed_config import build_group
from icda.versions import versions
from icda.weights.files import read_weights
from icda.weights.fill import misfits
from icda.weights.foreign import plain

FORMAT = 3  # 1: without metrics and versions; 1 and 2: without the loss scaler and the count of skipped steps
CONTENT = frozenset({"config", "classes", "step", "student", "teacher"})  # what a checkpoint of any format holds
TRAINING = frozenset({"frozen", "pca", "optimizer", "best_miou", "seconds"})
"""What stands below "training" in last.pt of any format; format 3 adds "scaler" and "skipped"."""
LAST, BEST = "last.pt", "best.pt"
LIBRARIES = ("torch", "torchvision", "timm", "numpy")

_EXPECTED = "expected one that scripts/train.py wrote, such as runs/.../checkpoints/best.pt"
_STEP_NAME = re.compile(r"step_(\d+)\.pt")
_PUBLISHED_SIZE = (540, 960)  # at which the published code enters night images (method section 9)


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


def save(path: Path, content: dict[str, Any], before_rename: Callable[[], None] = lambda: None) -> None:
    """Write a checkpoint: to a temporary name, flushed to the disk, then renamed over the old one.

    Args:
        path: Where it will be.
        content: Tensors and plain values.
        before_rename: See ``icda.training.durable.write_whole``.

    Raises:
        OSError: If it cannot be written, such as to a full disk, with the system's ``errno`` and with ``path`` as
            ``filename``; the file that was there before is untouched.
    """

    def write(file: IO[bytes]) -> None:
        sink = _Sink(file)
        torch.save({"format": FORMAT, **content}, sink)
        if sink.error is not None:
            raise sink.error

    write_whole(path, write, before_rename)


class _Sink:
    """A file for ``torch.save`` whose errors are kept for later.

    The zip writer of torch makes a RuntimeError without an errno of an exception in ``write``, and writes on while
    it is being destroyed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                return self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing: ``write_whole`` flushes the file itself."""


def step_name(step: int) -> str:
    """The name of the checkpoint of a step that is no longer the last: ``step_000200.pt``."""
    return f"step_{step:06d}.pt"


def step_files(folder: Path) -> dict[int, Path]:
    """The checkpoints of earlier steps in a folder, by step, the newest first; empty where there is no folder."""
    found = {int(m[1]): path for path in folder.glob("step_*.pt") if (m := _STEP_NAME.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def resumable(folder: Path) -> list[Path]:
    """The checkpoints of a ``checkpoints`` folder with which a run can go on, the newest first."""
    last = folder / LAST
    return [*([last] if last.is_file() else []), *step_files(folder).values()]


def find(path: str | Path, last: bool = False) -> Path:
    """The file that a setting such as ``ckpt`` means: a checkpoint itself, or the best or else the last of a run.

    Args:
        path: A file, a run's folder, or its ``checkpoints`` folder.
        last: Whether a run's last is wanted and no other, as for going on with it.

    Returns:
        The file; where a run's ``last.pt`` is gone, that of the latest earlier step (``step_000200.pt``).

    Raises:
        UserError: If a folder holds no checkpoint, or several runs.
    """
    if not str(path):
        raise UserError(f"the path of a checkpoint is empty; {_EXPECTED}")
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    names = (LAST,) if last else (BEST, LAST)
    folders = (path / "checkpoints", path)
    for candidate in (folder / name for name in names for folder in folders):
        if candidate.is_file():
            return candidate
    for folder in folders:
        if earlier := resumable(folder):
            return earlier[0]
    found = [
        p for name in names for p in (*path.glob(f"*/checkpoints/{name}"), *path.glob(f"*/*/checkpoints/{name}"))
    ]
    if found:
        newest = max(found, key=lambda file: file.stat().st_mtime).parents[1]
        raise UserError(f"{path} is no run, but holds runs; give one of them, such as the newest, {newest}")
    looked_for = " and ".join(f"checkpoints/{name}" for name in names)
    raise UserError(f"{path} is a folder without {looked_for}; give a run's folder, or the path of a checkpoint")


def read_file(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of icda, of any format (see ``upgraded``), or of the published ICDA, as it is.

    Args:
        path: See ``find``.

    Raises:
        DamagedFile: If it is empty, cut short or damaged.
        UserError: If there is no such file, or it is neither.
    """
    path = find(path)
    content = read_weights(path)
    if "format" in content:
        return upgraded(content, path)
    if is_published(content):
        return content
    names = ", ".join(plain(name, 80) for name in list(content)[:3])
    what = f"its entries are {names}" if content else "it is empty"
    raise UserError(
        f"{path} is neither a checkpoint of icda nor one of the published ICDA ({what}); {_EXPECTED}; weights of an "
        "encoder alone are for training, as model.encoder.weights=PATH"
    )


def upgraded(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a checkpoint of an earlier format in today's.

    Raises:
        UserError: If the format is a later one, or something is missing or of another kind than it should be.
    """
    number = content["format"]
    if type(number) is not int or number < 1:
        raise UserError(f"{path} is not a checkpoint of icda: its format is no number from 1; {_EXPECTED}")
    if number > FORMAT:
        raise UserError(
            f"{path} has format {number}, this version of icda reads 1 to {FORMAT}; open it with the version of icda "
            "that wrote it, or a later one"
        )
    if lacking := sorted(CONTENT - set(content)):
        raise UserError(f"{path} is not a whole checkpoint, it lacks {', '.join(lacking)}; {_EXPECTED}")
    content = {"metrics": None, "versions": {}, "trained_frames": {}, **content, "format": FORMAT}
    for name, holds in _KINDS.items():
        if not holds(content[name]):
            raise UserError(f"{path} is not a whole checkpoint, its {name} is not as icda writes it; {_EXPECTED}")
    if "training" in content:
        training = content["training"]
        if not (isinstance(training, Mapping) and set(training) >= TRAINING):
            raise UserError(f"{path} is not a whole checkpoint, its state of the run lacks something; {_EXPECTED}")
        training = content["training"] = {"scaler": None, "skipped": 0, **training}
        for name, holds in _TRAINING_KINDS.items():
            if not holds(training[name]):
                what = f"the {name} of its run is not as icda writes it"
                raise UserError(f"{path} is not a whole checkpoint, {what}; {_EXPECTED}")
    for part in ("student", "teacher"):
        broken = [n for n, t in (content[part] or {}).items() if not torch.isfinite(t).all()]
        if broken:
            raise DamagedFile(
                f"{path}: {len(broken)} of the {part}'s weights hold NaN or infinity, the first is "
                f"{plain(broken[0], 80)}",
                "its training went wrong, give an earlier checkpoint",
            )
    return content


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in value.items())


def _is_state_or_none(value: object) -> bool:
    return value is None or _is_state(value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -math.inf < value < math.inf


def _is_optimizer_state(value: object) -> bool:
    if not (isinstance(value, Mapping) and isinstance(value.get("state"), Mapping)):
        return False
    groups = value.get("param_groups")
    return isinstance(groups, list) and all(isinstance(group, Mapping) for group in groups)


def _is_config(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(group), Mapping) for group in ("model", "dataset"))


def _is_class_set(value: object) -> bool:
    try:
        return isinstance(value, Mapping) and class_set({"classes": value}) is not None
    except (KeyError, TypeError, ValueError, AssertionError):
        return False


_KINDS: dict[str, Callable[[Any], bool]] = {
    "config": _is_config,
    "classes": _is_class_set,
    "step": _is_count,
    "student": _is_state,
    "teacher": _is_state_or_none,
    "metrics": lambda value: value is None or isinstance(value, Mapping),
    "trained_frames": lambda value: isinstance(value, Mapping),
}
"""What the entries of a checkpoint must be."""

_TRAINING_KINDS: dict[str, Callable[[Any], bool]] = {
    "frozen": _is_state_or_none,
    "pca": _is_state_or_none,
    "optimizer": _is_optimizer_state,
    "scaler": lambda value: value is None or isinstance(value, Mapping),
    "skipped": _is_count,
    "best_miou": _is_number,
    "seconds": _is_number,
}
"""What the entries below "training" must be."""


def content_of(
    cfg: DictConfig,
    classes: ClassSet,
    student: SegmentationModel,
    teacher: SegmentationModel | None,
    step: int,
    trained_frames: dict[str, list[str]],
    metrics: dict[str, Any] | None,
) -> dict[str, Any]:
    """What every checkpoint holds, for ``save``.

    Args:
        cfg: The composed configuration.
        classes: The label space.
        student: Its buffers ``mean`` and ``std`` are the normalisation that its images need.
        teacher: The mean teacher, or None.
        step: Training steps done.
        trained_frames: The drive frames that were trained on (``icda.data.overlap``), so that scoring can tell what
            the model saw.
        metrics: The last validation's step, scores and set; None before the first.
    """
    return {
        "config": OmegaConf.to_container(cfg, resolve=False),
        "classes": {**asdict(classes), "palette": [list(color) for color in classes.palette]},
        "step": step,
        "metrics": metrics,
        "versions": versions(*LIBRARIES),
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
        config: The composed configuration of its training, not resolved; of a published model, what is known of it.
        step: Steps it was trained for; None where the file does not say.
        trained_frames: Drive frames that it was trained on, by the name of the data set (``icda.data.overlap``).
    """

    model: SegmentationModel
    classes: ClassSet
    config: DictConfig
    step: int | None
    trained_frames: dict[str, list[str]]


def load_trained(path: str | Path, device: torch.device | str = "cpu", teacher: bool = False) -> Trained:
    """The model of a checkpoint of icda or of the published ICDA.

    Args:
        path: A checkpoint file, or a run's folder, of which the best checkpoint is taken.
        device: Where the model goes.
        teacher: Whether to take the mean teacher instead of the student.

    Raises:
        UserError: If the file is not such a checkpoint, or holds no teacher.
    """
    path = find(path)
    content = read_file(path)
    if "format" not in content:
        return _load_published(content, path, device, teacher)
    state: dict[str, Tensor] | None = content["teacher" if teacher else "student"]
    if state is None:
        raise UserError(f"{path} holds no mean teacher, since none was trained; use teacher=false")
    classes = class_set(content)
    config = OmegaConf.create(content["config"])
    with_dar = any(name.startswith("dar.") for name in state)
    try:
        model = build_student(typed_model_config(config), len(classes), with_dar, pretrained=False)
    except RuntimeError as error:  # a size that no memory holds
        raise UserError(f"the model in the configuration of {path} cannot be built: {plain(error, 200)}") from error
    if problem := misfits(state, model.state_dict(), counters=True):
        raise UserError(f"the weights in {path} do not fit the model in its configuration: {problem}")
    model.load_state_dict(state)
    return Trained(model.to(device).eval(), classes, config, content["step"], content["trained_frames"])


def _load_published(content: dict[str, Any], path: Path, device: torch.device | str, teacher: bool) -> Trained:
    """A published checkpoint, whose configuration and classes are those that it was published with."""
    published = read_published(content, str(path))
    if published.num_classes != len(CITYSCAPES):
        raise UserError(
            f"{path} has a head of {published.num_classes} classes, expected the {len(CITYSCAPES)} of "
            f"{CITYSCAPES.name} that the published ICDA has; such a file does not name its classes: start a training "
            "from it with init=PATH, or read it with icda.interop.load_published"
        )
    model = published.model(teacher)
    config = OmegaConf.create({"data_dir": "data", "dataset": {"name": None, "val": {"size": list(_PUBLISHED_SIZE)}}})
    return Trained(model.to(device).eval(), CITYSCAPES, config, published.step, {})


def class_set(content: Mapping[str, Any]) -> ClassSet:
    """The label space of a checkpoint of icda."""
    classes = dict(content["classes"])
    return ClassSet(
        name=classes["name"],
        names=tuple(classes["names"]),
        palette=tuple(tuple(color) for color in classes["palette"]),
        ignore_index=classes["ignore_index"],
        things=tuple(classes["things"]),
    )


def typed_model_config(config: DictConfig) -> ModelConfig:
    """The ``model`` group of a composed configuration as typed objects."""
    return build_group(ModelConfig, config.model, "model")
