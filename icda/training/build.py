"""What a run is made of, from its configuration and from where it starts."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer

from icda.config import ScheduleConfig, TrainConfig
from icda.data.classes import ClassSet
from icda.data.setup import OpenDatasets
from icda.distributed import world_size
from icda.errors import UserError
from icda.training import checkpoint
from icda.training.checkpoint_folder import CheckpointFolder
from icda.training.start import Start, read_newest, read_start
from icda.training.step import TrainStep
from icda.training.sync_batch_norm import synchronise

log = logging.getLogger(__name__)

AUTO = "auto"  # of resume: the checkpoint in the run's own folder, if there is one


def find_start(config: TrainConfig, checkpoints: Path) -> Start | None:
    """What ``init`` or ``resume`` names; None for a run from its configuration's own weights.

    Args:
        config: The run's.
        checkpoints: Folder of the run's own checkpoints, for ``resume=auto``.

    Raises:
        UserError: If it cannot be read, or holds no state of a run where that is needed.
    """
    if config.resume == AUTO:
        if checkpoint.resumable(checkpoints):
            return read_newest(checkpoints)
        if (checkpoints.parent / "summary.json").exists():
            raise UserError(
                f"{checkpoints.parent} holds a finished run, but no {checkpoints / checkpoint.LAST} to go on with; "
                "give another folder with hydra.run.dir=, or remove its summary.json to train it anew"
            )
        if (checkpoints / checkpoint.BEST).exists():
            log.warning(
                "%s holds no %s: the run starts at step 0, and its files are replaced", checkpoints, checkpoint.LAST
            )
        log.info("resume=auto: there is no checkpoint in %s yet, so the run starts at step 0", checkpoints)
    elif config.resume is not None:
        path = Path(config.resume).expanduser()
        if not path.exists():
            raise UserError(
                f"resume={config.resume}: there is no such file or folder; give a run's folder, its "
                "checkpoints/last.pt, or auto"
            )
        whole_run = path.is_dir() or path.name == checkpoint.LAST
        return read_newest(path) if whole_run else read_start(checkpoint.find(path, last=True), resumes=True)
    if config.init is not None:
        return read_start(checkpoint.find(config.init), resumes=False)
    return None


def build_method(
    config: TrainConfig,
    classes: ClassSet,
    start: Start | None,
    device: torch.device,
    no_grad_dtype: torch.dtype | None = None,
) -> TrainStep:
    """The method with the weights that it starts from; what ``restore`` adds to them comes later.

    Args:
        config: The run's.
        classes: The label space.
        start: See ``find_start``.
        device: Where it goes.
        no_grad_dtype: See ``TrainStep``.

    Raises:
        UserError: If weights are missing or do not fit.
    """
    loss, weights = config.loss, config.model.encoder.weights
    frozen_given = start is not None and start.frozen is not None
    goes_on = start is not None and start.resumes and start.training is not None  # with all that it had
    reads_encoder = start is None or not (goes_on or frozen_given or not loss.feature_distance)
    student = checkpoint.build_student(config.model, len(classes), loss.needs_dar, reads_encoder)
    if weights == "none" and start is None:
        log.warning(
            "the encoder %s starts from random weights; for pretrained ones: model=icda_lite, or "
            "model.encoder.weights=timm or PATH",
            config.model.encoder.name,
        )
    elif not reads_encoder and not goes_on and weights != "none":
        log.info("model.encoder.weights=%s is not read: %s has all that is needed", weights, start.setting)
    top, bottom = config.dataset.pseudo_label_border
    method = TrainStep(
        synchronise(student, device),
        classes,
        loss,
        teacher_momentum=config.schedule.teacher_momentum,
        border=(top, bottom),
        pretrained=frozen_given or (weights != "none" and not goes_on),
        low_memory=config.memory == "low",
        no_grad_dtype=no_grad_dtype,
    )
    if start is not None:
        _fill(method, start, goes_on)
    return method.to(device)


def _fill(method: TrainStep, start: Start, goes_on: bool) -> None:
    """The networks' weights out of a checkpoint."""
    student = method.student
    start.fill(student, start.state_for(student), "network")
    if method.teacher is not None:
        state = start.state_for(student, teacher=start.resumes)
        start.fill(method.teacher.model, state, "mean teacher")
    if method.frozen is not None and start.frozen is not None:
        start.fill(method.frozen, start.frozen, "frozen encoder")
    if method.frozen is None and method.loss.feature_distance and not goes_on:
        log.warning(
            "%s holds no encoder from before its training and model.encoder.weights is none: the feature distance "
            "is off",
            start.setting,
        )


def restore(start: Start, method: TrainStep, optimizer: Optimizer, scaler: GradScaler) -> None:
    """Bring prototypes, optimiser and loss scale to where a ``last`` checkpoint left them.

    Args:
        start: With ``training``.
        method: Its networks have their weights already.
        optimizer: Keeps its own learning rates and weight decays, which are the configuration's.
        scaler: Of fp16, or a disabled one.

    Raises:
        UserError: If the checkpoint is of a run with other parts.
    """
    training = start.training
    parts = (
        (method.teacher, start.teacher),
        (method.frozen, training["frozen"]),
        (method.pca, training["pca"]),
    )
    try:
        if any((part is None) != (state is None) for part, state in parts):
            raise ValueError("it was trained with another loss")
        if method.pca is not None:
            method.pca.load_state_dict(training["pca"])
        settings = [(group["base_lr"], group["weight_decay"]) for group in optimizer.param_groups]
        optimizer.load_state_dict(training["optimizer"])
        _lay_out(optimizer)
        for group, (base_lr, decay) in zip(optimizer.param_groups, settings, strict=True):
            group.update(base_lr=base_lr, weight_decay=decay)
        if training["scaler"] and scaler.is_enabled():
            scaler.load_state_dict(training["scaler"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{start.setting} does not fit this configuration: {reason}; give the run's own") from error


def _lay_out(optimizer: Optimizer) -> None:
    """Bring averages into the memory layout of their parameters, which the fused AdamW of a CPU takes for granted.

    A file may be of a version, or of weights, that had another one.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def open_checkpoints(folder: Path, keep: int, start: Start | None, step: int) -> CheckpointFolder:
    """The folder of a run's checkpoints, which knows those that are the run's own.

    Args:
        folder: The run's folder.
        keep: Checkpoints that stay.
        start: Where the run starts.
        step: Steps done.
    """
    checkpoints, own = folder / "checkpoints", None
    if start is not None and start.resumes and start.path.resolve().parent == checkpoints.resolve():
        own = step
    is_last = own is not None and start.path.name == checkpoint.LAST
    return CheckpointFolder(checkpoints, keep, last_step=own if is_last else None, start_step=own)


def warn_of_another_batch(start: Start, schedule: ScheduleConfig) -> None:
    """Say if a run that goes on sees more or fewer pairs a step than before, as with another number of processes."""
    before = {"batch_size": schedule.batch_size, **start.config.get("schedule", {})}
    then = before["batch_size"] * before.get("accumulate", 1) * start.training.get("world_size", 1)
    now = schedule.batch_size * schedule.accumulate * world_size()
    if then != now:
        log.warning(
            "a step now sees %d pairs a domain in place of %d: the samples do not follow on where they ended, and "
            "the learning rate is as it was",
            now,
            then,
        )


def announce(
    config: TrainConfig, datasets: OpenDatasets, method: TrainStep, device: torch.device, step: int, folder: Path
) -> None:
    """Log what is about to be trained, on what, and where."""
    source, target, val = datasets.source, datasets.target, datasets.val
    log.info(
        "%s: %d labelled images%s; scored on %s: %d images",
        source.name,
        len(source),
        f" -> {target.name}: {len(target)} unlabelled images" if target is not None else "",
        val.name,
        len(val),
    )
    for part in (*datasets.trained, val):
        for remark in part.remarks:
            log.info("%s: %s", part.name, remark)
    if config.loss.needs_reference and (pairing := getattr(target, "pairing", "")):
        log.info("%s: day references from %s", target.name, pairing)
    schedule, world = config.schedule, world_size()
    log.info(
        "%s, %.1f M parameters, %s on %s%s; step %d of %d, each of %d pairs a domain; run folder %s",
        config.model.encoder.name,
        sum(p.numel() for p in method.student.parameters()) / 1e6,
        config.precision,
        device,
        f", {world} processes" if world > 1 else "",
        step,
        schedule.max_steps,
        schedule.batch_size * schedule.accumulate * world,
        folder,
    )
