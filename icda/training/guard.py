"""The loss guard: a step whose loss is not finite is skipped without a trace, its batch kept for a look."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from icda.data.classes import ClassSet
from icda.prediction.outputs import write_picture
from icda.training.step import Batch, Draws
from icda.viz import contact_sheet, to_image

FOLDER = "not_finite"
_BROKEN = (255, 0, 255)  # colour of pixels that are not finite
_COLUMNS = {
    "source": "source",
    "source_label": "label",
    "enhanced": "enhanced",
    "enhanced_label": "enhanced label",
    "target": "night",
    "reference": "reference",
}
"""Fields of a batch and the headings of their pictures."""


class Guard:
    """Counts the steps that were skipped because a term of their loss was not finite.

    With several processes the terms are to be the means over all of them, so that what is not finite in one is so in
    all: they skip the same steps, and each keeps its own share of the batch.

    Attributes:
        skipped: Steps skipped so far, for the checkpoint.

    Args:
        folder: The run's; batches are kept in its ``not_finite/``, which is made when it is needed.
        max_skipped: Steps that may be skipped in the whole run.
        skipped: Steps that earlier parts of the run skipped.
    """

    def __init__(self, folder: Path, max_skipped: int, skipped: int = 0) -> None:
        self.folder = folder / FOLDER
        self.max_skipped = max_skipped
        self.skipped = skipped

    @property
    def exceeded(self) -> bool:
        """Whether more steps were skipped than may be."""
        return self.skipped > self.max_skipped

    def check(self, terms: Mapping[str, Tensor]) -> list[str]:
        """Names of the terms that are not finite, with one synchronisation of the device.

        Args:
            terms: Scalars by name, all on one device.
        """
        if not terms:
            return []
        finite = torch.stack([torch.isfinite(value.detach()).all() for value in terms.values()]).tolist()
        return [name for name, good in zip(terms, finite, strict=True) if not good]

    def skip(self) -> None:
        """Count a step that is skipped."""
        self.skipped += 1

    def text(self, names: Sequence[str], step: int, path: Path | None) -> str:
        """What to tell of a step that was skipped or, where ``exceeded``, ends the run.

        Args:
            names: The terms.
            step: Training step, from 0.
            path: Where ``hold`` put the batch; None with several processes, of which any may be the cause.
        """
        what = f"the loss {', '.join(names)} is not finite"
        where = f"its batch lies in {path}" if path else f"each process's batch lies in {self.folder}"
        if not self.exceeded:
            return (
                f"step {step}: {what}; the step is skipped, {self.skipped} of at most max_skipped="
                f"{self.max_skipped} in this run; {where}"
            )
        before = f" and max_skipped={self.max_skipped} such steps were skipped before" if self.max_skipped else ""
        return (
            f"step {step}: {what}{before}; {where}; start again, or from an earlier checkpoint with "
            "resume=, with a lower schedule.lr, a longer schedule.warmup_steps or precision=fp32"
        )

    def hold(
        self,
        batch: Batch,
        draws: Draws,
        terms: Mapping[str, Tensor],
        names: Sequence[str],
        step: int,
        rank: int,
        mean: Tensor,
        std: Tensor,
        classes: ClassSet,
    ) -> Path:
        """Keep the batch of a step whose loss is not finite, for a look.

        Since a run ends where ``exceeded``, a process keeps at most ``max_skipped`` + 1 batches.

        Args:
            batch: The batch.
            draws: What was random in the step.
            terms: All terms, scalars by name.
            names: Those that are not finite.
            step, rank: Training step and number of this process, each from 0.
            mean, std: (3,) of the images' normalisation.
            classes: The label space.

        Returns:
            ``not_finite/step_000123_rank0.pt``: a dictionary of plain values and tensors on the CPU that
            ``torch.load(path, weights_only=True)`` opens; its ``batch`` holds the fields of ``Batch`` and its
            ``draws`` those of ``Draws``. Beside it is a picture of the same name, ``.png``; in it pixels that are not
            finite are magenta.

        Raises:
            OSError: If it cannot be written.
        """
        images = _tensors(batch)
        content = {
            **{"step": step, "rank": rank, "not_finite": list(names)},
            "terms": {name: float(value) for name, value in terms.items()},
            "batch": images,
            "draws": _plain(asdict(draws)),
            **{"mean": _on_cpu(mean), "std": _on_cpu(std)},
        }
        path = self.folder / f"step_{step:06d}_rank{rank}.pt"
        saved = io.BytesIO()  # given the file, torch would raise a RuntimeError where it cannot be written
        torch.save(content, saved)
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved.getbuffer())
        write_picture(path.with_suffix(".png"), _picture(images, mean, std, classes))
        return path


def snapshot(module: nn.Module, average: nn.Module | None = None) -> Callable[[], None]:
    """Keep what a step changes beside the parameters that the optimiser steps.

    Args:
        module: All its buffers are kept: running statistics of batch norm, prototypes. Such as the ``TrainStep`` of a
            run, before a step.
        average: All its parameters are kept: the mean teacher. None where there is none.

    Returns:
        A function that puts them back, bit for bit, as often as it is called.
    """
    parameters = [] if average is None else list(average.parameters())
    kept = [p.detach().clone() for p in parameters]
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}

    @torch.no_grad()
    def restore() -> None:
        current = dict(module.named_buffers())
        assert current.keys() == buffers.keys(), sorted(current.keys() ^ buffers.keys())
        for name, buffer in current.items():
            buffer.copy_(buffers[name])
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)

    return restore


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """What a batch has of its fields, on the CPU."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: _on_cpu(value) for name, value in values.items() if value is not None}


def _on_cpu(tensor: Tensor) -> Tensor:
    # A copy, since of a view the whole storage would be saved.
    return tensor.detach().cpu().clone()


def _plain(value: Any) -> Any:
    """Draws as what a file can hold that is opened without running any code."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    return _on_cpu(value) if isinstance(value, Tensor) else value


def _picture(images: Mapping[str, Tensor], mean: Tensor, std: Tensor, classes: ClassSet) -> np.ndarray:
    """Contact sheet of a batch, RGB (H, W, 3) uint8."""
    columns: dict[str, list[np.ndarray]] = {}
    for name, heading in _COLUMNS.items():
        if name in images and name.endswith("label"):
            columns[heading] = [classes.colorize(label.numpy()) for label in images[name]]
        elif name in images:
            columns[heading] = [_visible(image, mean, std) for image in images[name]]
    return contact_sheet(columns)


def _visible(image: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
    """A normalised image (3, H, W) as RGB (H, W, 3) uint8, pixels that are not finite in magenta."""
    broken = ~torch.isfinite(image).all(0)
    picture = to_image(image.nan_to_num(0, 0, 0), mean, std)
    picture[broken.numpy()] = _BROKEN
    return picture
