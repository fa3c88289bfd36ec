"""How long a step of training takes, and how much of it what stands between the passes of the networks does."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from icda.allocator import keep_freed_memory
from icda.benchmark.flops import count_gflop
from icda.benchmark.peak import peak_gflops
from icda.benchmark.settings import BenchmarkConfig, train_settings
from icda.benchmark.timing import Result, Timing, measure
from icda.config import LossConfig, TrainConfig
from icda.data.classes import CITYSCAPES, ClassSet
from icda.device import pick_device
from icda.inference import enough_memory
from icda.training.checkpoint import build_student
from icda.training.compilation import compile_parts, uncompiled
from icda.training.diagnostics import gradient_norms
from icda.training.engine import Engine
from icda.training.guard import Guard
from icda.training.optimizer import build_optimizer
from icda.training.precision import Precision
from icda.training.step import Batch, TrainStep

BLOCK = 64  # pixels of a side of one class in random labels: large enough for cells of things (method section 7.3)


def measure_train(config: BenchmarkConfig) -> Result:
    """Take steps of the optimiser on random pictures, as a training does, without what reads them.

    All steps draw the same kind of pass: the dearest that the loss allows (``dearest``).

    Args:
        config: Its model, loss, schedule, ``crop``, ``batch``, ``precision``, ``no_grad_precision``, ``memory`` and
            ``compile``; weights are random.

    Raises:
        UserError: If the device cannot do what is asked, or the memory does not suffice.
    """
    device = pick_device(config.device)
    if device.type == "cpu" and config.memory == "normal":  # as a training does
        keep_freed_memory()
    training = train_settings(config)
    training = replace(training, loss=dearest(training.loss))
    torch.manual_seed(config.seed)
    with (
        TemporaryDirectory() as folder,
        enough_memory(tuple(config.crop), "give a smaller crop= or batch=, or memory=low"),
    ):
        engine = build_engine(training, CITYSCAPES, device, Path(folder))
        engine.method.train()
        batch = random_batch(np.random.default_rng(config.seed), training, CITYSCAPES)
        steps = itertools.count()

        def step() -> dict[str, Tensor]:
            return engine.step(itertools.repeat(batch), next(steps))

        with _plainly(config.compile):  # the first call stands for one before the measurement
            gflop = count_gflop(step)
        warmup = config.warmup if config.compile else max(config.warmup - 1, 0)
        timing = measure(step, warmup, config.steps, device)
        between = _between(engine, batch, step(), config, device)
    share = sum(statistics.median(row.wall) for row in between.values()) / statistics.median(timing.wall)
    height, width = config.crop
    passes = training.schedule.accumulate
    heading = (
        f"train: one step of {training.model.encoder.name} on {config.batch} source and {config.batch} target pairs"
        f"{f' in each of {passes} passes' if passes > 1 else ''}, {height} x {width}, {engine.precision}, "
        f"memory={config.memory}, on {device}, threads {config.threads}"
    )
    return Result(
        heading,
        timing,
        2 * config.batch * passes,
        {"step": timing, **between},
        gflop=gflop,
        peak_gflops=peak_gflops(device, engine.precision.dtype),
        extra={"between_steps_share": share},
        call=step,
    )


def dearest(loss: LossConfig) -> LossConfig:
    """The same loss, such that every step does all that a step may do, and all steps take equally long.

    A training draws for each step whether the teacher sees the night image, which it couples to the day reference,
    or the reference alone, and whether the mix gets jitter and blur.
    """
    return replace(
        loss,
        reference_probability=float(loss.reference_probability == 1),
        mix_jitter_probability=float(loss.mix_jitter_probability > 0),
        mix_blur_probability=float(loss.mix_blur_probability > 0),
    )


def build_engine(config: TrainConfig, classes: ClassSet, device: torch.device, folder: Path) -> Engine:
    """What takes the steps of a training, the encoder's weights being random.

    Args:
        config: Of the training.
        classes: The label space.
        device: Where it trains.
        folder: For the batch of a step whose loss is not finite.

    Raises:
        UserError: If the device cannot do what is asked.
    """
    precision, schedule = Precision(config.precision, device, config.no_grad_precision), config.schedule
    student = build_student(config.model, len(classes), config.loss.needs_dar, pretrained=False)
    top, bottom = config.dataset.pseudo_label_border
    method = TrainStep(
        student,
        classes,
        config.loss,
        teacher_momentum=schedule.teacher_momentum,
        border=(top, bottom),
        pretrained=True,  # as it will be in a training that is worth its time: the frozen encoder is there
        low_memory=config.memory == "low",
        no_grad_dtype=precision.no_grad_dtype,
    ).to(device)
    optimizer = build_optimizer(
        student, schedule.lr, schedule.encoder_lr_factor, schedule.dar_lr_factor, schedule.weight_decay
    )
    if config.compile:
        compile_parts(method)
    return Engine(method, optimizer, precision, Guard(folder, config.max_skipped), schedule, config.seed, device)


def random_batch(rng: np.random.Generator, config: TrainConfig, classes: ClassSet) -> dict[str, Tensor]:
    """A batch as the loader gives it: noise, and labels in blocks of one class.

    Args:
        rng: Source of randomness.
        config: Its crop, batch size and loss, which says what is needed.
        classes: The label space; some blocks are ignored.
    """
    loss, (height, width) = config.loss, config.dataset.sampling.crop
    count = config.schedule.batch_size
    ids = np.array([*range(len(classes)), classes.ignore_index])
    wanted = {
        "source": True,
        "enhanced": loss.needs_enhanced,
        "reference": loss.needs_reference,
        "target": loss.needs_target,
    }
    batch = {}
    for name in (name for name, needed in wanted.items() if needed):
        batch[name] = torch.from_numpy(rng.standard_normal((count, 3, height, width), np.float32))
        if name in ("source", "enhanced"):
            blocks = rng.choice(ids, (count, -(-height // BLOCK), -(-width // BLOCK)))
            labels = blocks.repeat(BLOCK, 1).repeat(BLOCK, 2)[:, :height, :width]
            batch[f"{name}_label"] = torch.from_numpy(labels.copy())
    return batch


def _plainly(compiled: bool) -> AbstractContextManager[None]:
    return uncompiled() if compiled else nullcontext()


def _between(
    engine: Engine, batch: dict[str, Tensor], terms: dict[str, Tensor], config: BenchmarkConfig, device: torch.device
) -> dict[str, Timing]:
    """What a step does beside its passes, one by one."""
    method: TrainStep = engine.method
    for parameter in method.trained:
        parameter.grad = torch.ones_like(parameter)
    moved = Batch(**batch).to(device)
    numbers: Iterator[int] = itertools.count(1)
    calls: dict[str, Callable[[], object]] = {
        "draws": lambda: method.draw(np.random.default_rng([config.seed, 0]), moved),
        "guard check": lambda: engine.guard.check(terms),
        "gradient norms": lambda: gradient_norms(method.student),
        "optimiser step": engine.optimizer.step,
    }
    if method.teacher is not None:
        calls["teacher update"] = lambda: method.teacher.update(method.student, next(numbers))
    if (largest := engine.schedule.clip_grad_norm) is not None:
        calls["gradient clipping"] = lambda: torch.nn.utils.clip_grad_norm_(method.student.parameters(), largest)
    rows = {f"  {name}": measure(call, 1, config.steps, device) for name, call in calls.items()}
    engine.optimizer.zero_grad(set_to_none=True)
    return rows
