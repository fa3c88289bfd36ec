"""Where a run starts: from nothing, from the weights of another (``init``), or where it stopped (``resume``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from icda.data.classes import ClassSet
from icda.errors import DamagedFile, UserError
from icda.interop import read_published
from icda.models import SegmentationModel
from icda.training import checkpoint
from icda.weights.fill import misfits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The weights and, to go on with a run, its state.

    Attributes:
        resumes: Whether the run goes on with it (``resume``) or only takes its weights (``init``).
        setting: How the command line asked for it, for messages: ``init=PATH`` or ``resume=PATH``.
        path: The file that was read; its folder's parent is the run's where it is a checkpoint of icda.
        what: What the file holds, in words.
        settings: Those of a run that it fits, in words.
        student, teacher: Named as in ``SegmentationModel``; teacher is None where the file holds none.
        frozen: The encoder before its training, named as in the encoder; None where the file holds none.
        num_classes: Classes of the head.
        class_names: None where the file does not name them.
        step: Steps done; None where the file does not say.
        metrics: The last validation's, or None.
        trained_frames: Drive frames that the weights were trained on (``icda.data.overlap``).
        config: The composed configuration of the run, not resolved; None for a published file.
        training: Optimiser, prototypes, loss scaler and what else only a checkpoint of icda to go on with holds
            (``last.pt``, ``step_000200.pt``), or None.
    """

    resumes: bool
    setting: str
    path: Path
    what: str
    settings: str
    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor] | None
    frozen: Mapping[str, Tensor] | None
    num_classes: int
    class_names: tuple[str, ...] | None
    step: int | None
    metrics: dict[str, Any] | None
    trained_frames: dict[str, list[str]]
    config: Mapping[str, Any] | None
    training: dict[str, Any] | None

    def check_classes(self, classes: ClassSet) -> None:
        """Refuse a head of other classes than a run's.

        Raises:
            UserError: If number or names differ.
        """
        if self.num_classes == len(classes) and self.class_names in (None, classes.names):
            return
        what = f"the {len(classes)} classes of {classes.name}"
        raise UserError(
            f"{self.setting} has a head of {self.num_classes} classes, this run trains {what}"
            f"{', which have other names' if self.num_classes == len(classes) else ''}; for its encoder alone give "
            f"model.encoder.weights={self.path}"
        )

    def state_for(self, student: SegmentationModel, teacher: bool = False) -> dict[str, Tensor]:
        """The weights for a network of the run.

        What the file need not hold, DAR and normalisation, stays as the network has it; a DAR that the run does not
        need is left out.

        Args:
            student: The run's network.
            teacher: Whether the mean teacher's are wanted; the student's where the file holds none.
        """
        state = self.teacher if teacher and self.teacher is not None else self.student
        if teacher and self.teacher is None:
            log.warning("%s holds no mean teacher; it starts as a copy of the student", self.setting)
        has_dar = any(name.startswith("dar.") for name in state)
        if student.dar is not None and not has_dar:
            log.warning("%s has no DAR; it starts anew", self.setting)
        kept = () if has_dar else ("dar.",)
        own = {n: t for n, t in student.state_dict().items() if n in ("mean", "std") or n.startswith(kept)}
        return {**own, **{n: t for n, t in state.items() if student.dar is not None or not n.startswith("dar.")}}

    def known_step(self) -> int:
        """The step at which a run goes on.

        Raises:
            UserError: If the file holds a model without the state of a run.
        """
        own = self.class_names is not None  # a published file does not name its classes
        if own and self.training is None:
            raise UserError(
                f"{self.setting} holds a model, but not the state of a run; give checkpoints/last.pt, or "
                f"init={self.path} to start a new run from its weights"
            )
        if self.step is None:
            raise UserError(
                f"{self.setting} does not say at which step it was written; give init={self.path} to start a new run "
                "from its weights"
            )
        return self.step

    def fill(self, module: nn.Module, state: Mapping[str, Tensor], part: str) -> None:
        """Load a state into a part of the run, all of it.

        Raises:
            UserError: If entries are missing, unknown, or of another size.
        """
        if problem := misfits(state, module.state_dict(), counters=True):
            raise UserError(
                f"{self.setting} is {self.what}; its {part} is not the one of this configuration: {problem}; give "
                f"{self.settings}"
            )
        module.load_state_dict(dict(state))


def read_newest(path: str | Path) -> Start:
    """What a run offers to go on with: its last checkpoint, or where that is damaged the newest that is not.

    What was passed over is told in a warning.

    Args:
        path: A run's folder, its ``checkpoints`` folder or its ``last.pt``, which may be gone where checkpoints of
            earlier steps are left; any other file is read by ``read_start``.

    Returns:
        The start; its ``path`` is the file that was read.

    Raises:
        UserError: If there is no checkpoint, all are damaged, or the newest that is whole does not fit icda.
    """
    file = checkpoint.find(path, last=True)
    if file.name != checkpoint.LAST and not Path(path).expanduser().is_dir():
        return read_start(file, resumes=True)
    last = file.parent / checkpoint.LAST
    passed_over: list[str] = []
    for candidate in checkpoint.resumable(file.parent) or [file]:
        try:
            start = _read_start(candidate, resumes=True)
        except DamagedFile as error:
            passed_over.append(error.fault)
            continue
        if not last.exists():
            passed_over.append(f"{last} is gone")
        for fault in passed_over:
            log.warning("%s; the run goes on with %s, of step %s, instead", fault, start.path, start.step)
        return start
    raise UserError(
        f"no checkpoint in {file.parent} is whole ({'; '.join(passed_over)}); get one from a copy of the folder, or "
        "start a new run in another"
    )


def read_start(path: Path, resumes: bool) -> Start:
    """What a file offers to start from.

    Args:
        path: A checkpoint of icda or of the published ICDA.
        resumes: Whether to go on with its run.

    Raises:
        DamagedFile: If it is empty, cut short or damaged; the message names the one before it, if there is one.
        UserError: If there is no such file, or it is neither.
    """
    try:
        return _read_start(path, resumes)
    except DamagedFile as error:
        files = checkpoint.resumable(path.parent)
        others = files[files.index(path) + 1 :] if path in files else files
        if not others:
            raise
        which = "the checkpoint before it" if path in files else "another checkpoint of its run"
        raise DamagedFile(error.fault, f"give {which}, {'resume' if resumes else 'init'}={others[0]}") from error


def _read_start(path: Path, resumes: bool) -> Start:
    """See ``read_start``."""
    content = checkpoint.read_file(path)
    setting = f"{'resume' if resumes else 'init'}={path}"
    if "format" in content:
        training = content.get("training")
        classes = checkpoint.class_set(content)
        return Start(
            resumes=resumes,
            setting=setting,
            path=path,
            what=f"a {content['config']['model']['encoder']['name']} of icda",
            settings="the model=... and model.encoder.name=... that it was trained with",
            student=content["student"],
            teacher=content["teacher"],
            frozen=None if training is None else training["frozen"],
            num_classes=len(classes),
            class_names=classes.names,
            step=content["step"],
            metrics=content["metrics"],
            trained_frames=content["trained_frames"],
            config=content["config"],
            training=training,
        )
    published = read_published(content, str(path))
    variant, channels = published.variant, published.channels
    return Start(
        resumes=resumes,
        setting=setting,
        path=path,
        what=f"a published {variant} with a head of {channels} channels",
        settings=f"model=icda_daformer model.encoder.name={variant} model.head.channels={channels}",
        student=published.student,
        teacher=published.teacher,
        frozen=published.frozen_encoder,
        num_classes=published.num_classes,
        class_names=None,
        step=published.step,
        metrics=None,
        trained_frames={},
        config=None,
        training=None,
    )
