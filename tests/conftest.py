"""Shared fixtures."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from reference import recipe
from torch import Tensor

from icda.config import LossConfig
from icda.data.demo import DemoCounts, make_demo
from icda.interop import load_published
from icda.models import SegmentationModel

CONF = Path(__file__).parents[1] / "conf"
REFERENCE = Path(__file__).parent / "reference"


def pytest_configure(config: pytest.Config) -> None:
    """With several pytest processes (``-n``), one thread each: more would fight for the cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Put the root logger back: Hydra gives it handlers, whose streams pytest closes after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


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
    masked=0.0,
    mix_reverse=0.0,
    statistics="all",
    teacher_statistics="batch",
    feature_distance_min_share=0.75,
    coupling_trains="dar",
    pca_momentum=0.9,
    pca_tau=50.0,
    pca_space="logits",
    pca_labels="own",
    pca_balanced=False,
    pseudo_label_threshold=0.968,
    pseudo_label_weight="batch",
    pseudo_label_with_dar=True,
    reference_probability=0.5,
    mix_source="plain",
    mix_classes="uniform",
    mix_jitter_probability=0.8,
    mix_jitter_strength=0.2,
    mix_blur_probability=0.5,
    mask_block=32,
    mask_share=0.7,
)


@pytest.fixture(scope="session")
def loss_config() -> Callable[..., LossConfig]:
    """The published settings of the loss, with changes given by name."""
    return lambda **changes: replace(PUBLISHED_LOSS, **changes)


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``data_dir`` with a tiny demo set."""
    data_dir = tmp_path_factory.mktemp("data")
    counts = DemoCounts(source_train=6, source_val=2, target_train=5, target_val=3, target_test=1)
    make_demo(data_dir / "demo", counts=counts, size=(64, 128), workers=1, progress=False)
    return data_dir


TINY = (
    "dataset.prepare=null",
    "dataset.source.size=[64,128]",
    "dataset.target.size=[64,128]",
    "dataset.val.size=[64,128]",
    "dataset.sampling.crop=[64,64]",
    "dataset.sampling.min_pixels=20",
    "dataset.sampling.min_crop_pixels=10",
    "model.head.channels=8",
    "model.dar.mlp_ratio=1",
    "schedule.max_steps=2",
    "schedule.warmup_steps=1",
    "schedule.val_every=2",
    "schedule.save_every=2",
    "schedule.log_every=1",
    "device=cpu",
    "workers=0",
    "panels=2",
    "progress=false",
)


@pytest.fixture
def tiny(demo_data: Path) -> list[str]:
    """Overrides that make ``conf/train.yaml`` a run of seconds on the tiny demo set."""
    return [*TINY, f"data_dir={demo_data}"]


@pytest.fixture
def compose_train(tiny: list[str]) -> Callable[..., DictConfig]:
    """Composes ``conf/train.yaml`` with the tiny overrides and the ones given."""

    def compose_with(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", [*tiny, *overrides])

    return compose_with
