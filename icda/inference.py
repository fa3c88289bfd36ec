"""Pictures through the network: whole or by windows, mirrored, at several scales; from logits to full size labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from numbers import Integral, Real

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from icda.errors import UserError
from icda.folding import prepared
from icda.models import SegmentationModel

__all__ = ["WHOLE", "Views", "enough_memory", "labels_and_confidence_at", "labels_at", "prepared", "segment"]

_CPU_STRIP, _GPU_STRIP = 2**18, 2**21
"""Pixels that are brought to full size at a time: what stays in a core's cache; what fills a GPU."""
_BATCH = 2**20
"""Pixels of the windows that go through the network at a time, where one window has no more."""


def labels_at(logits: Tensor, size: tuple[int, int], mirrored: Tensor | None = None) -> Tensor:
    """Train ids of logits brought bilinearly to a size (method section 4).

    The same labels as resizing all logits and taking the argmax, but strip by strip, which needs a tenth of the
    memory (a photograph of 12 megapixels has 0.9 GB of logits) and a fraction of the time on a CPU.

    Args:
        logits: (B, C, H, W) float.
        size: Height and width (h, w) of the labels.
        mirrored: Logits (B, C, H, W) of the mirrored picture, mirrored back; then labels are those of the mean of
            both softmax probabilities at the labels' size.

    Returns:
        (B, h, w) uint8; of equal logits the first class.
    """
    return _segmented(logits, size, mirrored, False)[0]


def labels_and_confidence_at(
    logits: Tensor, size: tuple[int, int], mirrored: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Train ids as ``labels_at`` gives them, and the softmax probability of each.

    Args:
        logits: (B, C, H, W) float.
        size: Height and width (h, w) of the labels.
        mirrored: See ``labels_at``.

    Returns:
        Train ids (B, h, w) uint8 and probabilities (B, h, w) float32, from 1 / C to 1.
    """
    labels, confidence = _segmented(logits, size, mirrored, True)
    assert confidence is not None
    return labels, confidence


@torch.no_grad()
def _segmented(
    logits: Tensor, size: tuple[int, int], mirrored: Tensor | None, confident: bool, temperature: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Labels and, if asked for, confidences, with memory for all classes of one strip alone."""
    (batch, classes), (height, width), device = logits.shape[:2], size, logits.device
    height_of_strip = _height_of_strip(batch, size, device)
    labels = torch.empty(batch, height, width, dtype=torch.uint8, device=device)
    confidence = torch.empty(batch, height, width, device=device) if confident else None
    kept = classes if confident or mirrored is not None else 1
    planes = torch.empty(kept, batch, height_of_strip, width, device=device)
    work = torch.empty(4, batch, height_of_strip, width, device=device)
    for start in range(0, height, height_of_strip):
        rows = slice(start, min(start + height_of_strip, height))
        own, (best, first, mark, spare) = planes[:, :, : rows.stop - start], work[:, :, : rows.stop - start]
        _argmax(_planes(logits, size, rows, own, spare), best, first, mark)
        if mirrored is not None:
            # The mean of probabilities, not of logits: as MMSegmentation does it.
            own.div_(_exponentials(own, best, mark, temperature))
            other = torch.empty_like(own)
            _argmax(_planes(mirrored, size, rows, other, spare), best, first, mark)
            other.div_(_exponentials(other, best, mark, temperature))
            _argmax(own.add_(other).div_(2), best, first, mark)
        elif confident:
            torch.reciprocal(_exponentials(own, best, mark, temperature), out=best)
        labels[:, rows] = first
        if confidence is not None:
            confidence[:, rows] = best
    return labels, confidence


def _height_of_strip(batch: int, size: Sequence[int], device: torch.device) -> int:
    """Rows of results (B, h, w) that are made at a time."""
    per_strip = _CPU_STRIP if device.type == "cpu" else _GPU_STRIP
    return min(size[0], max(1, per_strip // (batch * size[1])))


@torch.no_grad()
def _add_probabilities(total: Tensor, logits: Tensor, temperature: float) -> None:
    """Add the softmax probabilities of logits (B, C, H, W) to ``total`` (C, B, h, w) float32, at its size."""
    size = total.shape[2:]
    rows = _height_of_strip(total.shape[1], size, total.device)
    for start in range(0, size[0], rows):
        part = total[:, :, start : start + rows]
        own, (best, first, mark, spare) = torch.empty_like(part), part.new_empty(4, *part.shape[1:])
        _argmax(_planes(logits, size, slice(start, start + part.shape[2]), own, spare), best, first, mark)
        part += own.div_(_exponentials(own, best, mark, temperature))


def _planes(logits: Tensor, size: Sequence[int], rows: slice, out: Tensor, spare: Tensor) -> Iterator[Tensor]:
    """The classes' logits (B, n, w) in some rows at a size, one after the other.

    Each row is widened once, then rows are mixed: most of the result's elements cost one multiplication. What
    ``F.interpolate`` costs is spent on the rows of the logits alone.

    Args:
        logits: (B, C, H, W) float.
        size: Height and width (h, w).
        rows: The n rows of the result.
        out: (C or 1, B, n, w) float32; with 1, each plane takes the place of the one before.
        spare: (B, n, w) float32.
    """
    above, below, weight = (values[rows] for values in _neighbours(logits.shape[2], size[0]))
    first, last = int(above[0]), int(below[-1]) + 1
    part = logits[:, :, first:last].float()
    if part.shape[3] != size[1]:
        part = F.interpolate(part, (part.shape[2], size[1]), mode="bilinear", align_corners=False)
    above, below = (above - first).to(part.device), (below - first).to(part.device)
    weight = weight[:, None].to(part.device)
    for k in range(logits.shape[1]):
        plane = out[k % len(out)]
        torch.index_select(part[:, k], 1, above, out=plane)
        torch.index_select(part[:, k], 1, below, out=spare)
        yield plane.lerp_(spare, weight)


def _neighbours(cells: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Between which two of ``cells`` cells each of ``count`` lies, int64, and its distance from the first, 0..1.

    Rounded to float32 where PyTorch's bilinear interpolation does it, so that labels are the same.
    """
    scale = torch.tensor(cells / count, dtype=torch.float32).double()
    place = ((torch.arange(count) + 0.5).double() * scale - 0.5).float().clamp_(min=0)
    above = place.long().clamp_(max=cells - 1)
    return above, (above + 1).clamp_(max=cells - 1), place - above


def _argmax(planes: Iterable[Tensor], best: Tensor, first: Tensor, mark: Tensor) -> None:
    """The largest of planes (B, n, w) into ``best``, and the number of the first that reaches it into ``first``.

    ``first`` is float32: PyTorch compares floats into floats several times as fast as into bool on a CPU.
    """
    first.zero_()
    for k, plane in enumerate(planes):
        if k == 0:
            best.copy_(plane)
            continue
        torch.gt(plane, best, out=mark)
        torch.maximum(plane, best, out=best)
        torch.maximum(first, mark.mul_(k), out=first)


def _exponentials(planes: Tensor, best: Tensor, total: Tensor, temperature: float = 1.0) -> Tensor:
    """Makes exp((logit - maximum) / temperature) of logits (C, B, n, w) in ``planes``, given their maximum (B, n, w).

    Returns:
        Their sum over the classes, (B, n, w), in ``total``.
    """
    total.zero_()
    for plane in planes:
        plane.sub_(best)
        if temperature != 1:
            plane.div_(temperature)
        total.add_(plane.exp_())
    return total


@dataclass(frozen=True)
class Views:
    """How a picture is shown to the network: whole or by windows, at which scales, and whether mirrored as well.

    Of several views the mean of their softmax probabilities at the labels' size decides, as in MMSegmentation.

    Args:
        window: Height and width of sliding windows, in pixels of the picture at each scale; None shows it whole.
        stride: Height and width by which they move.
        flip: Whether its mirror image is shown as well, at each scale.
        scales: What the sides of the picture as it enters are multiplied with, each above 0.
        temperature: Above 0; divides the logits before the softmax. It leaves the labels of a single view alone.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    temperature: float = 1.0

    @classmethod
    def of(
        cls,
        window: Sequence[int] | None,
        stride: Sequence[int] | None,
        flip: bool,
        scales: Sequence[float] = (1.0,),
        temperature: float = 1.0,
    ) -> Views:
        """Views as settings name them.

        Args:
            window: Height and width, or None.
            stride: Height and width; None takes two thirds of the window's, as MMSegmentation's settings do.
            flip: Whether the mirror image is shown as well.
            scales: One or more, each once.
            temperature: Above 0.

        Raises:
            UserError: If they are none, or do not go together.
        """
        if not isinstance(flip, bool):
            raise UserError(f"flip={flip!r:.60} is not known; give true or false")
        if not _is_above_zero(temperature):
            raise UserError(f"temperature={temperature!r:.60} is not known; give a number above 0")
        sizes = (_checked_scales(scales), float(temperature))
        if window is None:
            if stride is not None:
                raise UserError(f"stride={stride!r:.60} is given, but no window; give window=[height,width] as well")
            return cls(None, None, flip, *sizes)
        height, width = _pixels("window", window)
        step = (max(1, 2 * height // 3), max(1, 2 * width // 3)) if stride is None else _pixels("stride", stride)
        if step[0] > height or step[1] > width:
            raise UserError(
                f"stride={list(step)} is larger than window={[height, width]}, so that windows would leave gaps; "
                "give a smaller one"
            )
        return cls((height, width), step, flip, *sizes)

    def enough_memory(self, entering: Tensor, mend: str) -> AbstractContextManager[None]:
        """Context in which it is said in one line where the memory does not suffice.

        Args:
            entering: The pictures as they enter, (B, 3, h, w).
            mend: What to do about their size.
        """
        largest = max(self.scales)
        return enough_memory(_scaled(entering, largest), mend + (", or smaller scales" if largest > 1 else ""))

    def segment(
        self, model: SegmentationModel, images: Tensor, size: tuple[int, int], confidence: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Train ids of pictures, from all views.

        However many scales there are, they need memory for all probabilities at the labels' size, and one view.

        Args:
            model: In evaluation mode.
            images: As they enter, (B, 3, H, W) float32, where the model is.
            size: Height and width (h, w) of the labels.
            confidence: Whether the probabilities are wanted, too.

        Returns:
            Train ids (B, h, w) uint8; and their mean probabilities (B, h, w) float32, or None.
        """
        if self.scales == (1.0,):
            logits, mirrored = self.logits(model, images)
            return _segmented(logits, size, mirrored, confidence, self.temperature)
        total = torch.zeros(model.num_classes, len(images), *size, device=images.device)
        for scale in self.scales:
            scaled = images if scale == 1 else F.interpolate(images, _scaled(images, scale), mode="bilinear")
            _add_probabilities(total, self._forward(model, scaled), self.temperature)
            if self.flip:
                _add_probabilities(total, self._forward(model, scaled.flip(-1)).flip(-1), self.temperature)
        best, labels = total.max(0)  # of equal ones the first
        return labels.to(torch.uint8), best.div_(len(self.scales) * (1 + self.flip)) if confidence else None

    def logits(self, model: SegmentationModel, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of pictures at their own size, whatever ``scales`` says.

        Args:
            model: In evaluation mode.
            images: As they enter, (B, 3, H, W) float32, where the model is.

        Returns:
            Logits (B, C, H, W), and those of the mirrored pictures, mirrored back; None without ``flip``.
        """
        logits = self._forward(model, images)
        return logits, self._forward(model, images.flip(-1)).flip(-1) if self.flip else None

    def _forward(self, model: SegmentationModel, images: Tensor) -> Tensor:
        """Logits of pictures, by windows as in MMSegmentation: where windows overlap, the mean of their logits.

        The sum stands at the size of the pictures, not at that of the network's own logits, for windows begin at
        any pixel; it needs no more memory than the logits of whole pictures.
        """
        if self.window is None or self.stride is None:
            return model(images)
        (batch, _, *size) = images.shape
        tops, lefts = (_starts(*sides) for sides in zip(size, self.window, self.stride, strict=True))
        height, width = min(self.window[0], size[0]), min(self.window[1], size[1])
        corners = [(top, left) for top in tops for left in lefts]
        together = max(1, _BATCH // (batch * height * width))
        total = counts = None
        for k in range(0, len(corners), together):
            some = corners[k : k + together]
            windows = torch.cat([images[:, :, y : y + height, x : x + width] for y, x in some])
            logits = model(windows)
            if total is None or counts is None:
                total = logits.new_zeros(batch, logits.shape[1], *size)
                counts = logits.new_zeros(*size)
            for (y, x), part in zip(some, logits.split(batch), strict=True):
                total[:, :, y : y + height, x : x + width] += part
                counts[y : y + height, x : x + width] += 1
        assert total is not None and counts is not None, size
        return total.div_(counts)


WHOLE = Views()
"""The whole picture, as it is."""


def _is_above_zero(value: object) -> bool:
    """Whether it is a number above 0 that float32 holds as such."""
    held = torch.finfo(torch.float32)
    return isinstance(value, Real) and not isinstance(value, bool) and held.tiny <= value <= held.max


def _checked_scales(value: object) -> tuple[float, ...]:
    """Factors of a picture's sides, each once."""
    scales = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if not scales or not all(map(_is_above_zero, scales)) or len(set(scales)) < len(scales):
        raise UserError(f"scales={value!r:.60} is not known; give numbers above 0, each once, such as [0.75,1,1.25]")
    return tuple(map(float, scales))


def _scaled(images: Tensor, scale: float) -> tuple[int, ...]:
    """Height and width of pictures (B, 3, H, W) times a factor, rounded as in MMSegmentation, each 1 or more."""
    return tuple(max(1, int(side * scale + 0.5)) for side in images.shape[2:])


def _pixels(name: str, value: object) -> tuple[int, int]:
    """A height and a width in pixels."""
    pair = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if len(pair) == 2 and all(isinstance(v, Integral) and not isinstance(v, bool) and v > 0 for v in pair):
        return int(pair[0]), int(pair[1])
    raise UserError(f"{name}={value!r:.60} is not known; give [height,width] in pixels, or null")


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side; the last is moved inwards, so that all have one size."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, side - window), 0) for i in range(count)]


@contextmanager
def enough_memory(size: tuple[int, ...], mend: str = "give a smaller one as size=[height,width]") -> Iterator[None]:
    """Where the memory does not suffice inside a ``with`` block, say so in one line.

    Args:
        size: Height and width at which a picture enters the network.
        mend: What to do.

    Raises:
        UserError: Instead of what Python, NumPy, OpenCV and PyTorch raise.
    """
    try:
        yield
    except (MemoryError, RuntimeError, cv2.error) as error:
        if not _tells_of_memory(error):
            raise
        raise UserError(
            f"the memory does not suffice for a picture that enters the network at {size[0]} x {size[1]} (height x "
            f"width); {mend}"
        ) from error


def _tells_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    # PyTorch has a type of its own for a GPU's memory alone.
    return any(words in str(error) for words in ("allocate", "out of memory"))


@torch.inference_mode()
def segment(
    model: SegmentationModel, entering: Tensor, size: tuple[int, int], confidence: bool, views: Views = WHOLE
) -> tuple[np.ndarray, np.ndarray | None]:
    """Segment one picture.

    Args:
        model: In evaluation mode; best one of ``prepared``.
        entering: The picture as it enters, normalised, (1, 3, h, w) float32, on any device.
        size: Height and width (H, W) of the result.
        confidence: Whether the softmax probabilities are wanted, too.
        views: How the picture is shown to the network.

    Returns:
        Train ids (H, W) uint8, and their probabilities (H, W) float32 or None.

    Raises:
        UserError: If the memory does not suffice.
    """
    with views.enough_memory(entering, "give a smaller one as size=[height,width]"):
        labels, probability = views.segment(model, entering.to(model.mean.device), size, confidence)
        return labels[0].cpu().numpy(), None if probability is None else probability[0].cpu().numpy()
