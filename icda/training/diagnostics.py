"""Figures of a training in progress that are no losses: gradients, prototypes, memory."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from icda.models import PCA, SegmentationModel

GB = 1e9  # bytes


def gradient_norms(student: SegmentationModel) -> dict[str, float]:
    """The Euclidean norm of the gradient of each part of the model, with one synchronisation of the device.

    They are to be taken after the last backward of a step, of gradients that are not scaled (any more) and not
    clipped yet.

    Args:
        student: The model that is trained.

    Returns:
        ``encoder``, ``head``, ``dar``, as far as a parameter of the part has a gradient, and ``total``, of all
        parameters together; empty if none has one.
    """
    norms: dict[str, Tensor] = {}
    for name, part in student.named_children():  # every parameter is of one part
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        if gradients:
            norms[name] = nn.utils.get_total_norm(gradients)
    if not norms:
        return {}
    result = dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))
    return {**result, "total": math.sqrt(sum(norm * norm for norm in result.values()))}


def prototype_distances(pca: PCA, class_names: Sequence[str]) -> dict[str, float]:
    """How far the prototypes of different classes are apart, as cosine distance (1 - cosine, 0..2).

    Where classes fall together, their distance goes to 0 and the alignment loss can no longer tell them apart.

    Args:
        pca: The prototypes; a class whose prototype is zero was not seen yet and does not count.
        class_names: Of all its classes.

    Returns:
        ``prototypes/seen``, number of classes; from two on also ``prototypes/mean_distance`` and
        ``prototypes/min_distance`` over all pairs of them, and ``prototype_nearest/<class>``, the distance of each
        to the one nearest to it.
    """
    prototypes = pca.prototypes.detach().double().cpu()
    assert len(prototypes) == len(class_names), (len(prototypes), len(class_names))
    seen = prototypes.any(1).nonzero()[:, 0].tolist()
    result = {"prototypes/seen": float(len(seen))}
    if len(seen) < 2:
        return result
    directions = nn.functional.normalize(prototypes[seen], dim=1)
    distances = (1 - directions @ directions.T).clamp(min=0)  # rounding can leave -1e-16
    others = ~torch.eye(len(seen), dtype=torch.bool)
    nearest = distances.masked_fill(~others, torch.inf).amin(1).tolist()
    result["prototypes/mean_distance"] = distances[others].mean().item()
    result["prototypes/min_distance"] = min(nearest)
    for index, distance in zip(seen, nearest, strict=True):
        result[f"prototype_nearest/{class_names[index]}"] = distance
    return result


def memory_scalars(device: torch.device) -> dict[str, float]:
    """Memory in use now, in GB of 10^9 bytes.

    Args:
        device: That is trained on.

    Returns:
        On a GPU ``memory/allocated_gb`` (tensors), ``memory/reserved_gb`` (with what torch keeps to hand out again)
        and ``memory/peak_gb`` (most allocated so far) of this process; on a CPU ``memory/resident_gb`` of this
        process without its workers, where the system tells it (Linux), and ``memory/peak_gb``, the most so far.
    """
    if device.type != "cpu":
        return {
            "memory/allocated_gb": torch.cuda.memory_allocated(device) / GB,
            "memory/reserved_gb": torch.cuda.memory_reserved(device) / GB,
            "memory/peak_gb": torch.cuda.max_memory_allocated(device) / GB,
        }
    result = {}
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[1])
        result["memory/resident_gb"] = pages * os.sysconf("SC_PAGE_SIZE") / GB
    peak = peak_memory(device)
    if "process" in peak:
        result["memory/peak_gb"] = peak["process"]
    return result


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that was in use at a time, in GB of 10^9 bytes.

    Args:
        device: That is trained on.

    Returns:
        ``process``: most resident memory of this process, and ``largest_child``: of that of its ended children which
        had most, workers for one; both are absent where the system does not tell them (Windows). Linux counts to a
        child what it shares with this process and, of a program that this process ran, what this process held when
        it ran it, so ``largest_child`` is seldom less than ``process`` was at the start. On a GPU also
        ``gpu_allocated``: tensors, and ``gpu_reserved``: with what torch keeps to hand out again.
    """
    result = {}
    if sys.platform != "win32":
        import resource  # there is none on Windows

        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kibibytes elsewhere
        for name, who in (("process", resource.RUSAGE_SELF), ("largest_child", resource.RUSAGE_CHILDREN)):
            result[name] = resource.getrusage(who).ru_maxrss * unit / GB
    if device.type != "cpu":
        result["gpu_allocated"] = torch.cuda.max_memory_allocated(device) / GB
        result["gpu_reserved"] = torch.cuda.max_memory_reserved(device) / GB
    return result
