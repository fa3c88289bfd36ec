"""The training run, from a composed configuration to checkpoints, figures and pictures."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from icda import distributed
from icda.allocator import keep_freed_memory
from icda.config import TrainConfig, validate
from icda.data.loader import batches, training_order
from icda.data.overlap import merged_frames
from icda.data.processes import Bar
from icda.data.setup import OpenDatasets, open_datasets, training_stream
from icda.device import pick_device
from icda.errors import UserError
from icda.scores import percent
from icda.training import checkpoint
from icda.training.build import (
    AUTO,
    announce,
    build_method,
    find_start,
    open_checkpoints,
    restore,
    warn_of_another_batch,
)
from icda.training.compilation import compile_parts
from icda.training.diagnostics import memory_scalars, prototype_distances
from icda.training.engine import Engine
from icda.training.guard import Guard
from icda.training.lock import only_writer
from icda.training.loggers import open_logger
from icda.training.optimizer import build_optimizer
from icda.training.panels import Panels
from icda.training.precision import Precision
from icda.training.record import Record, failed
from icda.training.results import Results, finished
from icda.training.same_run import check_same_run
from icda.training.signals import Stopped, StopRequest, stop_request
from icda.training.start import Start
from icda.training.validation import Validation

log = logging.getLogger(__name__)


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
    if device.type == "cpu" and config.memory == "normal":
        keep_freed_memory()
    with contextlib.ExitStack() as stack:
        stack.enter_context(logging_redirect_tqdm())
        stop = stack.enter_context(stop_request())
        stack.enter_context(distributed.process_group(device))
        stack.enter_context(distributed.lost_connections_explained())
        stack.enter_context(distributed.main_alone_logs(logging.getLogger("icda")))
        folder = Path(distributed.from_main(str(folder)))
        if distributed.is_main():
            stack.enter_context(only_writer(folder))
        distributed.wait_for_all()
        summary = finished(folder, cfg, config.schedule.max_steps) if config.resume == AUTO else None
        if summary is not None:
            log.info("%s is finished: %d steps, mIoU %s", folder, summary["steps"], percent(summary["last_miou"]))
            return summary
        return Run(cfg, folder, device, stop).train()


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
        self.precision = Precision(self.config.precision, self.device, self.config.no_grad_precision)
        with distributed.main_first():  # it may make the demo data
            self.datasets: OpenDatasets = open_datasets(self.config)
        self.classes = self.datasets.source.classes
        torch.manual_seed(self.config.seed)
        start = find_start(self.config, folder / "checkpoints")
        if start is not None:
            start.check_classes(self.classes)
        self.step = start.known_step() if start is not None and start.resumes else 0
        distributed.check_same((self.step, start is None), "where the run starts (step, from nothing)")
        self.method = build_method(self.config, self.classes, start, self.device, self.precision.no_grad_dtype)
        schedule, student = self.config.schedule, self.method.student
        self.optimizer = build_optimizer(
            student, schedule.lr, schedule.encoder_lr_factor, schedule.dar_lr_factor, schedule.weight_decay
        )
        self.stream = training_stream(
            self.config, self.datasets, student.mean.tolist(), student.std.tolist(), distributed.world_size()
        )
        self.best_miou = -1.0
        self.metrics: dict[str, Any] | None = None  # the last validation's
        self.checkpoints = open_checkpoints(folder, self.config.keep, start, self.step)
        self.guard = Guard(folder, self.config.max_skipped)
        self.results = Results(folder, self.datasets.val.name)
        self.record = Record(folder / "record.json")
        self.saved: int | None = None  # step of last.pt
        self.seconds = 0.0  # of the run so far, earlier parts of a resumed run included
        self.earlier: Path | None = None  # folder of the run that this one goes on with
        self.start = start
        self.trained_frames = merged_frames(self.datasets.trained_frames, start.trained_frames if start else {})
        if start is not None and start.resumes:
            self._resume(start)
        if self.config.compile:
            compile_parts(self.method)
        self.engine = Engine(
            self.method, self.optimizer, self.precision, self.guard, schedule, self.config.seed, self.device
        )
        self.validation = Validation(student, self.config, self.device, self.stop)

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
        warn_of_another_batch(start, self.config.schedule)
        used = start.path.resolve().parent
        self.earlier = used.parent if used.name == "checkpoints" else used
        self.saved = self.step if start.path.resolve() == self.checkpoints.last.resolve() else None
        if distributed.is_main() and not self.checkpoints.adopt(start.path, self.step) and self.best_miou >= 0:
            log.warning("there is no best checkpoint up to step %d in %s: it is looked for anew", self.step, used)
            self.best_miou = -1.0
        self.best_miou = distributed.from_main(self.best_miou)

    def train(self) -> dict[str, Any]:
        """Run the loop to its end; return what ``summary.json`` holds.

        Raises:
            UserError: If a loss is not finite, or the disk is full.
            Stopped: After a signal.
        """
        announce(self.config, self.datasets, self.method, self.device, self.step, self.folder)
        panels = Panels(self.stream, self.datasets.val, self.config.panels) if self.config.panels else None
        self.started = time.perf_counter() - self.seconds
        kind, summary = self.config.logger if distributed.is_main() else "none", None
        own = self.step == 0 or (self.earlier is not None and self.earlier.resolve() == self.folder.resolve())
        try:
            with self._recorded():
                if distributed.is_main():
                    self.results.begin(self.step, self.earlier, self._is_validated())
                with (
                    open_logger(kind, self.folder, self.step, self._is_validated(), own) as self.logger,
                    contextlib.closing(self._samples()) as samples,
                ):
                    self._loop(samples, panels)
                held_out = self._score_last()
                if distributed.is_main():
                    done = self.cfg, self.step, self._seconds(), self.best_miou, self.metrics, self.guard.skipped
                    summary = self.results.finish(*done, held_out)
        except OSError as error:
            raise UserError(
                f"{error.filename or self.folder} cannot be used: {error.strerror}; "
                f"{self.checkpoints.describe_newest()}; mend that and give the same command with resume=auto"
            ) from error
        summary = distributed.from_main(summary)
        if distributed.any_over_ranks([bool(self.stop)], self.device)[0]:  # it came too late to stop the run
            raise Stopped(self.stop.signal_name or "a signal to another process", self.step)
        return summary

    def _loop(self, samples: Iterator[dict[str, Tensor]], panels: Panels | None) -> None:
        """Step, log, validate and save, until all steps are done or a signal came."""
        schedule, shown = self.config.schedule, self.config.progress and distributed.is_main()
        self.method.train()
        with Bar(None, "train", schedule.max_steps, unit="step", disable=not shown, initial=self.step) as bar:
            self._leave_if_asked()
            if self._validation_is_due():  # the signal that stopped the run cut it off
                self._validate(panels)
                self._leave_if_asked()
            self._settle()
            while self.step < schedule.max_steps:
                try:
                    terms = self.engine.step(samples, self.step)
                except StopIteration:  # a signal came while a worker hung
                    self._leave_if_asked()
                    raise AssertionError(f"no samples at step {self.step} of {schedule.max_steps}") from None
                self.step += 1
                if terms and (self.step % schedule.log_every == 0 or self.step == schedule.max_steps):
                    self._log_terms(bar, terms)
                if self._validation_is_due():
                    self._validate(panels)
                if terms and self.step % schedule.save_every == 0:  # one after a skipped step may be worth less
                    self._save()
                bar.update()
                self._leave_if_asked()
            self._save()

    def _settle(self) -> None:
        """Make the folder one that ``resume=auto`` goes on with."""
        if self.step == 0 or not distributed.is_main():
            return
        if self._is_validated() and self.best_miou < 0:  # no best checkpoint: as far as is known, this is it
            self.best_miou = self.metrics["miou"] or 0.0
            self.checkpoints.save_best(self._content())
        self._save()

    def _leave_if_asked(self) -> None:
        """End the run if a signal came to any process, unless nothing is left to do."""
        if not distributed.any_over_ranks([bool(self.stop)], self.device)[0]:
            return
        if self.step == self.config.schedule.max_steps and not self._validation_is_due():
            return
        self._leave()

    def _leave(self) -> NoReturn:
        """Save and end the run, in all processes, since a signal came to one of them."""
        self._save()
        distributed.wait_for_all()  # a launcher ends the other processes when the first one leaves
        name = self.stop.signal_name or "a signal to another process"
        log.info("stopped by %s at step %d; the same command with resume=auto goes on from there", name, self.step)
        raise Stopped(name, self.step)

    def _log_terms(self, bar: Bar, terms: dict[str, Tensor]) -> None:
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

    def _is_validated(self) -> bool:
        return self.metrics is not None and self.metrics["step"] == self.step

    def _validation_is_due(self) -> bool:
        last, every = self.config.schedule.max_steps, self.config.schedule.val_every
        return not self._is_validated() and self.step > 0 and (self.step == last or self.step % every == 0)

    def _validate(self, panels: Panels | None) -> None:
        """Score the student, write figures and pictures, keep the checkpoint if it is the best so far."""
        val, sheets = self.datasets.val, {}
        if (result := self.validation.scores(val)) is None:  # a signal came
            return
        if panels is not None:  # in every process: the teacher's batch norm takes them all
            with self.validation.uncompiled():
                sheets["train"] = panels.training(self.method, self.device)
                sheets["val"] = panels.validation(self.method, self.device)
        miou = result["miou"] or 0.0
        self.metrics = {"step": self.step, "val": val.name, **result}
        self.saved = None  # without these scores
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
        best = ", the best so far" if is_best else ""
        log.info("step %d: mIoU %s on %s%s", self.step, percent(miou), val.name, best)

    def _score_last(self) -> dict[str, Any]:
        """Score the sets of ``score_last``, for the summary alone: nothing is chosen by them."""
        held_out = self.validation.held_out(self.datasets.last)
        if held_out is None:  # a signal came: a run that goes on scores them again
            self._leave()
        return held_out

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
        if not all(torch.isfinite(p).all() for p in method.student.parameters()):
            raise UserError(
                f"the weights are not finite after step {self.step} and are not saved; "
                f"{self.checkpoints.describe_newest()}; go on from it with a lower schedule.lr"
            )
        training = {
            "frozen": None if method.frozen is None else method.frozen.state_dict(),
            "pca": None if method.pca is None else method.pca.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler.is_enabled() else None,
            "skipped": self.guard.skipped,
            "best_miou": self.best_miou,
            "seconds": self._seconds(),
            "world_size": distributed.world_size(),
        }
        self.logger.flush()
        self.checkpoints.save_last({**self._content(), "training": training})
        self.saved = self.step
        self.record.update(self.step, self.guard.skipped)

    def _seconds(self) -> float:
        """Of the run so far, its earlier parts included."""
        return time.perf_counter() - self.started

    def _samples(self) -> Iterator[dict[str, Tensor]]:
        """This process's batches, from the current step on."""
        config, schedule = self.config, self.config.schedule
        ranks = distributed.rank(), distributed.world_size()
        order = training_order(self.step, schedule.max_steps, schedule.batch_size, schedule.accumulate, *ranks)
        return batches(
            self.stream,
            schedule.batch_size,
            config.workers,
            order=order,
            pin_memory=self.device.type != "cpu",
            timeout=config.worker_timeout,
            # One process can save and leave while a worker hangs; several have to agree, which this one cannot.
            stop=lambda: bool(self.stop) and distributed.world_size() == 1,
        )

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        """Keep ``record.json``: how this part of the run began and how it ended."""
        if not distributed.is_main():
            yield
            return
        config, schedule, world = self.config, self.config.schedule, distributed.world_size()
        self.record.start(
            device=self.device,
            world_size=world,
            precision=str(self.precision),
            seed=config.seed,
            step=self.step,
            images_per_step=schedule.batch_size * schedule.accumulate * world * (1 + config.loss.needs_target),
            skipped=self.guard.skipped,
            resumed_from=self.start.path if self.start is not None and self.start.resumes else None,
        )
        try:
            yield
        except Stopped as stopped:
            self.record.end(f"stopped by {stopped.signal_name}", self.step, self.guard.skipped)
            raise
        except BaseException as error:
            self.record.end(failed(error), self.step, self.guard.skipped)
            raise
        self.record.end("finished", self.step, self.guard.skipped)
