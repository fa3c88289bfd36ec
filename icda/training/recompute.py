"""Less memory for more time: activations are computed again in the backward pass rather than kept.

A block that is computed again is the same block with the same input, the same random numbers and the same autocast,
so gradients are the same, bit for bit. But its batch norm would move its running statistics a second time. Backward
passes through recomputed blocks therefore run inside ``statistics_kept``::

    recompute_blocks(student.encoder)
    recompute_branches(student.head)
    loss = cross_entropy(student(images), labels)
    with statistics_kept(student):
        loss.backward()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from icda.errors import UserError

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Names of batch norm's buffers."""


def recompute_blocks(encoder: nn.Module) -> None:
    """Have an encoder keep the inputs of its blocks alone and compute their insides again in the backward pass.

    Switches on timm's own activation checkpointing: per block where the encoder's stages offer it, and per stage
    where only the whole encoder does. It costs one more forward pass for each backward pass. Forward passes
    without gradients are as they were. To be called after copies were made that are never trained.

    Args:
        encoder: Made by ``timm.create_model(..., features_only=True)``.

    Raises:
        UserError: If the encoder offers no such thing.
    """
    inner = [m for m in encoder.modules() if m is not encoder and hasattr(m, "grad_checkpointing")]
    for module in inner or [encoder]:
        if not hasattr(module, "grad_checkpointing"):
            name = encoder.pretrained_cfg.get("architecture", type(encoder).__name__)
            raise UserError(
                f"memory=low, but the encoder {name} offers no activation checkpointing; give memory=normal or "
                "another model.encoder.name, such as mit_b5 or resnet50"
            )
        module.grad_checkpointing = True


def recompute_branches(head: nn.Module, where: str = "everywhere") -> None:
    """Have a head's branches compute again in the backward pass most of what lies within them, rather than keep it.

    Args:
        head: Its modules that have an attribute ``recompute``, such as ``DAFormerHead``, are meant.
        where: ``"everywhere"``, or the type of device on which.
    """
    for module in head.modules():
        if hasattr(module, "recompute"):
            module.recompute = where


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Context in which batch norm of ``module`` moves no running statistics, and normalises as it does outside.

    Batch norm in training mode uses the statistics of the batch either way; what moves inside are copies of the
    running ones, which are dropped at the end, also after an error. For passes that compute something a second time,
    such as a backward pass through recomputed blocks.

    Args:
        module: Whose batch norms (those of PyTorch, timm's with activation, and synchronised ones) are meant.
    """
    # Copies are moved in their place. Without running statistics (track_running_stats=False) batch norm would save
    # fewer tensors for the backward pass than the first time, and the recomputation would be refused; with a momentum
    # of 0, one batch that is not finite would spoil them.
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    kept = [{name: buffer for name, buffer in m.named_buffers(recurse=False) if name in STATISTICS} for m in norms]
    try:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
