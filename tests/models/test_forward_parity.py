"""Encoder, head and DAR against figures of the published implementation (method section 11)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from reference import recipe

from icda.models import SegmentationModel

FIGURES = np.load(Path(__file__).parents[1] / "reference" / "forward_mit_b1.npz")
TOLERANCE = 2e-5


def close(ours: torch.Tensor, name: str) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), FIGURES[name], rtol=0, atol=TOLERANCE)


@pytest.fixture
def maps(reference_model: SegmentationModel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    shape = (1, 3, 128, 256)
    with torch.no_grad():
        return tuple(reference_model.encoder(recipe.image(tag, shape)) for tag in ("pub.night", "pub.day"))


def test_encoder(maps):
    for i, night in enumerate(maps[0]):
        close(night, f"feat_night_{i}")


@torch.no_grad()
def test_dar(reference_model, maps):
    for i, fused in enumerate(reference_model.dar(*maps)):
        close(fused, f"fused_{i}")


@torch.no_grad()
def test_head(reference_model, maps):
    close(reference_model.head(maps[0]), "logits_night")
    close(reference_model.head(reference_model.dar(*maps)), "logits_fused")


@torch.no_grad()
@pytest.mark.parametrize("stage", [0, 1])
def test_positions(reference_model, maps, stage):
    found = {}
    attention = reference_model.dar.stages[stage].layers[1].attention
    attention.joint.register_forward_hook(lambda _module, _inputs, output: found.update(joint=output))
    reference_model.dar(*maps)
    joint = rearrange(found["joint"], "b (g c) h w -> (b g) c h w", g=attention.groups)
    close(attention.positions(joint)[None], f"pos_stage{stage + 3}")


@torch.no_grad()
def test_logits_are_brought_to_the_images_size(reference_model, maps):
    logits = torch.nn.functional.interpolate(
        torch.as_tensor(FIGURES["logits_night"]), (128, 256), mode="bilinear", align_corners=False
    )
    ours = reference_model(recipe.image("pub.night", (1, 3, 128, 256)))
    torch.testing.assert_close(ours, logits, rtol=0, atol=TOLERANCE)
