"""Several processes that train one model, seen from one of them; with a single process everything here does nothing.

The state is that of ``torch.distributed``'s default group: where there is none, there is one process.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from icda.errors import UserError

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others; the longest wait is for the main one's validation and checkpoint."""


def rank() -> int:
    """This process's number, from 0; 0 without a group."""
    return dist.get_rank() if _has_group() else 0


def world_size() -> int:
    """Number of processes; 1 without a group."""
    return dist.get_world_size() if _has_group() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and logs."""
    return rank() == 0


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Sum(torch.autograd.Function):
    """Sum over processes. Every process's result depends on every process's input, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on each of them; all must call it.

    Args:
        tensor: Of the same shape and dtype on every process.

    Returns:
        The sum, of that shape and dtype; with one process ``tensor`` itself. Its gradient on a process is that of
        the sum of what all processes make of their results.
    """
    return _Sum.apply(tensor) if world_size() > 1 else tensor


def mean_over_ranks(scalars: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scalars as their means over all processes, in one collective; all must call it.

    Args:
        scalars: Of the same names and dtype on every process, without a graph.
    """
    if world_size() == 1:
        return scalars
    means = sum_over_ranks(torch.stack(list(scalars.values()))) / world_size()
    return dict(zip(scalars, means.unbind(), strict=True))


def any_over_ranks(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Per flag whether it is set on any process; all must call it.

    Args:
        flags: As many on every process.
        device: Where the flags are joined: a device of the group.
    """
    if world_size() == 1:
        return [bool(flag) for flag in flags]
    return (sum_over_ranks(torch.tensor([int(flag) for flag in flags], device=device)) > 0).tolist()


def from_main(value: Any) -> Any:
    """The value that the main process gives, on every process; all must call it.

    Args:
        value: Anything that can be pickled; what the other processes give is not looked at.
    """
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def check_same(value: Any, what: str) -> None:
    """See to it that all processes have the same value; all must call it.

    Args:
        value: Can be pickled and compared.
        what: What it is, for the message.

    Raises:
        UserError: On all of them, if they have not.
    """
    first = from_main(value)
    if any_over_ranks([value != first], torch.device("cpu"))[0]:
        raise UserError(
            f"the processes of this run do not agree on {what}: the first has {first}, process {rank()} has {value}; "
            "all machines must see the same files and get the same command"
        )


def wait_for_all() -> None:
    """Return once every process has come here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process do what is inside before the others do, such as making files that they then find."""
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


@contextmanager
def main_alone_logs(logger: logging.Logger) -> Iterator[None]:
    """Let the main process alone log what is no error."""
    level = logger.level
    if not is_main():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def launched() -> bool:
    """Whether the environment says that this is one of several processes, started by torchrun or by submitit."""
    if "RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1")) > 1
    job = _submitit_job()
    return job is not None and job.num_tasks > 1


def local_rank() -> int:
    """This process's number on its machine, from 0; 0 if it was not launched as one of several."""
    if "RANK" in os.environ:
        return int(os.environ.get("LOCAL_RANK", "0"))
    job = _submitit_job()
    return 0 if job is None else job.local_rank


def _submitit_job() -> Any:
    """What submitit knows of the job that this process belongs to; None outside of one."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    from submitit import JobEnvironment

    return JobEnvironment()


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that were launched together; without several of them, do nothing.

    May be entered once after another in the same processes, as a sweep does. Tensors on the CPU are joined by gloo,
    those on a GPU by NCCL.

    Args:
        device: Where the model is going to be. A GPU without a number is this machine's ``local_rank``-th.

    Raises:
        UserError: If there are more processes than GPUs on this machine, or the environment lacks a variable.
    """
    if not launched():
        yield
        return
    if "RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        # CUDA_VISIBLE_DEVICES would come too late: torch has already looked. A given MASTER_PORT is kept.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"RANK={os.environ['RANK']} says that this is one of several processes, but {' and '.join(missing)} is "
            "not set; start them with torchrun, or unset RANK"
        )
    gpu = None if device.type == "cpu" else _own_gpu(device)
    _init_group(gpu)
    try:
        yield
        wait_for_all()
    except BaseException:
        if gpu is not None and hasattr(dist.group.WORLD, "abort"):
            # The others may be in the middle of something, and NCCL would wait for them. Where a version of PyTorch
            # cannot, the error at hand is still the one to report.
            with suppress(RuntimeError):
                dist.group.WORLD.abort()
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def lost_connections_explained() -> Iterator[None]:
    """Make one line of the errors that say that another process is gone.

    Raises:
        UserError: In place of such an error.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo raises no class of its own.
        if isinstance(error, dist.DistError) or re.search(r"gloo.*(Connection|Broken pipe|Timed out)", str(error)):
            raise UserError(
                "the connection to another process of this run was lost; that process was killed, or its own message "
                "says what ended it; the same command with resume=auto goes on from the last checkpoint"
            ) from error
        raise


def _init_group(gpu: torch.device | None) -> None:
    """Make the default group of the processes that the environment tells of."""
    store, number, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store.set_timeout(TIMEOUT)
    # torchrun's store outlives a group, and the next one must not read what the last one wrote.
    entry = store.add(f"icda/entries/{number}", 1)
    dist.init_process_group(
        "gloo" if gpu is None else f"cpu:gloo,{gpu.type}:nccl",
        store=dist.PrefixStore(f"icda/group/{entry}", store),
        rank=number,
        world_size=size,
        timeout=TIMEOUT,
        device_id=gpu,
    )


def _own_gpu(device: torch.device) -> torch.device:
    """The GPU of this process, made the current one."""
    module = torch.get_device_module(device)
    found, index = module.device_count(), device.index
    if index is None:
        # A cluster may show each process its own GPU alone; torchrun's processes all see the same.
        index = 0 if found == 1 and "TORCHELASTIC_RUN_ID" not in os.environ else local_rank()
    if index >= found:
        raise UserError(
            f"process {local_rank()} of this machine has no GPU of its own: there are {found}; start as many "
            "processes as there are GPUs, or give device=cpu"
        )
    module.set_device(index)
    return torch.device(device.type, index)
