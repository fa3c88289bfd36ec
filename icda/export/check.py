"""Whether an exported graph gives the labels that the model gives, at several picture sizes, and how fast it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from icda.data.stream import normalize
from icda.errors import UserError
from icda.export.formats import Run
from icda.inference import enough_memory, labels_at
from icda.models import SegmentationModel

GRIDS = (3, 7, 20, 60)  # cells across a picture: what has the size of a road, a car, a person, a sign
NOISE = 4.0  # deviation of the noise, of the 255 levels
LOGIT_TOLERANCE = 1e-3
"""Largest difference of logits, as a multiple of their deviation. Float32 in another order of operations differs by
some 1e-5 of it (measured: 8e-6), a wrong scale, shift or interpolation by 1e-2 or more."""
_SEED = 0


@dataclass(frozen=True)
class Compared:
    """How an exported graph did with a batch of pictures.

    Attributes:
        batch, height, width: Of the pictures.
        pixels: Of all pictures together.
        differing: Those whose labels differ.
        agreement: Share of the others, 0..1.
        logit_difference: Largest difference of logits as a multiple of the deviation of PyTorch's; None where the
            graph gives labels.
        seconds_pytorch: Per batch, PyTorch; None where it was not measured.
        seconds_exported: Per batch, the exported graph; None where it was not measured.
    """

    batch: int
    height: int
    width: int
    pixels: int
    differing: int
    agreement: float
    logit_difference: float | None
    seconds_pytorch: float | None
    seconds_exported: float | None

    def plain(self) -> dict[str, Any]:
        """As values for JSON."""
        return asdict(self)


def picture(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A picture with structures of several sizes and some noise.

    White noise would not do: its mean is the same in every cell of a network's maps, which leaves logits that are
    nearly equal everywhere, so that rounding decides about labels, and it shows no edges where maps are shifted.

    Args:
        size: Height and width in pixels.
        rng: Where it is drawn from.

    Returns:
        RGB (H, W, 3) uint8.
    """
    height, width = size
    image = np.zeros((height, width, 3), np.float32)
    for cells in GRIDS:
        grid = rng.uniform(-1, 1, (max(2, cells * height // width), cells, 3)).astype(np.float32)
        image += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / len(GRIDS)
    levels = np.iinfo(np.uint8).max
    image = (image + 1) / 2 * levels + rng.normal(0, NOISE, image.shape)
    return np.rint(image.clip(0, levels)).astype(np.uint8)


def compare(
    model: SegmentationModel,
    run: Run,
    *,
    normalizes: bool,
    argmax: bool,
    sizes: Sequence[tuple[int, int]],
    smallest: int,
    timing_runs: int,
) -> list[Compared]:
    """Run a model and its exported graph: one picture of each size, two of the last, and one of the smallest size.

    Args:
        model: On the CPU, in evaluation mode.
        run: The exported graph.
        normalizes: Whether it takes uint8 and normalises.
        argmax: Whether it gives labels; else logits, which are compared as well as their labels.
        sizes: Heights and widths in pixels.
        smallest: Smallest side in pixels that it takes.
        timing_runs: Runs that are timed after the first, for single pictures of ``sizes``; the fastest counts.

    Raises:
        UserError: If the memory does not suffice.
    """
    rng = np.random.default_rng(_SEED)
    cases = [(1, size, timing_runs) for size in sizes] + [(2, sizes[-1], 0), (1, (smallest, smallest), 0)]
    results = []
    for batch, size, runs in cases:
        images = [picture(size, rng) for _ in range(batch)]
        as_float = torch.stack([normalize(image, model.mean.numpy(), model.std.numpy()) for image in images])
        as_levels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        entering = as_levels if normalizes else as_float

        def of_model(as_float: Tensor = as_float, size: tuple[int, int] = size) -> Tensor:
            logits = model(as_float)
            return labels_at(logits, size) if argmax else logits

        def of_graph(entering: Tensor = entering) -> Tensor:
            return run(entering)

        with torch.no_grad(), enough_memory(size, "give smaller ones as check_sizes=[[height,width]]"):
            expected, got = of_model(), of_graph()
            differing, difference = _differing(expected, got) if argmax else _logits_differing(expected, got)
            seconds = [_fastest(work, runs) for work in (of_model, of_graph)]
        pixels = batch * size[0] * size[1]
        results.append(Compared(batch, *size, pixels, differing, 1 - differing / pixels, difference, *seconds))
    return results


def _differing(expected: Tensor, got: Tensor) -> tuple[int, None]:
    """Pixels whose labels differ: all where shape or type are not as they should be."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return expected.numel(), None
    return int((got != expected).sum()), None


def _logits_differing(expected: Tensor, got: Tensor) -> tuple[int, float]:
    """Pixels whose labels differ, and ``Compared.logit_difference``."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return expected[:, 0].numel(), math.inf
    size = expected.shape[2:]
    differing, _ = _differing(labels_at(expected, size), labels_at(got, size))
    return differing, float((got - expected).abs().max() / expected.std())


def _fastest(work: Callable[[], object], runs: int) -> float | None:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds, default=None)


def agreement(results: Sequence[Compared]) -> float:
    """Share of equal labels among the pixels of all pictures, 0..1."""
    return 1 - sum(r.differing for r in results) / sum(r.pixels for r in results)


def require_agreement(results: Sequence[Compared], least: float, name: str) -> None:
    """Refuse a graph that does not do what the model does, be it for a single one of the cases.

    Args:
        results: What ``compare`` found.
        least: Share of labels that must be equal in each case, 0..1; below 1, one pixel may always differ.
        name: Of the format, for the message.

    Raises:
        UserError: If fewer are equal, or logits differ by more than ``LOGIT_TOLERANCE``.
    """
    failed = [r for r in results if r.agreement < least and (r.differing > 1 or least == 1)]
    if failed:
        worst = min(failed, key=lambda result: result.agreement)
        raise UserError(
            f"the labels of the {name} graph and of PyTorch agree on {100 * worst.agreement:.4f} % of the pixels of "
            f"{_case(worst)}, expected {100 * least:g} % or more; nothing was written. Give another format="
        )
    # Not "above the tolerance", since NaN is neither above nor below.
    apart = [r for r in results if r.logit_difference is not None and not r.logit_difference <= LOGIT_TOLERANCE]
    if apart:
        raise UserError(
            f"the logits of the {name} graph and of PyTorch differ by up to {apart[0].logit_difference:.2g} of their "
            f"deviation for {_case(apart[0])}, expected {LOGIT_TOLERANCE:g} or less; nothing was written. Give "
            "another format="
        )


def _case(result: Compared) -> str:
    return f"{result.batch} x {result.height} x {result.width} (pictures x height x width)"
