"""DACS: pastes half of the source's classes onto the target and augments the mix (method section 7.8).

Paper: "DACS: Domain Adaptation via Cross-domain Mixed Sampling", https://arxiv.org/abs/2007.08702.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from icda.distributed import rank, sum_over_ranks, world_size
from icda.training.precision import at_least_float32

WEIGHTS = ("batch", "image", "pixel", "probability")
"""What may decide how much a pseudo-labelled pixel counts."""

_ADJUST = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


@dataclass(frozen=True)
class PseudoLabel:
    """What the teacher says of a batch of target images.

    Attributes:
        labels: (B, H, W) int64 class ids.
        weight: (B, H, W) float, 0..1: how much a pixel counts.
        share: Scalar float: share of the pixels above the threshold, over the batches of all processes.
        confidence: Scalar float: mean over the batch's pixels of the largest probability.
    """

    labels: Tensor
    weight: Tensor
    share: Tensor
    confidence: Tensor


def pseudo_label(logits: Tensor, threshold: float, border: tuple[int, int], weigh: str = "batch") -> PseudoLabel:
    """Labels, and what each pixel counts: by default the share of the batch's confident pixels (method section 7.7).

    With several processes, which must have batches of one size, the whole batch is that of all of them.

    Args:
        logits: The teacher's, (B, C, H, W) float at full resolution.
        threshold: Probability from which a pixel is confident.
        border: Rows at the top and at the bottom that weigh 0; they count in the share all the same.
        weigh: One of ``WEIGHTS``. ``batch``: by the share of confident pixels in the whole batch (published);
            ``image``: in the pixel's own image; ``pixel``: 1 for a confident pixel and 0 for others;
            ``probability``: by the pixel's own largest probability.
    """
    confidence, labels = at_least_float32(logits).softmax(1).max(1)
    confident = (confidence >= threshold).to(confidence.dtype)
    share = sum_over_ranks(confident.mean()) / world_size()
    by = {
        "batch": share,
        "image": confident.mean((1, 2), keepdim=True),
        "pixel": confident,
        "probability": confidence,
    }
    assert by.keys() == set(WEIGHTS), (by.keys(), WEIGHTS)
    weight = by[weigh].expand_as(confidence).clone()
    top, bottom = border
    weight[:, :top] = 0
    weight[:, max(0, weight.shape[1] - bottom) :] = 0
    return PseudoLabel(labels, weight, share, confidence.mean())


@dataclass(frozen=True)
class Layer:
    """A batch of labelled images, one of the two that a mix is made of.

    Attributes:
        image: (B, 3, H, W) float, normalised.
        labels: (B, H, W) int64 class ids or the ignored one.
        weight: How much a pixel counts, 0..1: (B, H, W) float, or one number for all.
    """

    image: Tensor
    labels: Tensor
    weight: Tensor | float = 1.0


@dataclass(frozen=True)
class DacsDraws:
    """Everything random in one mix.

    Attributes:
        classes: Ids that are pasted, the ignored one possibly among them.
        jitter: Per image the order and the factors (brightness, contrast, saturation, hue), or None for no jitter.
        blur: Per image the standard deviation of the blur in pixels, or None for no blur.
    """

    classes: tuple[int, ...]
    jitter: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] | None = None
    blur: tuple[float, ...] | None = None


def draw_dacs(
    generator: np.random.Generator,
    labels: Tensor,
    ids: Sequence[int],
    jitter_probability: float = 0.8,
    jitter_strength: float = 0.2,
    blur_probability: float = 0.5,
    blur_sigma: tuple[float, float] = (0.15, 1.15),
    rare: bool = False,
) -> DacsDraws:
    """Draw one mix: classes once for the batch, strengths for each image.

    With several processes it is drawn for the joined batch of all of them, the same on each, and every process keeps
    what concerns its own images; all must call it, with batches of one size.

    Args:
        generator: Source of randomness, in the same state on every process.
        labels: The source batch's labels (B, H, W) int64; of the n ids in it, the ignored one included, ceil(n / 2)
            are drawn.
        ids: All that ``labels`` may hold: the classes' and the ignored one.
        jitter_probability: Probability that the batch is jittered.
        jitter_strength: Range of the factors: 1 - s .. 1 + s, and -s .. s for the hue (in turns).
        blur_probability: Probability that the batch is blurred.
        blur_sigma: Range of the standard deviation in pixels.
        rare: Whether ids that cover little are drawn more often than others: each with a probability in proportion
            to one over the root of its pixels. Published: all alike.
    """
    ids = sorted(ids)
    pixels = sum_over_ranks(torch.bincount(labels.flatten(), minlength=ids[-1] + 1)).cpu().numpy()[ids]
    present, pixels = np.array(ids)[pixels > 0], pixels[pixels > 0]
    chance = pixels**-0.5 / (pixels**-0.5).sum() if rare else None  # None: equal ones are drawn by another algorithm
    classes = generator.choice(present, math.ceil(len(present) / 2), replace=False, p=chance)
    images = len(labels) * world_size()
    own = slice(rank() * len(labels), (rank() + 1) * len(labels))
    jitter = blur = None
    if generator.random() < jitter_probability:
        low = np.array([1 - jitter_strength] * 3 + [-jitter_strength])
        jitter = tuple(
            (
                tuple(generator.permutation(4).tolist()),
                tuple((low + 2 * jitter_strength * generator.random(4)).tolist()),
            )
            for _ in range(images)
        )[own]
    if generator.random() < blur_probability:
        blur = tuple(generator.uniform(*blur_sigma, size=images).tolist())[own]
    return DacsDraws(tuple(int(c) for c in classes), jitter, blur)


def blur_kernel(side: int) -> int:
    """Side of the blur's kernel along an axis: the largest odd number not above ceil(side / 10)."""
    most = math.ceil(side / 10)
    return most if most % 2 else max(most - 1, 1)


def augment(image: Tensor, mean: Tensor, std: Tensor, draws: DacsDraws) -> Tensor:
    """Jitter de-normalised values, clamped to 0..1, and blur the normalised image.

    Args:
        image: (B, 3, H, W) float, normalised.
        mean: (3,) of the normalisation.
        std: (3,) of the normalisation.
        draws: What was drawn; one entry of ``jitter`` and ``blur`` per image.
    """
    mean, std = mean[:, None, None], std[:, None, None]
    out = []
    for i, x in enumerate(image):
        if draws.jitter is not None:
            x = (x * std + mean).clamp(0, 1)
            order, factors = draws.jitter[i]
            for k in order:
                x = _ADJUST[k](x, factors[k])
            x = (x.clamp(0, 1) - mean) / std
        if draws.blur is not None:
            # Along one axis and then the other: the same sum with 2 k terms for each pixel instead of k ** 2.
            sigma = [draws.blur[i]] * 2
            x = TF.gaussian_blur(x, [blur_kernel(x.shape[2]), 1], sigma)  # torchvision's order: x, then y
            x = TF.gaussian_blur(x, [1, blur_kernel(x.shape[1])], sigma)
        out.append(x)
    return torch.stack(out)


def mix(over: Layer, under: Layer, draws: DacsDraws, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Paste the drawn classes of one batch over another's images, labels and weights, then augment.

    Args:
        over: Whose drawn classes are pasted; published: plain source images.
        under: What is seen elsewhere; published: target images, with pseudo labels and their weights.
        draws: Classes and strengths.
        mean: (3,) of the normalisation.
        std: (3,) of the normalisation.

    Returns:
        Mixed images (B, 3, H, W) float, labels (B, H, W) int64, weights (B, H, W) float.
    """
    pasted = torch.isin(over.labels, torch.as_tensor(draws.classes, device=over.labels.device))
    image = torch.where(pasted[:, None], over.image, under.image)
    labels = torch.where(pasted, over.labels, under.labels)
    weight = torch.where(pasted, over.weight, under.weight)
    if draws.jitter is not None or draws.blur is not None:
        with torch.autocast(image.device.type, enabled=False):  # it would blur in half precision
            image = augment(image, mean, std, draws)
    return image, labels, weight
