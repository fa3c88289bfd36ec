"""The training samples: an endless stream of source and target pairs, each a function of the seed and its position.

No sample depends on the ones before it, on the number of workers or on anything drawn elsewhere, so a run that is
stopped at a step goes on with the sample that would have come next.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from icda.config import SamplingConfig
from icda.data.base import OnRead, SegmentationDataset
from icda.data.rare_class import RareClassSampler
from icda.errors import UserError
from icda.transforms.seeding import reseed

if TYPE_CHECKING:
    import albumentations as A

_SOURCE, _TARGET, _CEM, _LIFT, _GLOBAL = range(5)  # keys that keep a sample's generators apart
_LEVELS = np.iinfo(np.uint8).max + 1


def normalize(image: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """An RGB image (H, W, 3) uint8 as a normalised tensor (3, H, W) float32."""
    levels = np.arange(_LEVELS, dtype=np.float32)
    planes = np.empty((3, *image.shape[:2]), np.float32)
    for channel, plane in enumerate(planes):  # looked up, which takes a seventh of the time of the arithmetic
        table = (levels / (_LEVELS - 1) - mean[channel]) / std[channel]
        cv2.LUT(cv2.extractChannel(image, channel), table.astype(np.float32), dst=plane)
    return torch.from_numpy(planes)


def largest_share(label: np.ndarray, ignore_index: int) -> float:
    """Share of the most frequent class among a label map's (H, W) uint8 labelled pixels; 1 if none is labelled."""
    label = label.astype(np.uint8, copy=False)
    counts = cv2.calcHist([label], [0], None, [_LEVELS], [0, _LEVELS]).ravel().astype(np.int64)
    counts[ignore_index] = 0
    return counts.max() / counts.sum() if counts.any() else 1.0


@contextmanager
def seeded(key: Sequence[int]) -> Iterator[None]:
    """Make the global generators of Python, numpy and PyTorch's CPU a function of a key, and put them back after.

    icda itself draws from none of them, but a person's own data set or transform may.

    Args:
        key: Numbers of at least 0.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    python, numpy, pytorch = np.random.default_rng(key).integers(2**32, size=3).tolist()
    random.seed(python)
    np.random.seed(numpy)  # noqa: NPY002
    torch.default_generator.manual_seed(pytorch)  # torch.manual_seed would seed the GPU's too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


class PairStream(Dataset):
    """Sample i of a training run: a source pair (S, E) and a target pair (R, T), method section 8.

    Args:
        source: Labelled day images.
        target: Night images, or None where neither a term nor CEM needs them.
        sampling: Crop size, rules for crops and for rare classes.
        mean: (3,) of the encoder's normalisation, for images scaled to 0..1.
        std: (3,) of the encoder's normalisation.
        length: Samples in the run.
        seed: Seed of the run.
        cem: Makes E from S (call with ``image``, ``mask`` and what its illumination needs), or None.
        lift: Makes R from those T that have no reference; None if all have one.
        with_reference: Whether R is wanted at all.
        rare_classes: Draws source images by class, or None to draw all alike.
    """

    def __init__(
        self,
        source: SegmentationDataset,
        target: SegmentationDataset | None,
        sampling: SamplingConfig,
        mean: Sequence[float],
        std: Sequence[float],
        length: int,
        seed: int,
        *,
        cem: A.Compose | None = None,
        lift: A.Compose | None = None,
        with_reference: bool = False,
        rare_classes: RareClassSampler | None = None,
    ) -> None:
        self.source = source
        self.target = target
        self.sampling = sampling
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)
        self.length = length
        self.seed = seed
        self.cem = cem
        self.lift = lift
        self.with_reference = with_reference
        self.rare_classes = rare_classes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """The sample at a position of the run.

        Returns:
            ``source``, ``enhanced``, ``reference``, ``target`` (3, H, W) float32, normalised; ``source_label``,
            ``enhanced_label`` (H, W) int64; only those that are wanted.
        """
        sample: dict[str, Tensor] = {}
        night = None
        with seeded([self.seed, _GLOBAL, position]):
            if self.target is not None:
                night = self._target_pair(position, sample)
            self._source_pair(position, night, sample)
        return sample

    @property
    def on_read(self) -> OnRead | None:
        """See ``SegmentationDataset.on_read``; that of source and target."""
        return self.source.on_read

    @on_read.setter
    def on_read(self, call: OnRead | None) -> None:
        for part in (self.source, self.target):
            if part is not None:
                part.on_read = call

    def _generator(self, position: int, what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, what, position])

    def _target_pair(self, position: int, sample: dict[str, Tensor]) -> np.ndarray:
        """Add T and R, which share crop and flip, to the sample; return the whole night image, uncropped."""
        generator = self._generator(position, _TARGET)
        epoch, place = divmod(position, len(self.target))
        index = int(np.random.default_rng([self.seed, _TARGET, epoch, 0]).permutation(len(self.target))[place])
        night = self.target.image(index)
        window = self._window(generator, night.shape)
        flip = generator.random() < 0.5
        sample["target"] = normalize(_cut(night, window, flip), self.mean, self.std)
        if self.with_reference:
            if self.lift is None or self.target.samples[index].reference is not None:
                day = self.target.reference(index)
            else:
                reseed(self.lift, int(self._generator(position, _LIFT).integers(2**31)))
                day = self.lift(image=night)["image"]
            sample["reference"] = normalize(_cut(day, window, flip), self.mean, self.std)
        return night

    def _source_pair(self, position: int, night: np.ndarray | None, sample: dict[str, Tensor]) -> None:
        """Add S, E and their labels to the sample; E may take its style from the night image."""
        generator = self._generator(position, _SOURCE)
        wanted, index = None, int(generator.integers(len(self.source)))
        if self.rare_classes is not None:
            wanted, index = self.rare_classes.draw(generator)
        image, label = self.source.image(index), self.source.label(index)
        for _ in range(self.sampling.tries):
            window = self._window(generator, label.shape, label)
            flip = generator.random() < 0.5
            cropped = _cut(label, window, flip)
            if wanted is None or np.count_nonzero(cropped == wanted) > self.sampling.min_crop_pixels:
                break
        plain = _cut(image, window, flip)
        sample["source"] = normalize(plain, self.mean, self.std)
        sample["source_label"] = torch.from_numpy(cropped.astype(np.int64))
        if self.cem is None:
            return
        aids = {}
        if "translated" in self.cem_needs:
            aids["translated"] = _cut(self.source.translation(index), window, flip)
        if "style_image" in self.cem_needs:
            aids["style_image"] = night
        reseed(self.cem, int(self._generator(position, _CEM).integers(2**31)))
        enhanced = self.cem(image=plain, mask=cropped, **aids)
        planes = np.empty((3, *cropped.shape), np.float32)
        cv2.split(enhanced["image"], [*planes])  # half the time of a transposed copy
        sample["enhanced"] = torch.from_numpy(planes)
        sample["enhanced_label"] = torch.from_numpy(enhanced["mask"].astype(np.int64))

    @property
    def cem_needs(self) -> set[str]:
        """Names of the images that CEM's transforms expect beside the image itself."""
        return {key for transform in self.cem.transforms for key in getattr(transform, "targets_as_params", ())}

    def _window(
        self, generator: np.random.Generator, shape: tuple[int, ...], label: np.ndarray | None = None
    ) -> tuple[slice, slice]:
        """A random crop; with a label, redrawn until no class covers too much of its labelled pixels."""
        height, width = self.sampling.crop
        if shape[0] < height or shape[1] < width:
            raise UserError(
                f"an image is {shape[0]} x {shape[1]} (height x width), smaller than dataset.sampling.crop="
                f"[{height}, {width}]; choose a smaller crop or a larger size"
            )
        for _ in range(self.sampling.tries):
            top = int(generator.integers(shape[0] - height + 1))
            left = int(generator.integers(shape[1] - width + 1))
            window = slice(top, top + height), slice(left, left + width)
            if label is None:
                break
            if largest_share(label[window], self.source.classes.ignore_index) <= self.sampling.max_class_share:
                break
        return window


def _cut(image: np.ndarray, window: tuple[slice, slice], flip: bool) -> np.ndarray:
    """The window of an image or a label map, mirrored left to right if asked."""
    cropped = image[window]
    return cv2.flip(cropped, 1) if flip else np.ascontiguousarray(cropped)
