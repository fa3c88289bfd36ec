"""Where tensors live: what a setting such as ``device=auto`` means."""

from __future__ import annotations

import re

import torch

from icda.errors import UserError


def pick_device(name: str, several: bool = False) -> torch.device:
    """The device that a name means; ``auto`` is a GPU if there is one.

    Args:
        name: auto, cpu, cuda or cuda:N.
        several: Whether this is one of several processes, each of which takes a GPU of its own
            (``icda.distributed.process_group``).

    Raises:
        UserError: If the name is none of these, or there is no such GPU.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device={name} is not known; choose one of auto, cpu, cuda, or cuda:1 for the second GPU")
    found = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if found else "cpu"
    index = name.partition(":")[2]
    if several and index:
        raise UserError(
            f"device={name} is one GPU, but this run has several processes, each of which takes its own; give "
            "device=auto, and choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    if name != "cpu" and int(index or 0) >= found:
        raise UserError(f"device={name}, but PyTorch {torch.__version__} sees {found} GPUs; give device=cpu or auto")
    return torch.device(name)
