"""Whether an exported graph gives the labels that the model gives, at several picture sizes, and how fast it is."""

from __future__ import annotations

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
_SEED = 0


@dataclass(frozen=True)
class Compared:
    """How an exported graph did with a batch of pictures.

    Attributes:
        batch, height, width: Of the pictures.
        pixels: Of all pictures together.
        differing: Those whose labels differ.
        agreement: Share of the others, 0..1.
        seconds_pytorch: Per batch, PyTorch; None where it was not measured.
        seconds_exported: Per batch, the exported graph; None where it was not measured.
    """

    batch: int
    height: int
    width: int
    pixels: int
    differing: int
    agreement: float
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
        argmax: Whether it gives labels; else logits, whose labels are compared.
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
            return labels_at(model(as_float), size)

        def of_graph(entering: Tensor = entering) -> Tensor:
            return run(entering)

        with torch.no_grad(), enough_memory(size, "give smaller ones as check_sizes=[[height,width]]"):
            expected, got = of_model(), of_graph()
            differing = _differing(expected, got, argmax, model.num_classes)
            seconds = [_fastest(work, runs) for work in (of_model, of_graph)]
        pixels = expected.numel()
        results.append(Compared(batch, *size, pixels, differing, 1 - differing / pixels, *seconds))
    return results


def _differing(expected: Tensor, got: Tensor, argmax: bool, num_classes: int) -> int:
    """Pixels whose labels differ: all where shape or type are not as they should be."""
    shape = expected.shape if argmax else (expected.shape[0], num_classes, *expected.shape[1:])
    if tuple(got.shape) != tuple(shape) or got.dtype != (torch.uint8 if argmax else torch.float32):
        return expected.numel()
    labels = got if argmax else got.argmax(1)
    return int((labels != expected).sum())


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
    """Refuse a graph whose labels are not those of the model.

    Args:
        results: What ``compare`` found.
        least: Share of labels that must be equal, 0..1.
        name: Of the format, for the message.

    Raises:
        UserError: If fewer are equal.
    """
    if (share := agreement(results)) >= least:
        return
    worst = min(results, key=lambda result: result.agreement)
    raise UserError(
        f"the labels of the {name} graph and of PyTorch agree on {100 * share:.4f} % of the pixels, expected "
        f"{100 * least:g} % or more; it is worst for {worst.batch} x {worst.height} x {worst.width} (pictures x "
        f"height x width), {100 * worst.agreement:.4f} %; nothing was written. Give another format="
    )
