"""Small networks to export, and checkpoints of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from icda.data.classes import CITYSCAPES
from icda.data.stream import normalize
from icda.inference import segment
from icda.models import SegmentationModel, build_model
from icda.training import checkpoint
from icda.training.checkpoint import Trained

SMALL = "test_resnet"
"""The smallest encoder of timm with four maps at the strides that the head needs."""


def make_model(
    encoder: str, seed: int = 0, with_dar: bool = False, dilations: tuple[int, ...] = (1, 3), mlp_ratio: int = 1
) -> SegmentationModel:
    """A network with random weights and batch norms that are not trivial; its labels differ from place to place."""
    torch.manual_seed(seed)
    model = build_model(
        encoder,
        len(CITYSCAPES),
        head_options={"channels": 8, "dilations": dilations},
        dar_options={"mlp_ratio": mlp_ratio},
        with_dar=with_dar,
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    nn.init.normal_(model.head.classifier.weight)
    return model.eval()


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A coarse pattern, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 10, 3), np.uint8), size[::-1], interpolation=cv2.INTER_LINEAR)


def batch(
    seed: int, count: int, size: tuple[int, int], model: SegmentationModel
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Pictures as uint8 and normalised, both (B, 3, H, W), and the labels (B, H, W) that prediction gives."""
    images = [picture(seed + i, size) for i in range(count)]
    entering = [normalize(image, model.mean.numpy(), model.std.numpy()) for image in images]
    labels = [segment(model, one[None], size, confidence=False)[0] for one in entering]
    levels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return levels, torch.stack(entering), np.stack(labels)


def make_config(encoder: str, dilations: tuple[int, ...] = (1, 3), mlp_ratio: int = 1) -> dict[str, Any]:
    """The configuration of ``make_model``, and the size that pictures were trained at."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        changes = ["model.encoder.weights=none", f"model.encoder.name={encoder}", "model.head.channels=8"]
        changes += ["model.encoder.drop_path_rate=null", f"model.dar.mlp_ratio={mlp_ratio}"]
        changes += [f"model.head.dilations={list(dilations)}"]
        model = compose("train", changes).model
    dataset = {"name": "demo", "val": {"size": [360, 480]}}
    return {"dataset": dataset, "model": OmegaConf.to_container(model)}


def make_trained(encoder: str, with_dar: bool = False, **options: Any) -> Trained:
    """``make_model`` with its configuration."""
    config = OmegaConf.create(make_config(encoder, **options))
    return Trained(make_model(encoder, with_dar=with_dar, **options), CITYSCAPES, config, 7, {})


def save_checkpoint(path: Path, encoder: str, with_dar: bool = False, **options: Any) -> Path:
    """Writes a checkpoint whose student and teacher are ``make_model`` with seeds 0 and 1."""
    student, teacher = (make_model(encoder, seed, with_dar, **options).state_dict() for seed in (0, 1))
    content = {
        "config": make_config(encoder, **options),
        "classes": {**asdict(CITYSCAPES), "palette": [list(color) for color in CITYSCAPES.palette]},
        "step": 7,
        "trained_frames": {},
        "student": student,
        "teacher": teacher,
    }
    checkpoint.save(path, {**dict.fromkeys(checkpoint.CONTENT), **content})
    return path
