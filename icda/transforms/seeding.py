"""Seeding a pipeline for one sample."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import albumentations as A


def reseed(pipeline: A.Compose, seed: int) -> None:
    """Makes the next call of `pipeline` a function of its input and `seed` alone.

    All transforms share one stream of random numbers. `pipeline.set_random_seed(seed)` is different: it gives
    every transform a stream of its own with the same seed, so that the first number that each draws is one and
    the same (an image would be blurred only when it is darkened too). It is also slower, as it makes two
    generators per transform.

    Args:
        pipeline: Any composition of albumentations.
        seed: At least 0.
    """
    assert seed >= 0, seed
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
