"""torch.compile for a training step: what is compiled, where it must not be, and errors that say what to do."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from icda.errors import UserError
from icda.training.step import TrainStep

log = logging.getLogger(__name__)

_COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
"""Packages whose exceptions are those of compiling, not of what is compiled."""


def compile_parts(method: TrainStep) -> None:
    """Compile a method's encoders in place: the student's, the teacher's and the frozen one.

    Names in state dicts stay as they are, and copies of a compiled module are not compiled. Nothing is compiled
    until the first call; then each way of calling an encoder becomes a program of its own, which for a transformer
    takes minutes on a CPU: the student's with gradients, the student's without, and the teacher's with the frozen
    one's. Programs hold for one size of images and batch; beyond PyTorch's limit of eight, it goes on uncompiled.

    A compiled step agrees with a plain one to rounding where nothing in it is random. Dropout and stochastic depth
    draw other numbers, though still by ``torch.manual_seed``, so that a step stays a function of seed and step.

    The head and DAR stay as they are: most of their time goes into convolutions, which a compiler leaves to the same
    libraries, while the head is called in three ways (trained, with constant weights, and the teacher's) and DAR in
    two, and compiling them all took as long as the encoder.

    Where memory is low, a student's encoder with batch norm stays as it is, too: compiled, its recomputed blocks
    would move the running statistics once more, or fail because these have changed in the meantime.

    Args:
        method: On its device. Validation and pictures, whose images have other sizes, belong in ``uncompiled``.
    """
    encoders = []
    if method.low_memory and any(isinstance(m, _BatchNorm) for m in method.student.encoder.modules()):
        log.warning("memory=low: the student's encoder has batch norm and is not compiled")
    else:
        encoders.append(method.student.encoder)
    if method.teacher is not None:
        encoders.append(method.teacher.model.encoder)
    if method.frozen is not None:
        encoders.append(method.frozen)
    # Inside DDP's forward, graphs would be cut at DDP's buckets, which earlier versions of PyTorch refuse for blocks
    # that are recomputed. It would gain little: the gradients of all branches but the last are not overlapped.
    torch._dynamo.config.optimize_ddp = False
    for encoder in encoders:
        encoder.compile(dynamic=False)


def uncompiled() -> AbstractContextManager[None]:
    """Context in which compiled modules run as if they were not, on exactly the operations of a plain run."""
    return torch.compiler.set_stance("force_eager")


def explain_compile_error(error: BaseException) -> UserError | None:
    """What to do about an error that came from compiling, in one line.

    Args:
        error: From a step of a method that went through ``compile_parts``.

    Returns:
        The error to raise in its place; None if it, and what caused it, came from elsewhere.
    """
    found, seen = None, set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if type(error).__module__.startswith(_COMPILERS):
            found = error  # the innermost says most
        error = error.__cause__ or error.__context__
    if found is None:
        return None
    lines = [line.strip() for line in str(found).splitlines() if line.strip()]
    reason = f"{type(found).__name__}: {lines[0] if lines else 'no reason given'}"
    return UserError(
        f"compile=true, but compiling failed ({reason[:200]}); it needs a C++ compiler such as g++, and on a GPU "
        "Triton: install what is missing, or give compile=false"
    )
