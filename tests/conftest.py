"""Shared fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from reference import recipe
from torch import Tensor

from icda.config import LossConfig
from icda.interop import load_published
from icda.models import SegmentationModel

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def published_b1() -> dict[str, Tensor]:
    """A published state dict of the MiT-B1 model (``backbone``, ``head``, ``dat``), filled by the recipe."""
    keys = json.loads((REFERENCE / "checkpoint_keys_mit_b5.json").read_text())
    return recipe.state_dict(recipe.published_shapes(keys))


@pytest.fixture
def reference_model(published_b1: dict[str, Tensor]) -> SegmentationModel:
    """The MiT-B1 model with the recipe's weights, in evaluation mode."""
    return load_published(published_b1)


PUBLISHED_LOSS = LossConfig(
    source=1.0,
    feature_distance=0.005,
    enhanced=1.0,
    reference=1.0,
    pca_source=1.0,
    pca_target=1.0,
    mix=1.0,
    feature_distance_min_share=0.75,
    pca_momentum=0.9,
    pca_tau=50.0,
    pseudo_label_threshold=0.968,
    pseudo_label_with_dar=True,
    reference_probability=0.5,
    mix_jitter_probability=0.8,
    mix_jitter_strength=0.2,
    mix_blur_probability=0.5,
)


@pytest.fixture(scope="session")
def loss_config() -> Callable[..., LossConfig]:
    """The published settings of the loss, with changes given by name."""
    return lambda **changes: replace(PUBLISHED_LOSS, **changes)
