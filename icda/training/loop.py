"""The training run, from a composed configuration to checkpoints, figures and pictures."""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from icda import distributed
from icda.config import TrainConfig, validate
from icda.data.loader import batches, training_order
from icda.data.overlap import merged_frames
from icda.data.setup import OpenDatasets, open_datasets, training_stream
from icda.device import pick_device
from icda.errors import UserError
from icda.evaluation import evaluate
from icda.report import percent, scores
from icda.training import checkpoint
from icda.training.build import AUTO, announce, build_method, find_start, restore
from icda.training.checkpoint_folder import CheckpointFolder
from icda.training.compilation import compile_parts, uncompiled
from icda.training.diagnostics import memory_scalars, prototype_distances
from icda.training.engine import Engine
from icda.training.guard import Guard
from icda.training.loggers import open_logger
from icda.training.optimizer import build_optimizer
from icda.training.panels import Panels
from icda.training.precision import Precision
from icda.training.record import Record, failed
from icda.training.results import Results, finished
from icda.training.same_run import check_same_run
from icda.training.signals import Stopped, StopRequest, stop_request
from icda.training.start import Start

log = logging.getLogger(__name__)

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def train(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Train as configured and write everything into ``folder``.

    One process of several (``torchrun``) trains together with the others; the first one alone writes.

    Args:
        cfg: Composed from ``conf/train.yaml``.
        folder: The run's folder; gets ``checkpoints/``, ``metrics.jsonl``, ``summary.json``, ``record.json``,
            ``panels/`` and what the logger writes.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: If the configuration, the data or the weights are not usable, or a loss is not finite.
        Stopped: After SIGTERM or SIGINT, with the state saved.
    """
    config = validate(cfg)
    device = pick_device(config.device, several=distributed.launched())
    with logging_redirect_tqdm(), stop_request() as stop, distributed.process_group(device), _one_voice():
        folder = Path(distributed.from_main(str(folder)))
        summary = finished(folder, cfg, config.schedule.max_steps) if config.resume == AUTO else None
        if summary is not None:
            log.info("%s is finished: %d steps, mIoU %s", folder, summary["steps"], percent(summary["last_miou"]))
            return summary
        return Run(cfg, folder, device, stop).train()


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Let the main process alone log; of the others errors are heard."""
    logger = logging.getLogger("icda")
    level = logger.level
    if not distributed.is_main():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Run:
    """One training run: what it is made of, and its loop.

    Args:
        cfg: Composed from ``conf/train.yaml``.
        folder: The run's folder.
        device: Where it trains; by default what the configuration says.
        stop: Tells when to stop; by default never.

    Raises:
        UserError: See ``train``.
    """

    def __init__(
        self, cfg: DictConfig, folder: Path, device: torch.device | None = None, stop: StopRequest | None = None
    ) -> None:
        self.cfg = cfg
        self.config: TrainConfig = validate(cfg)
        self.folder = folder
        self.device = pick_device(self.config.device) if device is None else device
        self.stop = StopRequest() if stop is None else stop
        self.precision = Precision(self.config.precision, self.device)
        with distributed.main_first():  # it may make the demo data
            self.datasets: OpenDatasets = open_datasets(self.config)
        self.classes = self.datasets.source.classes
        torch.manual_seed(self.config.seed)
        start = find_start(self.config, folder / "checkpoints")
        if start is not None:
            start.check_classes(self.classes)
        self.step = start.known_step() if start is not None and start.resumes else 0
        self.method = build_method(self.config, self.classes, start, self.device)
        schedule, student = self.config.schedule, self.method.student
        self.optimizer = build_optimizer(
            student, schedule.lr, schedule.encoder_lr_factor, schedule.dar_lr_factor, schedule.weight_decay
        )
        self.stream = training_stream(
            self.config, self.datasets, student.mean.tolist(), student.std.tolist(), distributed.world_size()
        )
        self.best_miou = -1.0
        self.metrics: dict[str, Any] | None = None  # the last validation's
        self.checkpoints = self._checkpoint_folder(start)
        self.guard = Guard(folder, self.config.max_skipped)
        self.results = Results(folder, self.datasets.val.name)
        self.record = Record(folder / "record.json")
        self.saved: int | None = None  # step of last.pt
        self.seconds = 0.0  # of the run so far, earlier parts of a resumed run included
        self.earlier: Path | None = None  # folder of the run that this one goes on with
        self.start = start
        frames = {} if start is None else start.trained_frames
        self.trained_frames = merged_frames(self.datasets.trained_frames, frames)
        if start is not None and start.resumes:
            self._resume(start)
        if self.config.compile:
            compile_parts(self.method)
        self.engine = Engine(
            self.method, self.optimizer, self.precision, self.guard, schedule, self.config.seed, self.device
        )

    def _checkpoint_folder(self, start: Start | None) -> CheckpointFolder:
        folder, step = self.folder / "checkpoints", None
        if start is not None and start.resumes and start.path.resolve().parent == folder.resolve():
            step = self.step
        is_last = step is not None and start.path.name == checkpoint.LAST
        return CheckpointFolder(folder, self.config.keep, last_step=step if is_last else None, start_step=step)

    def _resume(self, start: Start) -> None:
        """Go on from a ``last`` checkpoint as if the run had never stopped."""
        limit = self.config.schedule.max_steps
        if start.training is None:
            log.warning(
                "%s is %s: its networks go on at step %d, the prototypes and the optimiser's averages start anew",
                start.setting, start.what, self.step,
            )  # fmt: skip
        else:
            check_same_run(start.config, self.cfg, start.setting, strict=self.config.resume == AUTO)
            restore(start, self.method, self.optimizer, self.precision.scaler)
            self.best_miou, self.seconds = start.training["best_miou"], start.training["seconds"]
            self.metrics, self.guard.skipped = start.metrics, start.training["skipped"]
        if self.step > limit:
            raise UserError(f"{start.setting} is at step {self.step}, past schedule.max_steps={limit}; raise it")
        if start.training is None:
            return
        used = start.path.resolve().parent
        self.earlier = used.parent if used.name == "checkpoints" else used
        if distributed.is_main() and not self.checkpoints.adopt(start.path, self.step):
            log.warning("there is no best checkpoint up to step %d in %s: it is looked for anew", self.step, used)
            self.best_miou = -1.0
        self.best_miou = distributed.from_main(self.best_miou)

    def train(self) -> dict[str, Any]:
        """Run the loop to its end; return what ``summary.json`` holds.

        Raises:
            UserError: If a loss is not finite, or the disk is full.
            Stopped: After a signal.
        """
        main = distributed.is_main()
        announce(self.config, self.datasets, self.method, self.device, self.step, self.folder)
        if main:
            self.results.begin(self.step, self.earlier)
        panels = Panels(self.stream, self.datasets.val, self.config.panels) if self.config.panels else None
        self.started = time.perf_counter() - self.seconds
        try:
            with (
                open_logger(self.config.logger if main else "none", self.folder, self.step) as self.logger,
                contextlib.closing(self._samples()) as samples,
                self._recorded(),
                distributed.lost_connections_explained(),
            ):
                self._loop(samples, panels)
        except OSError as error:
            if error.errno in _DISK_IS_FULL:
                raise UserError(
                    f"{error.filename or self.folder} cannot be written: {error.strerror}; "
                    f"{self.checkpoints.describe_newest()}; make room and give the same command with resume=auto"
                ) from error
            raise
        summary = None
        if main:
            summary = self.results.finish(self.cfg, self.step, self._seconds(), self.best_miou, self.metrics)
        return distributed.from_main(summary)

    def _loop(self, samples: Iterator[dict[str, Tensor]], panels: Panels | None) -> None:
        """Step, log, validate and save, until all steps are done or a signal came."""
        schedule = self.config.schedule
        self.method.train()
        with self._bar() as bar:
            self._leave_if_asked()
            if self._validation_is_due():  # the signal that stopped the run cut it off
                self._validate(panels)
                self._leave_if_asked()
                self._save()  # with these scores, or a later start would log them once more
            while self.step < schedule.max_steps:
                terms = self.engine.step(samples, self.step)
                self.step += 1
                if terms and (self.step % schedule.log_every == 0 or self.step == schedule.max_steps):
                    self._log_terms(bar, terms)
                if self._validation_is_due():
                    self._validate(panels)
                if self.step % schedule.save_every == 0:
                    self._save()
                bar.update()
                self._leave_if_asked()
            self._save()

    def _leave_if_asked(self) -> None:
        """End the run if a signal came to any process, unless nothing is left to do."""
        if not distributed.any_over_ranks([bool(self.stop)], self.device)[0]:
            return
        if self.step == self.config.schedule.max_steps and not self._validation_is_due():
            return
        self._save()
        distributed.wait_for_all()  # a launcher ends the other processes when the first one leaves
        name = self.stop.signal_name or "a signal to another process"
        log.info("stopped by %s at step %d; the same command with resume=auto goes on from there", name, self.step)
        raise Stopped(name, self.step)

    def _log_terms(self, bar: tqdm, terms: dict[str, Tensor]) -> None:
        loss = self.config.loss
        values = {name: value.item() for name, value in terms.items()}
        values["total"] = sum(getattr(loss, name) * v for name, v in values.items() if hasattr(loss, name))
        rates = {group["part"]: group["lr"] for group in self.optimizer.param_groups}
        scalars = {f"train/{name}": value for name, value in values.items()}
        scalars |= {f"lr/{part}": rate for part, rate in rates.items()}
        scalars |= {f"gradient_norm/{part}": norm for part, norm in self.engine.norms.items()}
        scalars |= memory_scalars(self.device)
        if self.method.pca is not None:
            scalars |= prototype_distances(self.method.pca, self.classes.names)
        if self.precision.scaler.is_enabled():
            scalars["train/loss_scale"] = self.precision.scaler.get_scale()
        self.logger.scalars(scalars, self.step)
        bar.set_postfix(loss=f"{values['total']:.3f}", lr=f"{rates['head']:.1e}", refresh=False)

    def _validation_is_due(self) -> bool:
        schedule = self.config.schedule
        done = -1 if self.metrics is None else self.metrics["step"]
        wanted = self.step == schedule.max_steps or (self.step > 0 and self.step % schedule.val_every == 0)
        return wanted and done < self.step

    def _validate(self, panels: Panels | None) -> None:
        """Score the student, write figures and pictures, keep the checkpoint if it is the best so far."""
        config, val = self.config, self.datasets.val
        sheets = {}
        with uncompiled() if config.compile else contextlib.nullcontext():  # as scripts/eval.py does
            matrix = evaluate(
                self.method.student,
                val,
                self.device,
                workers=config.workers,
                progress=config.progress,
                timeout=config.worker_timeout,
                stop=lambda: bool(self.stop),
            )
            if matrix is None:  # a signal came
                return
            if panels is not None:  # in every process: the teacher's batch norm takes them all
                sheets["train"] = panels.training(self.method, self.device)
                sheets["val"] = panels.validation(self.method, self.device)
        result = scores(matrix, self.classes)
        miou = result["miou"] or 0.0
        self.metrics = {"step": self.step, "val": val.name, **result}
        is_best = miou > self.best_miou
        self.best_miou = max(miou, self.best_miou)
        if not distributed.is_main():
            return
        known = {f"val_iou/{name}": value for name, value in result["iou"].items() if value is not None}
        self.logger.scalars({"val/miou": miou, **known}, self.step)
        for name, sheet in sheets.items():
            self.logger.image(name, sheet, self.step)
            self.results.picture(name, self.step, sheet)
        self.results.validation(self.step, self._seconds(), result)
        if is_best:
            self.checkpoints.save_best(self._content())
        log.info(
            "step %d: mIoU %s on %s%s", self.step, percent(miou), val.name, ", the best so far" if is_best else ""
        )

    def _content(self) -> dict[str, Any]:
        """What every checkpoint holds."""
        teacher = None if self.method.teacher is None else self.method.teacher.model
        return checkpoint.content_of(
            self.cfg, self.classes, self.method.student, teacher, self.step, self.trained_frames, self.metrics
        )

    def _save(self) -> None:
        """Write ``checkpoints/last.pt``, which holds all that a run needs to go on, unless it stands there."""
        if not distributed.is_main() or self.saved == self.step:
            return
        method, scaler = self.method, self.precision.scaler
        training = {
            "frozen": None if method.frozen is None else method.frozen.state_dict(),
            "pca": None if method.pca is None else method.pca.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler.is_enabled() else None,
            "skipped": self.guard.skipped,
            "best_miou": self.best_miou,
            "seconds": self._seconds(),
        }
        self.logger.flush()
        self.checkpoints.save_last({**self._content(), "training": training})
        self.saved = self.step
        self.record.update(self.step)

    def _seconds(self) -> float:
        """Of the run so far, its earlier parts included."""
        return time.perf_counter() - self.started

    def _samples(self) -> Iterator[dict[str, Tensor]]:
        """This process's batches, from the current step on."""
        config, schedule = self.config, self.config.schedule
        order = training_order(
            self.step,
            schedule.max_steps,
            schedule.batch_size,
            schedule.accumulate,
            distributed.rank(),
            distributed.world_size(),
        )
        return batches(
            self.stream,
            schedule.batch_size,
            config.workers,
            order=order,
            pin_memory=self.device.type != "cpu",
            timeout=config.worker_timeout,
        )

    def _bar(self) -> tqdm:
        return tqdm(
            initial=self.step,
            total=self.config.schedule.max_steps,
            desc="train",
            unit="step",
            disable=not (self.config.progress and distributed.is_main()),
            mininterval=0.2 if sys.stderr.isatty() else 20,  # few lines where they go to a file
        )

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        """Keep ``record.json``: how this part of the run began and how it ended."""
        if not distributed.is_main():
            yield
            return
        config, world = self.config, distributed.world_size()
        pairs = config.schedule.batch_size * config.schedule.accumulate * world
        self.record.start(
            device=self.device,
            world_size=world,
            precision=config.precision,
            seed=config.seed,
            step=self.step,
            images_per_step=pairs * (2 if config.loss.needs_target else 1),
            resumed_from=self.start.path if self.start is not None and self.start.resumes else None,
        )
        try:
            yield
        except Stopped as stopped:
            self.record.end(f"stopped by {stopped.signal_name}", self.step)
            raise
        except BaseException as error:
            self.record.end(failed(error), self.step)
            raise
        self.record.end("finished", self.step)
