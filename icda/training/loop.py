"""The training run, from a composed configuration to checkpoints, figures and pictures."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from icda.config import TrainConfig, validate
from icda.data.loader import batches
from icda.data.overlap import merged_frames
from icda.data.setup import OpenDatasets, open_datasets, training_stream
from icda.errors import UserError
from icda.evaluation import evaluate
from icda.report import percent, scores, table
from icda.training import checkpoint
from icda.training.optimizer import build_optimizer, lr_factor, set_lr
from icda.training.panels import Panels
from icda.training.start import Start, read_start
from icda.training.step import Batch, TrainStep

log = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """The device that a name means; ``auto`` is a GPU if there is one.

    Raises:
        UserError: If the name is none of auto, cpu, cuda and cuda:N, or there is no such GPU.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device={name} is not known; choose one of auto, cpu, cuda, or cuda:1 for the second GPU")
    found = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if found else "cpu"
    if name != "cpu" and int(name.partition(":")[2] or 0) >= found:
        raise UserError(f"device={name}, but PyTorch {torch.__version__} sees {found} GPUs; give device=cpu or auto")
    return torch.device(name)


def train(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Train as configured and write everything into ``folder``.

    Args:
        cfg: Composed from ``conf/train.yaml``.
        folder: The run's folder; gets ``checkpoints/``, ``metrics.jsonl``, ``summary.json``, ``panels/`` and
            ``tensorboard/``.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: If the configuration, the data or the weights are not usable.
    """
    with logging_redirect_tqdm():
        return Run(cfg, folder).train()


class Run:
    """One training run: what it is made of, and its loop.

    Args:
        cfg: Composed from ``conf/train.yaml``.
        folder: The run's folder.

    Raises:
        UserError: See ``train``.
    """

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        self.cfg = cfg
        self.config: TrainConfig = validate(cfg)
        self.folder = folder
        self.device = pick_device(self.config.device)
        self.datasets: OpenDatasets = open_datasets(self.config)
        self.classes = self.datasets.source.classes
        torch.manual_seed(self.config.seed)
        self.step = 0
        start = self._find_start()
        self.method = self._build_method(start).to(self.device)
        schedule, student = self.config.schedule, self.method.student
        self.optimizer = build_optimizer(
            student, schedule.lr, schedule.encoder_lr_factor, schedule.dar_lr_factor, schedule.weight_decay
        )
        mean, std = student.mean.tolist(), student.std.tolist()
        self.stream = training_stream(self.config, self.datasets, mean, std)
        self.best_miou = -1.0
        self.metrics: dict[str, Any] | None = None  # the last validation's, for the checkpoints
        self.records: list[str] = []  # lines of metrics.jsonl that a resumed run starts with
        self.seconds = 0.0  # of the run so far, earlier parts of a resumed run included
        earlier = {} if start is None else start.trained_frames
        self.trained_frames = merged_frames(self.datasets.trained_frames, earlier)
        if start is not None and start.resumes:
            self._resume(start)

    def _find_start(self) -> Start | None:
        """What ``init`` or ``resume`` names; None for a run from its configuration's own weights."""
        config, last = self.config, self.folder / "checkpoints" / "last.pt"
        start = None
        if config.resume == "auto" and last.exists():
            start = read_start(last, resumes=True)
        elif config.resume not in (None, "auto"):
            start = read_start(checkpoint.find(config.resume, last=True), resumes=True)
        elif config.init is not None:
            start = read_start(checkpoint.find(config.init), resumes=False)
        if config.resume == "auto" and not last.exists():
            log.info("resume=auto: no %s yet, so the run starts at step 0", last)
        if start is not None:
            start.check_classes(self.classes)
            if start.resumes:
                self.step = start.known_step()
        return start

    def _build_method(self, start: Start | None) -> TrainStep:
        """The method with the weights that it starts from; what ``resume`` adds to them comes later."""
        loss, weights = self.config.loss, self.config.model.encoder.weights
        frozen_given = start is not None and start.frozen is not None
        goes_on = start is not None and start.resumes and start.training is not None  # with all that it had
        reads_encoder = start is None or not (goes_on or frozen_given or not loss.feature_distance)
        student = checkpoint.build_student(self.config.model, len(self.classes), loss.needs_dar, reads_encoder)
        if weights == "none" and start is None:
            log.warning(
                "the encoder %s starts from random weights; for pretrained ones: model=icda_lite, or "
                "model.encoder.weights=timm or PATH",
                self.config.model.encoder.name,
            )
        elif not reads_encoder and not goes_on and weights != "none":
            log.info("model.encoder.weights=%s is not read: %s has all that is needed", weights, start.setting)
        top, bottom = self.config.dataset.pseudo_label_border
        method = TrainStep(
            student,
            self.classes,
            loss,
            teacher_momentum=self.config.schedule.teacher_momentum,
            border=(top, bottom),
            pretrained=frozen_given or (weights != "none" and not goes_on),
        )
        if start is not None:
            start.fill(student, start.state_for(student), "network")
            if method.teacher is not None:
                state = start.state_for(student, teacher=start.resumes)
                start.fill(method.teacher.model, state, "mean teacher")
            if method.frozen is not None and start.frozen is not None:
                start.fill(method.frozen, start.frozen, "frozen encoder")
            if method.frozen is None and loss.feature_distance and not goes_on:
                log.warning(
                    "%s holds no encoder from before its training and model.encoder.weights is none: the feature "
                    "distance is off",
                    start.setting,
                )
        return method

    def train(self) -> dict[str, Any]:
        """Run the loop to its end; return what ``summary.json`` holds."""
        schedule = self.config.schedule
        self._announce()
        self._start_records()
        started = time.perf_counter() - self.seconds
        panels = Panels(self.stream, self.datasets.val, self.config.panels) if self.config.panels else None
        samples = batches(
            self.stream,
            schedule.batch_size,
            self.config.workers,
            start=self.step * schedule.batch_size,
            pin_memory=self.device.type != "cpu",
        )
        result: dict[str, Any] = {}
        self.method.train()
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step) as board:
            bar = tqdm(
                initial=self.step,
                total=schedule.max_steps,
                desc="train",
                unit="step",
                disable=not self.config.progress,
                mininterval=0.2 if sys.stderr.isatty() else 20,  # few lines where they go to a file
            )
            for sample in samples:
                terms = self._train_step(Batch(**sample).to(self.device))
                last = self.step == schedule.max_steps
                if self.step % schedule.log_every == 0 or last:
                    self._log_terms(board, bar, terms)
                if self.step % schedule.val_every == 0 or last:
                    self.seconds = time.perf_counter() - started
                    result = self._validate(board, panels)
                if self.step % schedule.save_every == 0 or last:
                    self.seconds = time.perf_counter() - started
                    self._save("last")
                bar.update()
            bar.close()
            if not result:  # resumed at its last step
                result = self._validate(board, panels)
                self._save("last")
        return self._finish(result)

    def _train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the method and of the optimiser; what is random in it is a function of seed and step."""
        schedule, seed = self.config.schedule, self.config.seed
        set_lr(self.optimizer, lr_factor(self.step, schedule.max_steps, schedule.warmup_steps))
        generator = np.random.default_rng([seed, self.step])
        torch.manual_seed(int(generator.integers(2**63)))  # dropout and stochastic depth
        terms = self.method(batch, self.step, self.method.draw(generator, batch))
        broken = [name for name, value in terms.items() if not torch.isfinite(value)]
        if broken:
            raise UserError(
                f"step {self.step}: the loss {', '.join(broken)} is not finite; start again, or from an earlier "
                f"checkpoint with resume=, with a lower schedule.lr or a longer schedule.warmup_steps"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return terms

    def _log_terms(self, board: SummaryWriter, bar: tqdm, terms: dict[str, Tensor]) -> None:
        loss = self.config.loss
        values = {name: value.item() for name, value in terms.items()}
        total = sum(getattr(loss, name) * v for name, v in values.items() if hasattr(loss, name))
        for name, value in values.items():
            board.add_scalar(f"train/{name}", value, self.step)
        board.add_scalar("train/total", total, self.step)
        for group in self.optimizer.param_groups:
            board.add_scalar(f"lr/{group['part']}", group["lr"], self.step)
        head_lr = next(g["lr"] for g in self.optimizer.param_groups if g["part"] == "head")
        bar.set_postfix(loss=f"{total:.3f}", lr=f"{head_lr:.1e}", refresh=False)

    def _validate(self, board: SummaryWriter, panels: Panels | None) -> dict[str, Any]:
        """Score the student, write figures and pictures, keep the checkpoint if it is the best so far."""
        config, val = self.config, self.datasets.val
        matrix = evaluate(self.method.student, val, self.device, workers=config.workers, progress=config.progress)
        result = scores(matrix, self.classes)
        miou = result["miou"] or 0.0
        self.metrics = {"step": self.step, "val": val.name, **result}
        board.add_scalar("val/miou", miou, self.step)
        for name, value in result["iou"].items():
            if value is not None:
                board.add_scalar(f"val_iou/{name}", value, self.step)
        is_best = miou > self.best_miou
        if is_best:
            self.best_miou = miou
            self._save("best")
        line = {"step": self.step, "seconds": round(self.seconds, 3), **result}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if panels is not None:
            for name, sheet in (
                ("train", panels.training(self.method, self.device)),
                ("val", panels.validation(self.method, self.device)),
            ):
                board.add_image(name, sheet, self.step, dataformats="HWC")
                path = self.folder / "panels" / f"{name}_{self.step:06d}.png"
                path.parent.mkdir(exist_ok=True)
                cv2.imwrite(str(path), sheet[:, :, ::-1])
        log.info(
            "step %d: mIoU %s on %s%s", self.step, percent(miou), val.name, ", the best so far" if is_best else ""
        )
        return result

    def _save(self, name: str) -> None:
        """Write ``checkpoints/<name>.pt``: ``last`` holds what a run needs to go on, ``best`` the models alone."""
        method = self.method
        teacher = None if method.teacher is None else method.teacher.model
        content = checkpoint.content_of(
            self.cfg, self.classes, method.student, teacher, self.step, self.trained_frames, self.metrics
        )
        if name == "last":
            content["training"] = {
                "frozen": None if method.frozen is None else method.frozen.state_dict(),
                "pca": None if method.pca is None else method.pca.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best_miou": self.best_miou,
                "seconds": self.seconds,
            }
        checkpoint.save(self.folder / "checkpoints" / f"{name}.pt", content)

    def _resume(self, start: Start) -> None:
        """Go on from a ``last`` checkpoint as if the run had never stopped."""
        method, training = self.method, start.training
        if training is None:
            self._check_step(start.setting)
            log.warning(
                "%s is %s: its networks go on at step %d, the prototypes and the optimiser's averages start anew",
                start.setting, start.what, self.step,
            )  # fmt: skip
            return
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
            settings = [(group["base_lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(training["optimizer"])
            for group, (base_lr, decay) in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(base_lr=base_lr, weight_decay=decay)  # the configuration's, not the checkpoint's
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{start.setting} does not fit this configuration: {reason}; give the run's own"
            ) from error
        self._check_step(start.setting)
        self.best_miou, self.seconds, self.metrics = training["best_miou"], training["seconds"], start.metrics
        self._adopt(start.path.resolve().parent)

    def _check_step(self, setting: str) -> None:
        """Refuse to go on from beyond the end."""
        if self.step > self.config.schedule.max_steps:
            raise UserError(
                f"{setting} is at step {self.step}, past schedule.max_steps={self.config.schedule.max_steps}; "
                "raise it"
            )

    def _adopt(self, checkpoints: Path) -> None:
        """Take over what a resumed run left: validations so far and, from another folder, its best checkpoint."""
        self.records = self._read_records(checkpoints.parent if checkpoints.name == "checkpoints" else checkpoints)
        best, here = checkpoints / "best.pt", self.folder / "checkpoints" / "best.pt"
        if not best.exists():
            log.warning("there is no %s: the best checkpoint is looked for anew", best)
            self.best_miou = -1.0
        elif best != here.resolve():
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(best, here)

    def _read_records(self, folder: Path) -> list[str]:
        """The lines of a folder's ``metrics.jsonl`` up to the current step; the last step is validated anew."""
        limit = min(self.step, self.config.schedule.max_steps - 1)
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if json.loads(line)["step"] <= limit]

    def _start_records(self) -> None:
        """Drop what an earlier run in this folder recorded after the step that this one starts from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "summary.json").unlink(missing_ok=True)
        (self.folder / "metrics.jsonl").write_text("".join(line + "\n" for line in self.records))

    def _announce(self) -> None:
        source, target, val = self.datasets.source, self.datasets.target, self.datasets.val
        parameters = sum(p.numel() for p in self.method.student.parameters())
        log.info(
            "%s: %d labelled images%s; scored on %s: %d images",
            source.name,
            len(source),
            f" -> {target.name}: {len(target)} unlabelled images" if target is not None else "",
            val.name,
            len(val),
        )
        for part in (*self.datasets.trained, val):
            for remark in part.remarks:
                log.info("%s: %s", part.name, remark)
        if self.config.loss.needs_reference and (pairing := getattr(target, "pairing", "")):
            log.info("%s: day references from %s", target.name, pairing)
        log.info(
            "%s, %.1f M parameters, on %s; step %d of %d; run folder %s",
            self.config.model.encoder.name,
            parameters / 1e6,
            self.device,
            self.step,
            self.config.schedule.max_steps,
            self.folder,
        )

    def _finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write ``summary.json``, print the table and what to type next."""
        summary = {
            "best_miou": self.best_miou,
            "last_miou": result.get("miou"),
            "steps": self.step,
            "seconds": round(self.seconds, 3),
            "iou": result.get("iou"),
            "val": self.datasets.val.name,
        }
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        if result:
            log.info("\n%s\n", table(result))
        best = self.folder / "checkpoints" / "best.pt"
        log.info("best mIoU %s after %d steps, %.0f s", percent(self.best_miou), self.step, self.seconds)
        log.info("run folder: %s", self.folder)
        log.info("next: python scripts/eval.py ckpt=%s save_predictions=true", shlex.quote(str(best)))
        log.info("      tensorboard --logdir %s", shlex.quote(str(self.folder)))
        return summary
