"""Batch norm over the batches of all processes, so that several small batches are normalised as one large one."""

from __future__ import annotations

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from icda.distributed import sum_over_ranks, world_size
from icda.training.precision import at_least_float32


class SyncBatchNorm(_BatchNorm):
    """Batch norm over all processes in plain PyTorch, for the CPU, which ``torch.nn.SyncBatchNorm`` refuses.

    In evaluation mode it is that of PyTorch. Parameters, buffers and their names are those of ``nn.BatchNorm2d``.
    In training mode all processes must call it, and again in the backward pass.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of all processes' inputs.

        Args:
            input: (B, D, ...) float; B and the sides may differ between processes.

        Returns:
            The same shape and dtype.
        """
        if not self.training:
            return super().forward(input)
        x = at_least_float32(input)
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        count = sum_over_ranks(x.new_tensor(x.numel() // x.shape[1]))
        mean = sum_over_ranks(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = sum_over_ranks(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / (count - 1))
        x = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            x = x * self.weight.view(shape)
        if self.bias is not None:
            x = x + self.bias.view(shape)
        return x.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, of which the variance is the unbiased one."""
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running.mul_(1 - momentum).add_(new.to(running.dtype), alpha=momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected an input of two or more dimensions, got {input.ndim}")


class SyncBatchNormAct(SyncBatchNorm):
    """``SyncBatchNorm`` followed by the dropout and the activation of timm's ``BatchNormAct2d``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """See ``SyncBatchNorm``."""
        return self.act(self.drop(super().forward(input)))


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """Have every batch norm in a module work on the batches of all processes; with one process change nothing.

    Parameters stay the same objects, and names of the state dict the same.

    Args:
        module: Changed in place, unless it is itself a batch norm.
        device: Where it is going to run.

    Returns:
        The module.
    """
    if world_size() == 1:
        return module
    return _convert(module) if device.type == "cpu" else convert_sync_batchnorm(module)


def _convert(module: nn.Module) -> nn.Module:
    """The module with its batch norms replaced by those of this file."""
    converted = module
    if isinstance(module, _BatchNorm):
        kind = SyncBatchNormAct if isinstance(module, BatchNormAct2d) else SyncBatchNorm
        converted = kind(module.num_features, module.eps, module.momentum, affine=False, track_running_stats=False)
        converted.affine, converted.track_running_stats = module.affine, module.track_running_stats
        converted.weight, converted.bias = module.weight, module.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            converted.register_buffer(name, getattr(module, name))
        converted.training = module.training
    for name, child in module.named_children():
        converted.add_module(name, _convert(child))
    return converted
